"""`message_id`: sending twice starts one turn, whatever the transport (SPEC.md section 5.1.2)."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Connect
from tests.support.process import GatewayProcess
from tests.support.wire import Events, is_, is_end, is_logged, text, wire


async def test_on_the_same_connection_the_answer_is_a_copy(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        turn = await client.turn("/fast /echo first", conversation, message_id="m.1")
        again = await client.ask(
            "chat_message", conversation_id=conversation, message="other words", message_id="m.1", on_busy="reject"
        )
        original = {name: value for name, value in turn[0].items() if name != "ref"}
        copy = {name: value for name, value in again.items() if name not in ("ref", "duplicate")}
        assert copy == original
        assert again["duplicate"] is True
        assert again["ref"] != turn[0]["ref"]
        assert await client.silent() == [], "no second turn, and nothing is sent twice"
        after = await client.turn("/fast /echo second", conversation)
        assert after[0]["seq"] == turn[-1]["seq"] + 1


async def test_a_copy_without_ref_is_sent_too(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.turn("/fast /echo first", conversation, message_id="m")
        await client.send("chat_message", conversation_id=conversation, message="x", message_id="m")
        copy = await client.next()
    assert (copy["type"], copy["duplicate"]) == ("message", True)
    assert "ref" not in copy


async def test_every_send_gets_its_own_answer(connect: Connect, new_id: Any) -> None:
    """The first isn't in the log yet when the others come."""
    conversation = new_id()
    async with connect() as client:
        for ref in ("1", "2", "3"):
            await client.send("chat_message", conversation_id=conversation, message="/silent", message_id="m", ref=ref)
        seen = await client.until(is_("message", ref="3"))
        assert [(frame["ref"], frame.get("duplicate", False)) for frame in seen if frame["type"] == "message"] == [
            ("1", False), ("2", True), ("3", True),
        ]  # fmt: skip
        await client.ask("cancel", conversation_id=conversation)


