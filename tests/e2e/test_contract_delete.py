"""Erasing a conversation, and beginning it again (SPEC.md sections 2.2, 7.5 and 10.8)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Connect
from tests.support.wire import Events, Frame, is_, is_end, is_logged, is_token, kinds, text, wire

LOGS = pytest.mark.parametrize("log", ["memory:", "sqlite:conversations.db"])


async def delete(http: aiohttp.ClientSession, conversation: str) -> None:
    async with http.delete(f"/api/conversations/{conversation}") as answer:
        assert answer.status == 204
        assert await answer.read() == b""


async def test_readers_see_the_end_of_every_turn_and_then_deleted(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client, connect() as other:
        await other.ask("subscribe", conversation_id=conversation)
        turns = [
            await client.ask("chat_message", conversation_id=conversation, message=message)
            for message in ("/stall", "/echo a", "/echo b")
        ]
        await client.until(is_token)
        url = f"/api/chat/stream?conversation_id={conversation}"
        async with http.get(url) as answer:
            events = Events(answer)
            await events.until(is_token)
            waiting = asyncio.ensure_future(
                http.post("/api/chat", json={"message": "/echo c", "conversation_id": conversation})
            )
            last = (await client.until(is_("message", content="/echo c")))[-1]
            await delete(http, conversation)
            streamed = await events.all()
        async with await waiting as reply:
            assert reply.status in (200, 404)
            body = await reply.json()
            assert body["status"] == "cancelled" if reply.status == 200 else body["error"]["code"] == "NOT_FOUND"
        for reader in (client, other):
            await reader.get("deleted", conversation_id=conversation)
        for seen in (client.frames, other.frames, streamed):
            ended = [frame for frame in seen if is_end(frame)]
            assert [frame["turn_id"] for frame in ended] == [t["turn_id"] for t in (*turns, last)], "in turn order"
            assert {frame["finish_reason"] for frame in ended} == {"cancelled"}
            assert seen[-1] == {"type": "deleted", "conversation_id": conversation}
        async with http.get(f"/api/conversations/{conversation}") as answer:
            assert answer.status == 404
        async with http.get(f"/api/chat/stream?conversation_id={conversation}&after=3") as answer:
            assert answer.status == 404
        cancelled = await client.ask("cancel", conversation_id=conversation)
        assert cancelled["outcome"] == "not_found"
        late = await client.ask("function_result", conversation_id=conversation, call_id="x", result=1)
        assert late["error"]["code"] == "NOT_FOUND"


async def test_deleting_twice_or_what_never_was(http: aiohttp.ClientSession, connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    await delete(http, conversation)
    async with connect() as client:
        await client.turn("/fast /echo a", conversation)
        await asyncio.gather(*(delete(http, conversation) for _ in range(3)))
        assert is_("deleted")(await client.get("deleted"))
        await delete(http, conversation)
        assert await client.silent() == [], "deleted once"


@LOGS
async def test_it_begins_again_in_a_new_epoch(start: Any, new_id: Any, log: str) -> None:
    conversation = new_id()
    async with (
        start(log_url=log) as gateway,
        wire(gateway.chat) as client,
        wire(gateway.chat) as other,
        aiohttp.ClientSession(gateway.base) as http,
    ):
        first = await client.turn("/fast /echo old", conversation, message_id="m")
        epochs = [0]
        for number in range(2):
            await delete(http, conversation)
            await client.get("deleted")
            before_s = int(time.time())
            again = await client.turn(f"/fast /echo new{number}", conversation, message_id="m")
            assert again[0]["seq"] == 1
            assert "duplicate" not in again[0], "its ids went with it"
            assert again[0]["turn_id"] != first[0]["turn_id"]
            epoch = again[0]["epoch"]
            assert epoch >= max(before_s, epochs[-1] + 1)
            epochs.append(epoch)
            assert {frame["epoch"] for frame in again} == {epoch}
            async with http.get(f"/api/conversations/{conversation}") as answer:
                fold = await answer.json()
            assert (fold["epoch"], [m["content"] for m in fold["messages"]][1]) == (epoch, f"new{number}")
            # Cursors of the old lives name nothing any more, those of this one do.
            for old in epochs[:-1]:
                await other.ask("subscribe", conversation_id=conversation, after=1, epoch=old)
                assert (await other.next())["type"] == "snapshot"
                async with http.get(f"/api/chat/stream?conversation_id={conversation}&after=1.{old}") as answer:
                    assert (await Events(answer).all())[0]["type"] == "snapshot"
            subscribed = await other.ask("subscribe", conversation_id=conversation, after=1, epoch=epoch)
            assert (subscribed["head"], subscribed["epoch"]) == (again[-1]["seq"], epoch)
            assert text(await other.until(is_end)) == f"new{number}"
            await other.ask("unsubscribe", conversation_id=conversation)
            url = f"/api/chat/stream?conversation_id={conversation}"
            async with http.get(url, headers={"Last-Event-ID": f"1.{epoch}"}) as answer:
                events = [event async for event in Events(answer)]
            assert events[-1].id == f"{again[-1]['seq']}.{epoch}"
            async with http.get(url, headers={"Last-Event-ID": events[-1].id or ""}) as answer:
                assert answer.status == 204


async def test_a_subscription_ends_with_deleted(connect: Connect, http: aiohttp.ClientSession, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client, connect() as other:
        for reader in (client, other):
            await reader.ask("subscribe", conversation_id=conversation)
        await client.turn("/fast /echo a", conversation)
        await delete(http, conversation)
        for reader in (client, other):
            await reader.get("deleted")
        again = await client.turn("/fast /echo b", conversation)
        assert again[0]["seq"] == 1
        assert await other.silent() == [], "who wants to follow again subscribes again"
        subscribed = await other.ask("subscribe", conversation_id=conversation, after=0)
        assert subscribed["epoch"] == again[0]["epoch"]
        assert text(await other.until(is_end)) == "b"


async def test_deleting_while_a_turn_waits_for_results(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any
) -> None:
    conversation = new_id()
    async with connect() as client:
        await client.send("chat_message", conversation_id=conversation, message="/fast /call f")
        call = await client.get("function_call")
        await delete(http, conversation)
        await client.get("deleted")
        seen: list[Frame] = [frame for frame in client.frames if is_logged(frame)]
        assert kinds(seen)[-1] == "done"
        result = {"call_id": call["call_id"], "result": 1}
        async with http.post(f"/api/conversations/{conversation}/function_results", json=result) as answer:
            assert answer.status == 404


async def test_a_reader_that_takes_nothing_does_not_hold_it_up(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any
) -> None:
    conversation = new_id()
    async with connect(max_queue=1) as stuck, connect() as client:
        await client.turn("/fast /long 150000", conversation, message_id="m")
        await stuck.send("subscribe", conversation_id=conversation, after=0)
        await stuck.next()
        began = asyncio.get_running_loop().time()
        await delete(http, conversation)
        assert asyncio.get_running_loop().time() - began < 5
        await client.get("deleted")
        seen = await stuck.until(is_("deleted"), 30)
    assert seen[-1]["type"] == "deleted"


async def test_others_are_not_touched(connect: Connect, http: aiohttp.ClientSession, new_id: Any) -> None:
    kept, erased = new_id(), new_id()
    async with connect() as client:
        running = await client.ask("chat_message", conversation_id=kept, message="/stall")
        await client.turn("/fast /echo a", erased)
        await delete(http, erased)
        await client.get("deleted")
        answer = await client.ask("cancel", conversation_id=kept)
        assert (answer["outcome"], answer["turn_id"]) == ("stopped", running["turn_id"])
