"""Server-sent events: the same cursor with another framing (SPEC.md section 3.4)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Connect
from tests.support.process import GatewayProcess
from tests.support.wire import Events, assert_complete, is_, is_end, is_token, kinds, text

STREAM = "/api/chat/stream"


def attach(conversation: str, **query: Any) -> str:
    return f"{STREAM}?conversation_id={conversation}" + "".join(f"&{name}={value}" for name, value in query.items())


async def test_the_seeds_own_request(http: aiohttp.ClientSession) -> None:
    async with http.delete("/api/conversations/123") as answer:
        assert answer.status == 204
    body = b'{"message":"/fast Explain quantum computing","conversation_id":"123"}'
    async with http.post(STREAM, data=body, headers={"Content-Type": "application/json"}) as answer:
        raw = await answer.read()
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert "no-cache" in answer.headers["Cache-Control"]
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert "Content-Encoding" not in answer.headers
    blocks = raw.decode().removesuffix("\n\n").split("\n\n")
    frames = []
    for block in blocks:
        cursor, data = block.split("\n")
        assert cursor.startswith("id: ")
        frames.append(json.loads(data.removeprefix("data: ")))
    assert_complete(frames)
    assert all(set(frame) >= {"type", "content"} for frame in frames if frame["type"] == "token")
    assert frames[-1]["type"] == "done"


async def test_what_is_wrong_before_the_message_is_an_http_status(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.ask("chat_message", conversation_id=conversation, message="/silent")
        body = {"message": "x", "conversation_id": conversation, "on_busy": "reject"}
        async with http.post(STREAM, json=body) as answer:
            assert answer.status == 409
            assert answer.content_type == "application/json"
            assert (await answer.json())["error"]["code"] == "BUSY"
        await client.ask("cancel", conversation_id=conversation)


async def test_later_errors_are_frames(impatient: GatewayProcess, new_id: Any) -> None:
    async with (
        aiohttp.ClientSession(impatient.base) as http,
        http.post(STREAM, json={"message": "/fail rejected", "conversation_id": new_id()}) as answer,
    ):
        frames = await Events(answer).all()
    assert kinds(frames) == ["message", "error"]
    assert frames[-1]["error"]["code"] == "UPSTREAM_REJECTED"


async def test_on_a_busy_conversation_the_running_turn_passes_by(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client:
        first = await client.ask("chat_message", conversation_id=conversation, message="/stall")
        await client.until(is_token)
        body = {"message": "/fast /echo mine", "conversation_id": conversation, "ref": "r"}
        async with http.post(STREAM, json=body) as answer:
            events = Events(answer)
            own = await events.next()
            assert (own["type"], own["ref"]) == ("message", "r")
            await client.send("chat_message", conversation_id=conversation, message="/fast /echo behind")
            await client.send("cancel", conversation_id=conversation)
            rest = await events.all()
    done = next(frame for frame in rest if is_end(frame))
    assert (done["turn_id"], done["finish_reason"]) == (first["turn_id"], "cancelled")
    assert (rest[-1]["type"], rest[-1]["turn_id"]) == ("done", own["turn_id"]), "it ends with its own turn"
    assert text([frame for frame in rest if frame["turn_id"] == own["turn_id"]]) == "mine"


async def test_attached_without_a_cursor_it_starts_at_the_turn_in_progress(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.turn("/fast /echo before", conversation)
        running = await client.ask("chat_message", conversation_id=conversation, message="/stall")
        await client.until(is_token)
        async with http.get(attach(conversation)) as answer:
            events = Events(answer)
            first = await events.next()
            assert (first["type"], first["seq"]) == ("message", running["seq"])
            assert "ref" not in first
            last = await client.ask("chat_message", conversation_id=conversation, message="/fast /echo queued")
            await client.ask("cancel", conversation_id=conversation, turn_id=running["turn_id"])
            rest = await events.all()
    assert [frame["turn_id"] for frame in rest if is_end(frame)] == [running["turn_id"], last["turn_id"]]
    assert rest[-1]["finish_reason"] == "stop", "it follows the turns that begin meanwhile, and then ends"


async def test_last_event_id_wins_over_after(http: aiohttp.ClientSession, connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        turn = await client.turn("/echo a bb ccc dddd eeeee ffffff ggggggg", conversation)
    head = turn[-1]["seq"]
    async with http.get(attach(conversation, after=head), headers={"Last-Event-ID": "1"}) as answer:
        frames = await Events(answer).all()
    assert text(frames) == text(turn)
    assert frames[0].get("first_seq", frames[0]["seq"]) == 2
    async with http.get(attach(conversation, after=1), headers={"Last-Event-ID": str(head)}) as answer:
        assert answer.status == 204


async def test_204_and_404(http: aiohttp.ClientSession, connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        turn = await client.turn("/fast /echo a", conversation)
    head = turn[-1]["seq"]
    for query in ({}, {"after": head}, {"after": f"{head}.0"}):
        async with http.get(attach(conversation, **query)) as answer:
            assert answer.status == 204
            assert await answer.read() == b""
    for query in ({"after": 0}, {"after": head - 1}, {"after": "0.77"}):
        async with http.get(attach(conversation, **query)) as answer:
            frames = await Events(answer).all()
            assert is_end(frames[-1])
            assert frames[-1]["seq"] == head
    for unknown in (new_id(), "nobody"):
        for query in ({}, {"after": 0}, {"after": 5}):
            async with http.get(attach(unknown, **query)) as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["code"] == "NOT_FOUND"
    assert head > 2


@pytest.mark.parametrize("cursor", ["1.5", "99", "2.1700000000", "9007199254740991.9007199254740991"])
async def test_an_invalid_cursor_gets_a_snapshot_with_its_id(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any, cursor: str
) -> None:
    conversation = new_id()
    async with connect() as client:
        turn = await client.turn("/fast /echo a", conversation)
    async with http.get(attach(conversation, after=cursor)) as answer:
        (event,) = [event async for event in Events(answer)]
    assert event.frame["type"] == "snapshot"
    assert event.id == str(turn[-1]["seq"])
    async with http.get(attach(conversation), headers={"Last-Event-ID": event.id}) as answer:
        assert answer.status == 204, "so that EventSource stops"


async def test_a_snapshot_in_mid_turn_is_followed_by_the_rest(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.ask("chat_message", conversation_id=conversation, message="/stall")
        await client.until(is_token)
        async with http.get(attach(conversation, after="7.7")) as answer:
            events = Events(answer)
            snapshot = await events.next()
            assert snapshot["turn"]["status"] == "running"
            await client.send("cancel", conversation_id=conversation)
            rest = await events.all()
    assert rest[-1]["text_length"] == len(snapshot["messages"][-1]["content"] + text(rest))


@pytest.mark.parametrize(
    "cursor", ["-1", "1.", ".1", "x", "01", "1.01", "+1", "%201", "1%20", "1.2.3", "1e3", "9007199254740992", "٣"]
)
async def test_malformed_cursors_are_400(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any, cursor: str
) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.turn("/fast /echo a", conversation)
    async with http.get(attach(conversation, after=cursor)) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert error["code"] == "BAD_FRAME"
    assert "`after`" in error["message"]


async def test_a_conversation_has_to_be_named(http: aiohttp.ClientSession) -> None:
    for url in (STREAM, f"{STREAM}?conversation_id=", f"{STREAM}?conversation_id=a%20b"):
        async with http.get(url) as answer:
            assert answer.status == 400
            assert "`conversation_id`" in (await answer.json())["error"]["message"]


async def test_heartbeats_are_comment_lines(impatient: GatewayProcess, new_id: Any) -> None:
    async with (
        aiohttp.ClientSession(impatient.base) as http,
        http.post(STREAM, json={"message": "/silent", "conversation_id": new_id()}) as answer,
    ):
        events = Events(answer)
        frames = await events.all()
    assert events.comments >= 1
    assert kinds(frames) == ["message", "error"]
    assert frames[-1]["error"]["code"] == "UPSTREAM_TIMEOUT"


async def test_a_reader_that_leaves_does_not_end_the_turn(
    http: aiohttp.ClientSession, connect: Connect, new_id: Any
) -> None:
    conversation = new_id()
    async with http.post(STREAM, json={"message": "/echo a b c d e f g", "conversation_id": conversation}) as answer:
        assert (await Events(answer).next())["type"] == "message"
        answer.close()
    async with connect() as client:
        await client.ask("subscribe", conversation_id=conversation, after=0)
        frames = await client.until(is_end)
    assert_complete(frames)
    assert text(frames) == "a b c d e f g"


async def test_it_is_sent_as_it_comes_and_not_at_the_end(http: aiohttp.ClientSession, new_id: Any) -> None:
    conversation = new_id()
    async with http.post(STREAM, json={"message": "/stall", "conversation_id": conversation}) as answer:
        events = Events(answer)
        await events.until(is_token)
        async with http.post(f"/api/conversations/{conversation}/cancel") as cancelled:
            assert (await cancelled.json())["outcome"] == "stopped"
        assert (await events.all())[-1]["finish_reason"] == "cancelled"


async def test_many_streams_of_one_conversation_are_the_same(http: aiohttp.ClientSession, new_id: Any) -> None:
    conversation = new_id()

    async def follow() -> list[Any]:
        async with http.get(attach(conversation, after=0)) as answer:
            return await Events(answer).all()

    async with http.post(STREAM, json={"message": "/echo one two three", "conversation_id": conversation}) as answer:
        events = Events(answer)
        first = await events.next()
        others = asyncio.gather(*(follow() for _ in range(5)))
        frames = [first, *await events.all()]
        for seen in await others:
            assert text(seen) == text(frames)
            assert seen[-1] == frames[-1]


async def test_an_answer_by_function_result_goes_on_in_the_same_stream(
    http: aiohttp.ClientSession, new_id: Any
) -> None:
    conversation = new_id()
    body = {"message": '/fast /call weather {"city": "Zürich"}', "conversation_id": conversation}
    async with http.post(STREAM, json=body) as answer:
        events = Events(answer)
        call = (await events.until(is_("function_call")))[-1]
        result = {"call_id": call["call_id"], "result": {"sky": "blue"}}
        async with http.post(f"/api/conversations/{conversation}/function_results", json=result) as accepted:
            assert (accepted.status, await accepted.json()) == (200, {"accepted": True})
        rest = await events.all()
    assert kinds(rest) == ["function_result", "token", "done"]
    assert "blue" in text(rest)