async def test_on_another_connection_the_whole_turn_follows(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client, connect() as other:
        before = await client.turn("/fast /echo zero", conversation)
        turn = await client.turn("/fast /echo first", conversation, message_id="m")
        later = await client.turn("/fast /echo second", conversation)
        assert before[-1]["seq"] + 1 == turn[0]["seq"]
        again = await other.turn("/fast /echo first", conversation, message_id="m")
        assert "duplicate" not in again[0]
        assert (again[0]["seq"], again[0]["turn_id"]) == (turn[0]["seq"], turn[0]["turn_id"])
        assert text(again) == "first"
        rest = await other.until(is_end)
        assert text(rest) == text(later)
        assert rest[0]["seq"] == later[0]["seq"]


async def test_while_the_turn_runs_the_second_send_joins_it(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client, connect() as other:
        first = await client.ask("chat_message", conversation_id=conversation, message="/stall", message_id="m")
        await client.until(is_("token"))
        second = await other.ask(
            "chat_message", conversation_id=conversation, message="/stall", message_id="m", on_busy="interrupt"
        )
        assert second["turn_id"] == first["turn_id"]
        assert "interrupt" not in second
        await other.ask("cancel", conversation_id=conversation)
        frames = [frame for frame in other.frames if is_logged(frame)]
        if not is_end(frames[-1]):
            frames += await other.until(is_end)
    assert frames[-1]["text_length"] == len(text(frames)) > 0


async def test_a_subscription_that_is_behind_stays_as_it_is(connect: Connect, new_id: Any) -> None:
    """The first one's `message` comes in its order then, and carries the `ref` of the second send."""
    conversation = new_id()
    async with connect() as client, connect() as other:
        await client.turn("/fast /echo zero", conversation)
        turn = await client.turn("/fast /echo first", conversation, message_id="m")
        await other.send("subscribe", conversation_id=conversation, after=0)
        await other.send("chat_message", conversation_id=conversation, message="x", message_id="m", ref="again")
        seen = await other.until(is_("message", ref="again"))
        logged = [frame for frame in seen if is_logged(frame)]
        if logged[-1].get("duplicate"):
            assert [f["seq"] for f in logged[:-1] if f["type"] == "message"] == [1, turn[0]["seq"]]
        else:
            assert logged[0]["seq"] == 1
            assert logged[-1]["seq"] == turn[0]["seq"]


async def test_at_the_same_moment_from_many_connections_one_turn_starts(connect: Connect, new_id: Any) -> None:
    conversation = new_id()

    async def send() -> tuple[str, str]:
        async with connect() as client:
            turn = await client.turn("/echo a b c", conversation, message_id="m")
            return turn[0]["turn_id"], text(turn)

    results = await asyncio.gather(*(send() for _ in range(8)))
    assert len({turn_id for turn_id, _ in results}) == 1
    assert {said for _, said in results} == {"a b c"}


async def test_over_sse_it_starts_at_the_first_ones_message(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any
) -> None:
    conversation = new_id()
    body = {"message": "/fast /echo first", "conversation_id": conversation, "message_id": "m", "ref": "r1"}
    async with http.post("/api/chat/stream", json=body) as answer:
        first = await Events(answer).all()
    async with connect() as client:
        await client.turn("/fast /echo later", conversation)
    async with http.post("/api/chat/stream", json=body | {"ref": "r2", "message": "other"}) as answer:
        again = await Events(answer).all()
    assert first[0]["ref"] == "r1"
    assert again[0]["ref"] == "r2"
    assert "duplicate" not in again[0]
    assert again[0]["seq"] == first[0]["seq"]
    assert text(again) == text(first) == "first"
    assert again[-1] == first[-1]


async def test_over_request_response_the_reply_is_the_same(http: aiohttp.ClientSession, new_id: Any) -> None:
    body = {"message": "/fast /echo first", "conversation_id": new_id(), "message_id": "m"}
    replies = []
    for _ in range(2):
        async with http.post("/api/chat", json=body) as answer:
            assert answer.status == 200
            replies.append(await answer.json())
    assert replies[0] == replies[1]


async def test_across_transports_it_is_one_message(connect: Connect, http: aiohttp.ClientSession, new_id: Any) -> None:
    conversation = new_id()
    body = {"message": "/fast /echo first", "conversation_id": conversation, "message_id": "m"}
    async with connect() as client:
        turn = await client.turn("/fast /echo first", conversation, message_id="m")
        async with http.post("/api/chat", json=body) as answer:
            assert (await answer.json())["turn_id"] == turn[0]["turn_id"]
        async with http.post("/api/chat/stream", json=body) as answer:
            assert (await Events(answer).all())[0]["turn_id"] == turn[0]["turn_id"]
        async with http.get(f"/api/conversations/{conversation}") as answer:
            assert len((await answer.json())["messages"]) == 2


@pytest.mark.parametrize("on_busy", ["queue", "reject", "interrupt"])
async def test_it_is_checked_before_limits_and_on_busy(impatient: GatewayProcess, new_id: Any, on_busy: str) -> None:
    conversation = new_id()
    async with wire(impatient.chat) as client:
        asked = [
            await client.ask("chat_message", conversation_id=conversation, message="/call f", message_id=f"m{n}")
            for n in range(3)
        ]
        full = await client.ask("chat_message", conversation_id=conversation, message="x", message_id="m3")
        assert full["error"]["code"] == "BUSY"
        assert full["error"]["retryable"] is True
        for n in (0, 2):
            again = await client.ask(
                "chat_message", conversation_id=conversation, message="x", message_id=f"m{n}", on_busy=on_busy
            )
            assert again["type"] == "message", again
            assert again["turn_id"] == asked[n]["turn_id"]
        for turn in asked:
            await client.ask("cancel", conversation_id=conversation, turn_id=turn["turn_id"])


async def test_a_refused_message_may_be_sent_again(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.ask("chat_message", conversation_id=conversation, message="/silent")
        fields = {"conversation_id": conversation, "message": "/fast /echo a", "message_id": "m"}
        assert (await client.ask("chat_message", **fields, on_busy="reject"))["error"]["code"] == "BUSY"
        await client.ask("cancel", conversation_id=conversation)
        turn = await client.turn("/fast /echo a", conversation, message_id="m", on_busy="reject")
        assert "duplicate" not in turn[0]
