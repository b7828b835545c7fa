"""Readers on another node than the conversation's owner: they see the same, one hop later (SPEC.md section 11.35)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import aiohttp

from protocol.client import Client
from protocol.frames import Done, Token
from tests.support.cluster import fold
from tests.support.process import GatewayProcess
from tests.support.wire import (
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
    wire,
)

Trio = list[GatewayProcess]


def logged(frames: list[Frame], conversation: str) -> list[Frame]:
    return [frame for frame in frames if is_logged(frame) and frame["conversation_id"] == conversation]


async def test_a_message_on_one_node_is_read_on_all(trio: Trio, new_id: Callable[[], str]) -> None:
    name = new_id()
    async with AsyncExitStack() as stack:
        a, b, c = [await stack.enter_async_context(wire(node.chat)) for node in trio]
        packed = await stack.enter_async_context(wire(trio[1].chat, MSGPACK))
        for reader in (b, packed):
            subscribed = await reader.ask("subscribe", conversation_id=name)
            assert (subscribed["head"], subscribed["after"]) == (0, 0), "it doesn't exist yet"
        asked = await a.ask("chat_message", message="/long 60", conversation_id=name, ref="mine")
        await a.until(is_token)
        await c.ask("subscribe", conversation_id=name, after=0)
        for reader in (a, b, c, packed):
            if not (reader.frames and is_end(reader.frames[-1])):
                await reader.until(is_end)
            seen = logged(reader.frames, name)
            assert_complete(seen)
            assert text(seen) == text(logged(a.frames, name))
            assert seen[0]["turn_id"] == asked["turn_id"]
            assert ("ref" in seen[0]) == (reader is a), "only its sender sees it"


async def test_one_hop_behind(trio: Trio, new_id: Callable[[], str]) -> None:
    """Each token is there soon after the owner's own reader has it."""
    name = new_id()
    async with wire(trio[0].chat) as near, wire(trio[1].chat) as far:
        await far.ask("subscribe", conversation_id=name)
        times: dict[str, dict[int, float]] = {"near": {}, "far": {}}

        async def read(client: object, seen: dict[int, float]) -> None:
            async with asyncio.timeout(20):
                while True:
                    frame = await client.next()  # type: ignore[attr-defined]
                    if is_token(frame):
                        seen[frame["seq"]] = asyncio.get_running_loop().time()
                    if is_end(frame):
                        return

        await near.send("chat_message", message="/long 40", conversation_id=name)
        await asyncio.gather(read(near, times["near"]), read(far, times["far"]))
    both = times["near"].keys() & times["far"].keys()
    assert len(both) > 5
    delays = sorted(times["far"][seq] - times["near"][seq] for seq in both)
    assert delays[len(delays) // 2] < 0.2


async def test_a_reader_goes_on_at_another_node(trio: Trio, new_id: Callable[[], str]) -> None:
    """At once, and without a snapshot, although it was shown tokens that the other node doesn't have yet."""
    name = new_id()
    seen: list[Frame] = []
    async with wire(trio[0].chat) as client:
        await client.ask("chat_message", message="/long 80", conversation_id=name)
        await client.until(lambda frame: is_token(frame) and frame["seq"] > 8)
        seen = logged(client.frames, name)
    for number, node in enumerate((trio[1], trio[2], trio[1])):
        async with wire(node.chat) as client:
            at = seen[-1]["seq"]
            await client.ask("subscribe", conversation_id=name, after=at)
            await client.until(
                lambda frame, at=at, number=number: is_end(frame) if number == 2 else frame["seq"] > at + 3
            )
            seen += logged(client.frames, name)
    assert [frame.get("first_seq", frame["seq"]) for frame in seen[1:]] == [frame["seq"] + 1 for frame in seen[:-1]]
    assert_complete(seen)


async def test_a_cursor_that_isnt_valid(trio: Trio, new_id: Callable[[], str]) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        turn = await a.turn("/fast /echo all there", name)
        for after, epoch in ((turn[-1]["seq"] + 5, 0), (1, 99)):
            await b.ask("subscribe", conversation_id=name, after=after, epoch=epoch)
            snapshot = await b.next()
            assert (snapshot["type"], snapshot["seq"]) == ("snapshot", turn[-1]["seq"])
            assert [line["content"] for line in snapshot["messages"]] == ["/fast /echo all there", "all there"]


async def test_the_fold_is_the_same_everywhere(trio: Trio, new_id: Callable[[], str]) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a:
        await a.turn("/fast /echo one", name)
        await a.ask("chat_message", message="/stall", conversation_id=name)
        await a.until(is_token)
        await a.ask("chat_message", message="waits", conversation_id=name)
        await asyncio.sleep(1)  # /stall says a few words, and then nothing more
        folds = [await fold(node, name) for node in trio]
        assert folds[1] == folds[0]
        assert folds[2] == folds[0]
        assert [line["status"] for line in folds[1]["messages"]] == [
            "completed", "completed", "running", "running", "queued",
        ]  # fmt: skip
        await a.ask("cancel", conversation_id=name)
        await a.until(is_("done", finish_reason="stop"))
    assert (await fold(trio[1], name))["turn"] is None


async def test_attaching_over_sse(trio: Trio, new_id: Callable[[], str]) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, aiohttp.ClientSession(trio[1].base) as http:
        url = f"/api/chat/stream?conversation_id={name}"
        async with http.get(url) as answer:
            assert answer.status == 404
        await a.ask("chat_message", message="/long 40", conversation_id=name)
        await a.until(is_token)
        async with http.get(url) as answer:
            frames = await Events(answer).all()
        assert_complete(frames)
        async with http.get(f"{url}&after={frames[-1]['seq']}") as answer:
            assert answer.status == 204
        async with http.get(f"{url}&after={frames[3]['seq']}") as answer:
            rest = await Events(answer).all()
        assert rest[0].get("first_seq", rest[0]["seq"]) == frames[3]["seq"] + 1
        assert text(frames[:4]) + text(rest) == text(frames)


async def test_asking_over_sse(trio: Trio, new_id: Callable[[], str]) -> None:
    """The rest of the running turn passes by, then the own one; and the same again, when it is long over."""
    name = new_id()
    async with wire(trio[0].chat) as a, aiohttp.ClientSession(trio[1].base) as http:
        first = await a.ask("chat_message", message="/long 30", conversation_id=name)
        await a.until(is_token)
        body = {"message": "/fast /echo second", "conversation_id": name, "message_id": "m2", "ref": "r"}
        async with http.post("/api/chat/stream", json=body) as answer:
            frames = await Events(answer).all()
        own = [frame for frame in frames if frame["turn_id"] != first["turn_id"]]
        assert frames[0] == own[0]
        assert own[0]["ref"] == "r"
        assert_complete(own)
        assert text(own) == "second"
        assert [frame["type"] for frame in frames if frame["turn_id"] == first["turn_id"]][-1] == "done"
    async with (
        aiohttp.ClientSession(trio[2].base) as http,
        http.post("/api/chat/stream", json=body) as answer,
    ):
        again = await Events(answer).all()
    assert text([frame for frame in again if frame["turn_id"] == own[0]["turn_id"]]) == "second"
    assert again[0]["turn_id"] == own[0]["turn_id"]


async def test_request_and_response(trio: Trio, new_id: Callable[[], str]) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, aiohttp.ClientSession(trio[1].base) as http:
        await a.turn("/fast /echo one", name)
        body = {"message": "/fast /call f", "conversation_id": name, "message_id": "m2"}
        async with http.post("/api/chat", json=body) as answer:
            told = await answer.json()
        assert told["status"] == "function_call"
        (call,) = told["function_calls"]
        async with aiohttp.ClientSession(trio[2].base) as other:
            path = f"/api/conversations/{name}/function_results"
            async with other.post(path, json={"call_id": call["call_id"], "result": "fine"}) as answer:
                assert await answer.json() == {"accepted": True}
            async with other.post("/api/chat", json=body) as answer:
                rest = await answer.json()
        assert (rest["status"], rest["turn_id"]) == ("completed", told["turn_id"])
        assert "fine" in rest["reply"]


async def test_the_real_client_reads_what_another_node_writes(trio: Trio, new_id: Callable[[], str]) -> None:
    name = new_id()
    async with Client(trio[0].base) as near, Client(trio[1].base) as far:
        subscription = await far.subscribe(name)
        turn = await near.send("/long 40", conversation_id=name)
        said = await turn.wait()
        heard: list[str] = []
        async with asyncio.timeout(15):
            async for frame in subscription:
                if isinstance(frame, Token):
                    heard.append(frame.content)
                if isinstance(frame, Done):
                    break
        assert "".join(heard) == said


async def test_after_unsubscribe_no_frame_comes(trio: Trio, new_id: Callable[[], str]) -> None:
    name = new_id()
    async with wire(trio[0].chat) as a, wire(trio[1].chat) as b:
        await b.ask("subscribe", conversation_id=name)
        await a.ask("chat_message", message="/long 40", conversation_id=name)
        await b.until(is_token)
        await b.ask("unsubscribe", conversation_id=name)
        await a.until(is_end)
        assert await b.silent() == []
        # And it can be had again, from where the reader was.
        at = [frame["seq"] for frame in b.frames if is_logged(frame)][-1]
        await b.ask("subscribe", conversation_id=name, after=at)
        await b.until(is_end)
        assert_complete(logged(b.frames, name))


async def test_many_conversations_on_one_connection(trio: Trio, new_id: Callable[[], str]) -> None:
    """Owned by all three nodes, read by one connection to one of them."""
    names = [new_id() for _ in range(40)]
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(wire(node.chat)) for node in trio]
        reader = await stack.enter_async_context(wire(trio[2].chat))
        for name in names:
            await reader.send("subscribe", conversation_id=name, after=0)
        for number, name in enumerate(names):
            await writers[number % 3].send("chat_message", message="/long 20", conversation_id=name)
        ended: set[str] = set()
        while len(ended) < len(names):
            ended.add((await reader.until(is_end))[-1]["conversation_id"])
        for name in names:
            seen = logged(reader.frames, name)
            assert_complete(seen)
            assert kinds(seen) == ["message", "token", "done"]
