"""Subscriptions and cursors: a reader gets everything after its place, then follows (SPEC.md sections 2 and 5.4)."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Connect
from tests.support.wire import (
    MAX_SLICE_BYTES,
    MSGPACK,
    Events,
    Frame,
    assert_complete,
    is_,
    is_end,
    is_logged,
    is_token,
    kinds,
    text,
)


async def test_subscribe_starts_at_the_head_by_default(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client, connect() as reader:
        first = await client.turn("/fast /echo one", conversation)
        head = first[-1]["seq"]
        subscribed = await reader.ask("subscribe", conversation_id=conversation)
        assert subscribed["after"] == subscribed["head"] == head
        assert subscribed["epoch"] == 0
        assert await reader.silent() == []
        second = await client.turn("/fast /echo two", conversation)
        seen = await reader.until(is_end)
        assert seen[0]["seq"] == head + 1
        assert text(seen) == text(second) == "two"


async def test_subscribe_after_any_entry_gives_the_rest(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    words = " ".join(f"wörd{n}" for n in range(12))
    async with connect() as client, connect(MSGPACK) as reader:
        turn = await client.turn(f"/echo {words}", conversation)
        head = turn[-1]["seq"]
        assert head > 4
        for after in (0, *(frame["seq"] for frame in turn)):
            subscribed = await reader.ask("subscribe", conversation_id=conversation, after=after)
            assert (subscribed["after"], subscribed["head"]) == (after, head)
            seen = await reader.silent() if after == head else await reader.until(is_end)
            assert text(seen) == text([frame for frame in turn if frame["seq"] > after])
            assert kinds(seen) == kinds([frame for frame in turn if frame["seq"] > after])
        assert await reader.silent() == []


async def test_a_cursor_inside_of_a_merged_frame_is_a_place_too(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        turn = await client.turn(f"/echo {'abcdefgh ' * 12}", conversation)
        whole = text(turn)
        for after in range(1, turn[-1]["seq"]):
            await client.ask("subscribe", conversation_id=conversation, after=after)
            seen = await client.until(is_end)
            assert (seen[0].get("first_seq") or seen[0]["seq"]) == after + 1
            assert whole.endswith(text(seen))


async def test_a_second_subscribe_moves_the_cursor_in_mid_turn(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        asked = await client.ask("chat_message", conversation_id=conversation, message="/stall")
        await client.until(is_token)
        await client.ask("subscribe", conversation_id=conversation, after=0)
        again = await client.next()
        assert (again["type"], again["seq"]) == ("message", 1)
        assert "ref" not in again
        await client.ask("cancel", conversation_id=conversation)
        frames = client.frames[client.frames.index(again) :]
        if not is_end(frames[-1]):
            frames += await client.until(is_("done")) if not any(map(is_end, frames)) else []
    turn = [frame for frame in frames if is_logged(frame) and frame["turn_id"] == asked["turn_id"]]
    assert_complete(turn)


async def test_nothing_comes_after_unsubscribed(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client, connect() as other:
        asked = await client.ask("chat_message", conversation_id=conversation, message="/long 20000")
        await client.until(is_token)
        await client.ask("unsubscribe", conversation_id=conversation)
        await other.ask("subscribe", conversation_id=conversation)
        for _ in range(5):
            await other.until(is_token)
            assert await client.silent() == []
        answer = await client.ask("cancel", conversation_id=conversation)
        assert (answer["outcome"], answer["turn_id"]) == ("stopped", asked["turn_id"])
        await other.until(is_end)
        assert await client.silent() == [], "unsubscribing didn't end the turn, and it stays unsubscribed"
        assert (await client.ask("unsubscribe", conversation_id=conversation))["type"] == "unsubscribed"


async def test_a_conversation_that_does_not_exist_can_be_followed(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as early, connect() as client:
        subscribed = await early.ask("subscribe", conversation_id=conversation, after=0)
        assert (subscribed["after"], subscribed["head"], subscribed["epoch"]) == (0, 0, 0)
        await client.turn("/fast /echo here", conversation)
        seen = await early.until(is_end)
    assert_complete(seen)
    assert seen[0]["seq"] == 1


@pytest.mark.parametrize(("after", "epoch"), [(1, 1), (3, 1700000000), (1000, 0), (2**53 - 1, 2**53 - 1)])
async def test_an_invalid_cursor_gets_a_snapshot_and_goes_on(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any, after: int, epoch: int
) -> None:
    conversation = new_id()
    async with connect() as client, connect() as reader:
        turn = await client.turn("/fast /echo eins zwei drei vier", conversation, metadata={"k": 1})
        subscribed = await reader.ask("subscribe", conversation_id=conversation, after=after, epoch=epoch)
        assert (subscribed["after"], subscribed["head"]) == (after, turn[-1]["seq"])
        snapshot = await reader.next()
        async with http.get(f"/api/conversations/{conversation}") as answer:
            assert snapshot == {"type": "snapshot", **await answer.json()}
        assert (snapshot["seq"], snapshot["epoch"]) == (turn[-1]["seq"], 0)
        assert await reader.silent() == []
        await client.turn("/fast /echo fünf", conversation)
        seen = await reader.until(is_end)
        assert seen[0]["seq"] == snapshot["seq"] + 1
        assert text(seen) == "fünf"


async def test_a_snapshot_in_mid_turn_goes_on_without_a_gap(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client, connect() as reader:
        asked = await client.ask("chat_message", conversation_id=conversation, message="/long 60")
        await client.until(is_token)
        await reader.ask("subscribe", conversation_id=conversation, after=99999)
        snapshot = await reader.next()
        partial = snapshot["messages"][-1]
        assert (partial["role"], partial["status"]) == ("assistant", "running")
        assert snapshot["turn"]["turn_id"] == asked["turn_id"]
        rest = await reader.until(is_end)
        assert len(partial["content"] + text(rest)) == rest[-1]["text_length"]
        await client.rest(asked["turn_id"])
        assert text(client.frames) == partial["content"] + text(rest)


async def test_zero_is_valid_in_every_epoch(connect: Connect, new_id: Any) -> None:
    conversation = new_id()
    async with connect() as client:
        turn = await client.turn("/fast /echo a", conversation)
        await client.ask("subscribe", conversation_id=conversation, after=0, epoch=12345)
        assert (await client.until(is_end))[0]["seq"] == turn[0]["seq"]


async def test_far_behind_means_few_large_slices(connect: Connect, new_id: Any) -> None:
    """Half a megabyte of text; the order and the bound of 64 KiB are checked on every frame."""
    conversation = new_id()
    async with connect() as client, connect() as late:
        turn = await client.turn("/fast /long 80000", conversation)
        whole = text(turn)
        assert turn[-1]["text_length"] == len(whole) > 4 * MAX_SLICE_BYTES
        await late.ask("subscribe", conversation_id=conversation, after=0)
        seen = await late.until(is_end)
        assert text(seen) == whole
        slices = [frame for frame in seen if frame["type"] == "token"]
        assert len(slices) < 30
        assert all("first_seq" in frame for frame in slices)
        stamps = {frame["metadata"]["timestamp"] for frame in turn}
        assert {frame["metadata"]["timestamp"] for frame in slices} <= stamps


async def test_two_devices_on_one_conversation(connect: Connect, new_id: Any) -> None:
    """A question from each; both see both answers, the same entries, and either may stop the other's turn."""
    conversation = new_id()
    async with connect() as phone, connect(MSGPACK) as tab:
        await tab.ask("subscribe", conversation_id=conversation)
        await phone.ask("chat_message", conversation_id=conversation, message="/echo from the phone")
        await tab.send("chat_message", conversation_id=conversation, message="/silent", ref="tab")
        for device in (phone, tab):
            await device.until(is_end)
        mine = next(frame for frame in tab.frames if frame.get("ref") == "tab")
        answer = await phone.ask("cancel", conversation_id=conversation, turn_id=mine["turn_id"])
        assert answer["outcome"] == "stopped"
        for device in (phone, tab):
            if not any(is_end(frame) and frame["turn_id"] == mine["turn_id"] for frame in device.frames):
                await device.rest(mine["turn_id"])
    for device in (phone, tab):
        turns = [f for f in device.frames if is_logged(f)]
        assert text(turns) == "from the phone"
        assert [f["finish_reason"] for f in turns if is_end(f)] == ["stop", "cancelled"]


