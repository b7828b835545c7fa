"""Every malformed, unknown or out-of-place frame or body is refused by name, and nothing else happens (section 4.6)."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import msgspec
import pytest
from yarl import URL

from tests.e2e.conftest import Connect
from tests.support.process import GatewayProcess
from tests.support.wire import MSGPACK, Frame, is_

SECRET = "hunter2"
"""Stands in the refused values: no answer repeats it."""
LONG = "x" * 129


def chat(**fields: Any) -> Frame:
    return {"type": "chat_message", "conversation_id": "c", "message": "hi", **fields}


def tool(**function: Any) -> list[Frame]:
    return [{"type": "function", "function": {"name": "f", **function}}]


def deep(levels: int) -> Any:
    value: Any = SECRET
    for _ in range(levels):
        value = [value]
    return value


BAD: list[tuple[Frame, str]] = [
    ({"type": 7}, "type"),
    ({"type": None}, "type"),
    ({"message": SECRET}, "type"),
    ({"type": "ping", "ref": 7}, "ref"),
    ({"type": "ping", "ref": "r" * 129}, "ref"),
    ({"type": "chat_message", "conversation_id": "c"}, "message"),
    (chat(message=""), "message"),
    (chat(message=None), "message"),
    (chat(message=[SECRET]), "message"),
    (chat(conversation_id=""), "conversation_id"),
    (chat(conversation_id="a b"), "conversation_id"),
    (chat(conversation_id="a/b"), "conversation_id"),
    (chat(conversation_id="é"), "conversation_id"),
    (chat(conversation_id="a\n"), "conversation_id"),
    (chat(conversation_id=LONG), "conversation_id"),
    (chat(conversation_id=7), "conversation_id"),
    (chat(message_id=f"{SECRET}!"), "message_id"),
    (chat(message_id=LONG), "message_id"),
    (chat(message_id=""), "message_id"),
    (chat(on_busy=SECRET), "on_busy"),
    (chat(on_busy=None), "on_busy"),
    (chat(model=""), "model"),
    (chat(model=7), "model"),
    (chat(system=[SECRET]), "system"),
    (chat(tools=SECRET), "tools"),
    (chat(tools={}), "tools"),
    (chat(tools=[SECRET]), "tools[0]"),
    (chat(tools=[{"type": "function"}]), "tools[0].function"),
    (chat(tools=[{"type": SECRET, "function": {"name": "f"}}]), "tools[0].type"),
    (chat(tools=tool(name="a b")), "tools[0].function.name"),
    (chat(tools=tool(name="x" * 65)), "tools[0].function.name"),
    (chat(tools=tool(name="")), "tools[0].function.name"),
    (chat(tools=tool() + tool(name="g") + tool()), "tools[2].function.name"),
    (chat(tools=tool(description=7)), "tools[0].function.description"),
    (chat(tools=tool(parameters=[SECRET])), "tools[0].function.parameters"),
    (chat(tools=tool(parameters={"x": deep(130)})), "tools[0].function.parameters"),
    (chat(tools=tool(strict="yes")), "tools[0].function.strict"),
    (chat(metadata=[SECRET]), "metadata"),
    (chat(metadata=SECRET), "metadata"),
    (chat(metadata={"x": "y" * 4096}), "metadata"),
    (chat(metadata={"x": deep(130)}), "metadata"),
    ({"type": "function_result", "call_id": "x", "result": 1}, "conversation_id"),
    ({"type": "function_result", "conversation_id": "c", "result": 1}, "call_id"),
    ({"type": "function_result", "conversation_id": "c", "call_id": "", "result": 1}, "call_id"),
    ({"type": "function_result", "conversation_id": "c", "call_id": "x"}, "result"),
    ({"type": "function_result", "conversation_id": "c", "call_id": "x", "result": 1, "error": "e"}, "result"),
    ({"type": "function_result", "conversation_id": "c", "call_id": "x", "error": 7}, "error"),
    ({"type": "function_result", "conversation_id": "c", "call_id": "x", "error": None}, "error"),
    ({"type": "function_result", "conversation_id": "c", "call_id": "x", "result": deep(130)}, "result"),
    ({"type": "cancel"}, "conversation_id"),
    ({"type": "cancel", "conversation_id": None}, "conversation_id"),
    ({"type": "cancel", "conversation_id": "c", "turn_id": 7}, "turn_id"),
    ({"type": "cancel", "conversation_id": "c", "turn_id": ""}, "turn_id"),
    ({"type": "subscribe"}, "conversation_id"),
    ({"type": "subscribe", "conversation_id": "c", "after": -1}, "after"),
    ({"type": "subscribe", "conversation_id": "c", "after": "1"}, "after"),
    ({"type": "subscribe", "conversation_id": "c", "after": 1.5}, "after"),
    ({"type": "subscribe", "conversation_id": "c", "after": True}, "after"),
    ({"type": "subscribe", "conversation_id": "c", "after": 2**53}, "after"),
    ({"type": "subscribe", "conversation_id": "c", "after": 1, "epoch": -1}, "epoch"),
    ({"type": "subscribe", "conversation_id": "c", "after": 1, "epoch": None}, "epoch"),
    ({"type": "subscribe", "conversation_id": "c", "after": 1, "epoch": 2**53}, "epoch"),
    ({"type": "unsubscribe", "conversation_id": ["c"]}, "conversation_id"),
    ({"type": "auth"}, "token"),
    ({"type": "auth", "token": ""}, "token"),
    ({"type": "auth", "token": 7}, "token"),
]
UNREADABLE = [
    b"",
    b" ",
    b"null",
    b"[]",
    b'"ping"',
    b"7",
    b"{",
    b'{"type":"ping"',
    b'{"type":"ping"} {}',
    b"{'type':'ping'}",
    b'\xef\xbb\xbf{"type":"ping"}',
    b'{"type":"ping","x":NaN}',
    b'{"type":"chat_message","message":"\\ud800"}',
    b'{"type":"ping","type":"auth"}',
    b'{"type":"chat_message","message":"x","metadata":{"n":1e999}}',
    b'{"type":"chat_message","message":"x","metadata":{"n":123456789012345678901234567890}}',
]
UNKNOWN = ["hello", "", "Ping", "chat message", "message", "token", "done", "welcome", "subscribed"]


def assert_refused(frame: Frame, code: str = "BAD_FRAME") -> str:
    """Returns the message."""
    assert frame["type"] == "error"
    assert "turn_id" not in frame
    assert "seq" not in frame
    error = frame["error"]
    assert set(error) == {"code", "message", "retryable"}
    assert (error["code"], error["retryable"]) == (code, False), error
    assert SECRET not in error["message"]
    assert "Traceback" not in error["message"]
    return str(error["message"])


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_every_malformed_field_is_named(connect: Connect, new_id: Any, encoding: str) -> None:
    """One connection gets them all, while a turn runs on it that none of them may touch."""
    async with connect(f"convobase.v1+{encoding}") as client:
        running = await client.ask("chat_message", conversation_id=new_id(), message="/stall")
        for frame, field in BAD:
            ref = frame.get("ref", "the ref")
            await client.send_frame({"ref": ref, **frame})
            refused = (await client.until(is_("error")))[-1]
            message = assert_refused(refused)
            assert f"`{field}`" in message or (field == "result" and field in message), (frame, message)
            if field != "ref":
                assert refused["ref"] == "the ref", frame
            conversation = frame.get("conversation_id")
            assert refused.get("conversation_id") == (conversation if conversation == "c" else None), frame
        answer = await client.ask("cancel", conversation_id=running["conversation_id"])
        assert answer["outcome"] == "stopped"
        assert (await client.ask("cancel", conversation_id="c"))["outcome"] == "not_found"


@pytest.mark.parametrize("data", UNREADABLE, ids=repr)
async def test_what_is_no_frame_is_refused(connect: Connect, http: aiohttp.ClientSession, data: bytes) -> None:
    async with connect() as client:
        await client.socket.send(data, text=True)
        assert_refused(await client.next())
        assert (await client.ask("ping"))["type"] == "pong"
    if not data:
        return  # no body is an empty object
    async with http.post("/api/chat", data=data) as answer:
        assert answer.status == 400
        assert_refused({"type": "error", **await answer.json()})


@pytest.mark.parametrize("kind", UNKNOWN)
async def test_types_that_clients_do_not_send_are_unknown(connect: Connect, kind: str) -> None:
    async with connect() as client:
        await client.send(kind, ref="r", conversation_id="c", turn_id="t", seq=1)
        refused = await client.next()
    assert assert_refused(refused, "UNKNOWN_TYPE").startswith("`type`")
    assert (refused["ref"], refused["conversation_id"]) == ("r", "c")


async def test_unknown_fields_are_ignored_and_the_last_of_two_names_counts(connect: Connect) -> None:
    async with connect() as client:
        await client.socket.send('{"x":{"y":[1]},"type":"ping","ref":"a","ref":"b","type":"ping"}')
        assert (await client.next()) == {"type": "pong", "ref": "b"}


async def test_values_that_messagepack_has_and_json_has_not(connect: Connect) -> None:
    extension = msgspec.msgpack.Ext(1, b"x")
    async with connect(MSGPACK) as client:
        for value in (b"bytes", extension, float("nan"), float("inf"), {1: 2}, {"a": [{b"k": 1}]}):
            await client.socket.send(msgspec.msgpack.encode(chat(metadata={"v": value})))
            message = assert_refused(await client.next())
            assert "`metadata" in message, message
        for data in (b"\xc1", b"", b"\x81\xa4type", b"\x93\x01\x02\x03", b"\x81\xa4type\xa4ping\x00"):
            await client.socket.send(data)
            assert_refused(await client.next())
        assert (await client.ask("ping"))["type"] == "pong"


@pytest.mark.parametrize("path", ["/api/chat", "/api/chat/stream"])
async def test_bodies_are_refused_like_frames(http: aiohttp.ClientSession, path: str) -> None:
    for frame, field in BAD:
        if frame.get("type") != "chat_message":
            continue
        body = {name: value for name, value in frame.items() if name != "type"}
        async with http.post(path, data=json.dumps(body)) as answer:
            assert answer.status == 400, frame
            assert answer.content_type == "application/json"
            assert f"`{field}`" in assert_refused({"type": "error", **await answer.json()})
    async with http.post(path, json={"type": "ping"}) as answer:
        assert answer.status == 400
        assert "`type`" in (await answer.json())["error"]["message"]
    async with http.post(path) as answer:
        assert answer.status == 400
        assert "`message`" in (await answer.json())["error"]["message"]


async def test_bodies_of_commands_agree_with_their_path(http: aiohttp.ClientSession) -> None:
    for body, field in (
        ({"conversation_id": "other"}, "conversation_id"),
        ({"turn_id": 7}, "turn_id"),
        ({"type": "ping"}, "type"),
    ):
        async with http.post("/api/conversations/c/cancel", json=body) as answer:
            assert answer.status == 400
            assert f"`{field}`" in assert_refused({"type": "error", **await answer.json()})
    bodies: list[Frame] = [
        {}, {"call_id": "x"}, {"call_id": "x", "result": 1, "error": "e"}, {"call_id": 1, "result": 1},
    ]  # fmt: skip
    for body in bodies:
        async with http.post("/api/conversations/c/function_results", json=body) as answer:
            assert answer.status == 400
            assert_refused({"type": "error", **await answer.json()})


@pytest.mark.parametrize("path", ["", "/cancel", "/function_results"])
@pytest.mark.parametrize("conversation", ["a%20b", "%C3%A9", "x" * 129, "a%0A", "a:b"])
async def test_ids_in_paths_are_checked(http: aiohttp.ClientSession, path: str, conversation: str) -> None:
    url = URL(f"{http._base_url}".rstrip("/") + f"/api/conversations/{conversation}{path}", encoded=True)
    for method in ("POST",) if path else ("GET", "DELETE"):
        async with http.request(method, url) as answer:
            assert answer.status == 400
            assert "`conversation_id`" in assert_refused({"type": "error", **await answer.json()})


async def test_bodies_over_the_limit_are_413(impatient: GatewayProcess) -> None:
    async def pieces() -> Any:
        for _ in range(5):
            yield b" " * 500

    async with aiohttp.ClientSession(impatient.base) as http:
        for path in ("/api/chat", "/api/chat/stream", "/api/conversations/c/cancel"):
            for body in (b" " * 2049, pieces()):
                async with http.post(path, data=body) as answer:
                    assert answer.status == 413
                    assert_refused({"type": "error", **await answer.json()}, "FRAME_TOO_LARGE")
        fits = b'{"message":"/fast /echo a"}'.ljust(2048)
        async with http.post("/api/chat", data=fits) as answer:
            assert answer.status == 200


async def test_metadata_may_have_4096_bytes_in_any_encoding(connect: Connect, new_id: Any) -> None:
    metadata = {"k": "é" * ((4096 - len('{"k":""}')) // 2)}
    for encoding in ("convobase.v1+json", MSGPACK):
        async with connect(encoding) as client:
            turn = await client.turn("/fast /echo a", new_id(), metadata=metadata)
            assert turn[0]["metadata"]["client"] == metadata
            refused = await client.ask(
                "chat_message", conversation_id=new_id(), message="x", metadata={**metadata, "m": 1}
            )
            assert "`metadata`" in assert_refused(refused)


async def test_null_is_the_same_as_absent_where_the_page_says_so(connect: Connect, new_id: Any) -> None:
    none = dict.fromkeys(("message_id", "model", "tools", "system", "metadata"))
    async with connect() as client:
        await client.turn("/fast /echo a", new_id(), **none)
        await client.send("chat_message", message="/fast /echo b", conversation_id=None, ref=None)
        assert (await client.get("message"))["conversation_id"]
        subscribed = await client.ask("subscribe", conversation_id=new_id(), after=None)
        assert subscribed["after"] == 0
        await client.ask("cancel", conversation_id=new_id(), turn_id=None)
        schemaless = [{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}]
        await client.turn("/fast /echo a", new_id(), tools=schemaless)
