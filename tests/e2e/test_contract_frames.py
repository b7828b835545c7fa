"""The WebSocket: subprotocols, direct answers, and what one connection may do (SPEC.md sections 3.3, 4 and 5)."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus

from tests.e2e.conftest import Connect
from tests.support.process import GatewayProcess
from tests.support.wire import JSON, MSGPACK, assert_complete, is_, is_end, is_logged, kinds, text, wire

ENCODINGS = pytest.mark.parametrize("encoding", [JSON, MSGPACK])
FOREIGN = 'C’est naïve — 東京の朝 👩‍🚀 \x00\x01\u2028 "\\ \t\r\n end'


async def test_simplest_client_word_for_word(connect_bare: Connect) -> None:
    async with connect_bare() as client:
        await client.socket.send('{"type":"chat_message","message":"Hello world"}')
        started_ms = time.time() * 1000
        frames = await client.until(is_end)
    welcome, *turn = frames
    assert welcome["type"] == "welcome"
    assert_complete(turn)
    assert len(text(turn)) > 100
    (conversation,) = {frame["conversation_id"] for frame in turn}
    assert 1 <= len(conversation) <= 128
    assert len({frame["turn_id"] for frame in turn}) == 1
    assert turn[0]["seq"] == 1
    assert not any("ref" in frame or "epoch" in frame or "duplicate" in frame for frame in turn)
    assert all(abs(frame["metadata"]["timestamp"] - started_ms) < 60_000 for frame in turn)
    question, done = turn[0], turn[-1]
    assert set(question) == {
        "type", "conversation_id", "turn_id", "seq", "metadata", "role", "content", "message_id",
    }  # fmt: skip
    assert (question["role"], question["content"]) == ("user", "Hello world")
    assert done["finish_reason"] == "stop"
    assert set(done["usage"]) == {"prompt_tokens", "completion_tokens"}


async def test_without_a_conversation_id_every_send_begins_a_new_one(connect: Connect) -> None:
    async with connect() as client:
        first = await client.ask("chat_message", message="/fast /echo a", message_id="same")
        second = await client.ask("chat_message", message="/fast /echo a", message_id="same")
    assert first["conversation_id"] != second["conversation_id"]
    assert first["message_id"] == second["message_id"] == "same"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        ([JSON], JSON),
        ([MSGPACK], MSGPACK),
        ([JSON, MSGPACK], JSON),
        ([MSGPACK, JSON], MSGPACK),
        (["graphql-ws", MSGPACK], MSGPACK),
        (["convobase.v2+json"], None),
    ],
)
async def test_subprotocol_and_welcome(connect_bare: Connect, offered: list[str], chosen: str | None) -> None:
    async with connect_bare(*offered) as client:
        assert client.socket.subprotocol == chosen
        assert client.socket.response is not None
        assert "Sec-WebSocket-Extensions" not in client.socket.response.headers, "nothing is compressed"
        welcome = await client.next()
    assert set(welcome) == {"type", "connection_id", "protocol", "heartbeat_s", "limits"}
    assert welcome["type"] == "welcome"
    assert welcome["protocol"] == (chosen or JSON)
    assert welcome["heartbeat_s"] == 20
    assert welcome["connection_id"]
    assert welcome["limits"]
    assert all(type(value) is int for value in welcome["limits"].values())


@ENCODINGS
async def test_every_frame_has_its_direct_answer(connect: Connect, new_id: Any, encoding: str) -> None:
    conversation = new_id()
    async with connect(encoding) as client:
        pong = await client.ask("ping", ref="1")
        subscribed = await client.ask("subscribe", conversation_id=conversation, ref="2")
        message = await client.ask(
            "chat_message", conversation_id=conversation, message='/fast /call f {"a": 1}', ref="r" * 128
        )
        call = (await client.until(is_("function_call")))[-1]
        accepted = await client.ask(
            "function_result", conversation_id=conversation, call_id=call["call_id"], result=[None], ref="4"
        )
        await client.rest(message["turn_id"]) if not is_end(client.frames[-1]) else None
        cancelled = await client.ask("cancel", conversation_id=conversation, ref="5")
        unsubscribed = await client.ask("unsubscribe", conversation_id=conversation, ref="")
        welcome = await client.ask("auth", token="anything", ref="7")
        refused = await client.ask("nonsense", conversation_id=conversation, ref="8")
    assert pong == {"type": "pong", "ref": "1"}
    assert subscribed == {
        "type": "subscribed", "conversation_id": conversation, "after": 0, "head": 0, "epoch": 0, "ref": "2",
    }  # fmt: skip
    assert (message["type"], message["seq"], message["ref"]) == ("message", 1, "r" * 128)
    assert accepted == {
        "type": "accepted", "conversation_id": conversation, "call_id": call["call_id"], "ref": "4",
    }  # fmt: skip
    assert cancelled == {
        "type": "cancelled", "conversation_id": conversation, "outcome": "already_done",
        "turn_id": message["turn_id"], "ref": "5",
    }  # fmt: skip
    assert unsubscribed == {"type": "unsubscribed", "conversation_id": conversation, "ref": ""}
    assert (welcome["type"], welcome["ref"]) == ("welcome", "7")
    assert (refused["type"], refused["error"]["code"], refused["ref"]) == ("error", "UNKNOWN_TYPE", "8")
    assert refused["conversation_id"] == conversation
    assert "turn_id" not in refused
    assert "seq" not in refused


async def test_without_a_ref_the_answers_have_none(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        for kind in ("subscribe", "cancel", "unsubscribe"):
            await client.send(kind, conversation_id=conversation, ref=None)
        await client.send("ping")
        answers = await client.until(lambda _: len(client.frames) == 5)
    assert sorted(frame["type"] for frame in answers) == ["cancelled", "pong", "subscribed", "unsubscribed"]
    assert not any("ref" in frame for frame in answers)


async def test_a_ref_is_for_the_sender_only_and_is_not_logged(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as sender, connect() as other:
        await other.ask("subscribe", conversation_id=conversation)
        sent = await sender.turn("/fast /echo hi", conversation)
        seen = await other.until(is_end)
        assert sent[0]["ref"]
        del sent[0]["ref"]
        assert seen == sent, "both see the same entries"
        await other.ask("subscribe", conversation_id=conversation, after=0)
        again = await other.until(is_end)
    assert "ref" not in again[0]
    assert text(again) == text(sent)


@ENCODINGS
async def test_texts_of_every_script_pass_unharmed(connect: Connect, new_id: Any, encoding: str) -> None:
    metadata = {"deep": [{"x": 1.5, "big": 2**63, "small": -(2**63)}], "é": None, "t": True}
    async with connect(encoding) as client:
        turn = await client.turn(f"/fast /echo {FOREIGN}", new_id(), metadata=metadata)
    assert_complete(turn)
    assert text(turn) == FOREIGN
    assert turn[-1]["text_length"] == len(FOREIGN)
    assert turn[0]["content"] == f"/fast /echo {FOREIGN}"
    assert turn[0]["metadata"]["client"] == metadata


async def test_both_subprotocols_see_the_same(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect(JSON) as json_client, connect(MSGPACK) as msgpack_client:
        for client in (json_client, msgpack_client):
            await client.ask("subscribe", conversation_id=conversation)
        await json_client.turn(f"/fast /echo {FOREIGN}", conversation, message_id="m1")
        await msgpack_client.until(is_end)
        duplicate = await msgpack_client.ask("chat_message", conversation_id=conversation, message="x", message_id="m1")
        logged = [[frame for frame in client.frames if is_logged(frame) and "duplicate" not in frame]
                  for client in (json_client, msgpack_client)]  # fmt: skip
    assert duplicate["duplicate"] is True
    logged[0][0].pop("ref")
    assert logged[0] == logged[1]


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
async def test_the_other_kind_of_message_is_refused_and_no_harm(connect: Connect, new_id: Any, encoding: str) -> None:
    async with connect(encoding) as client:
        running = await client.ask("chat_message", message="/stall", conversation_id=new_id())
        await client.socket.send(b'{"type":"ping"}' if encoding == JSON else '{"type":"ping"}')
        refused = await client.get("error")
        assert refused["error"]["code"] == "BAD_FRAME"
        assert refused["error"]["retryable"] is False
        assert "turn_id" not in refused
        await client.ask("ping")
        answer = await client.ask("cancel", conversation_id=running["conversation_id"])
    assert answer["outcome"] == "stopped"


async def test_text_that_is_not_utf8_closes_with_1007(connect: Connect) -> None:
    async with connect() as client:
        client.socket.protocol.send_text(b'{"type":"ping","ref":"\xff"}')
        client.socket.transport.writelines(client.socket.protocol.data_to_send())
        assert await client.closed() == 1007


@ENCODINGS
async def test_a_message_over_the_limit_closes_with_1009(impatient: GatewayProcess, encoding: str) -> None:
    def ping(size_bytes: int) -> Any:
        encode = msgspec.json.encode if encoding == JSON else msgspec.msgpack.encode
        body: bytes = encode({"type": "ping", "x": "y" * 1000, "z": ""})
        return encode({"type": "ping", "x": "y" * (1000 + size_bytes - len(body)), "z": ""})

    async with wire(impatient.chat, encoding) as client:
        whole = ping(2048)
        assert len(whole) == 2048
        await client.socket.send(whole, text=encoding == JSON)
        await client.get("pong")
        await client.socket.send(ping(2049), text=encoding == JSON)
        assert await client.closed() == 1009


async def test_messages_may_come_in_fragments(connect: Connect) -> None:
    async with connect() as client:
        await client.socket.send(iter(['{"type":', '"ping",', '"ref":"é', '"}']))
        assert (await client.next())["ref"] == "é"


async def test_frames_of_one_conversation_are_answered_in_order(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        sent = [
            "subscribe", "chat_message", "chat_message", "unsubscribe", "chat_message", "subscribe", "cancel",
            "chat_message", "unsubscribe", "unsubscribe",
        ]  # fmt: skip
        for number, kind in enumerate(sent):
            fields = {"message": "/silent", "message_id": f"m{number}"} if kind == "chat_message" else {}
            await client.send(kind, conversation_id=conversation, ref=str(number), **fields)
        seen = await client.until(is_("unsubscribed", ref=str(len(sent) - 1)))
        answers = [frame["ref"] for frame in seen if "ref" in frame]
    assert answers == [str(number) for number in range(len(sent))]


async def test_many_conversations_interleave_on_one_connection(connect: Connect, new_id: Any) -> None:
    names = [new_id() for _ in range(50)]
    async with connect() as client:
        for name in names:
            await client.send("chat_message", conversation_id=name, message=f"/echo {FOREIGN} {name}")
        ends: dict[str, dict[str, Any]] = {}
        while len(ends) < len(names):
            frame = (await client.until(is_end))[-1]
            ends[frame["conversation_id"]] = frame
        for name in names:
            turn = [frame for frame in client.frames if frame.get("conversation_id") == name]
            assert_complete(turn)
            assert text(turn) == f"{FOREIGN} {name}"
    middle = [frame["conversation_id"] for frame in client.frames if frame["type"] == "token"]
    assert sum(a != b for a, b in itertools.pairwise(middle)) > len(names), "side by side, not one by one"


async def test_no_more_conversations_than_the_limit(impatient: GatewayProcess, new_id: Any) -> None:
    first, second, third = new_id(), new_id(), new_id()
    async with wire(impatient.chat) as client:
        assert client.frames[0]["limits"]["max_conversations_per_connection"] == 2
        await client.turn("/fast /echo 1", first)
        await client.ask("subscribe", conversation_id=second)
        for kind, fields in (("subscribe", {}), ("chat_message", {"message": "/echo 3"})):
            refused = await client.ask(kind, conversation_id=third, **fields)
            assert refused["error"]["code"] == "TOO_MANY_CONVERSATIONS"
            assert refused["error"]["retryable"] is True
        refused = await client.ask("chat_message", message="/echo 4")
        assert refused["error"]["code"] == "TOO_MANY_CONVERSATIONS"
        await client.turn("/fast /echo 5", first)
        await client.ask("subscribe", conversation_id=second, after=0)
        outcome = await client.ask("cancel", conversation_id=third)
        assert outcome["outcome"] == "not_found", "nothing was logged"
        await client.ask("unsubscribe", conversation_id=second)
        await client.turn("/fast /echo 6", third)


async def test_connections_over_the_limit_are_closed_with_4429(start: Any) -> None:
    async with start(max_connections=2) as gateway:
        async with wire(gateway.chat), wire(gateway.chat) as second:
            async with ws_connect(gateway.chat, proxy=None) as third:
                await asyncio.wait_for(third.wait_closed(), 10)
                assert third.close_code == 4429
            await second.ask("ping")
        async with wire(gateway.chat) as later:
            await later.ask("ping")


async def test_a_websocket_elsewhere_is_404(gateway: GatewayProcess) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with ws_connect(gateway.chat + "s", proxy=None):
            pass
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body)["error"]["code"] == "NOT_FOUND"


async def test_a_connection_that_sends_faster_than_it_is_served_loses_nothing(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        count = 300
        for number in range(count):
            await client.send("subscribe", conversation_id=conversation, ref=str(number))
        answers = await client.until(is_("subscribed", ref=str(count - 1)))
    assert [frame["ref"] for frame in answers] == [str(number) for number in range(count)]


async def test_turn_kinds_are_those_of_the_contract(connect: Connect, new_id: Any) -> None:
    async with connect() as client:
        stopped = await client.turn("/fast /echo", new_id())
        too_long = await client.turn("/fast /length /echo abc", new_id())
    assert kinds(stopped) == ["message", "done"]
    assert stopped[-1]["text_length"] == 0
    assert too_long[-1]["finish_reason"] == "length"