async def test_cut_again_and_again_across_transports(
    connect: Connect, http: aiohttp.ClientSession, new_id: Any
) -> None:
    """A reader that is cut after every few frames, on WebSocket and SSE by turns, misses nothing."""
    conversation = new_id()
    async with connect() as whole:
        asked = await whole.ask("chat_message", conversation_id=conversation, message="/long 80")
        seen: list[Frame] = []
        at, cuts = 0, 0
        while not seen or not is_end(seen[-1]):
            cuts += 1
            if cuts % 2:
                async with connect(MSGPACK if cuts % 4 == 1 else "convobase.v1+json") as reader:
                    await reader.ask("subscribe", conversation_id=conversation, after=at)
                    for _ in range(3):
                        seen.append(await reader.next())
                        if is_end(seen[-1]):
                            break
            else:
                url = f"/api/chat/stream?conversation_id={conversation}"
                async with http.get(url, headers={"Last-Event-ID": str(at)}) as answer:
                    if answer.status == 204:
                        raise AssertionError("204, but this reader had no end")
                    events = Events(answer)
                    for _ in range(3):
                        seen.append(await events.next())
                        if is_end(seen[-1]):
                            break
            at = seen[-1]["seq"]
        await whole.rest(asked["turn_id"]) if not any(map(is_end, whole.frames)) else None
    assert cuts > 2
    last = 0
    for frame in seen:
        assert frame.get("first_seq", frame["seq"]) == last + 1
        last = frame["seq"]
    assert text(seen) == text(whole.frames)
    assert seen[-1]["text_length"] == len(text(seen))
