"""A node is lost: its turns go on elsewhere, whether or not somebody asks (SPEC.md sections 6.6 and 10.6)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from protocol.client import Client
from tests.support.cluster import TAKEN_OVER_S, balancer, fold, until
from tests.support.process import GatewayProcess
from tests.support.wire import Events, Frame, is_, is_end, is_logged, is_token, kinds, text, wire


async def killed(node: GatewayProcess) -> None:
    await asyncio.to_thread(node.kill)


async def completed(node: GatewayProcess, conversation: str) -> Frame:
    """Its fold, once no turn is open."""

    async def over() -> Frame | None:
        found = await fold(node, conversation)
        return found if found.get("turn", 1) is None else None

    told: Frame = await until(over, TAKEN_OVER_S)
    return told


async def test_the_owner_is_killed(start_cluster: Any) -> None:
    """One node is killed while it does all kinds of things, and another one is asked what came of them."""
    async with start_cluster(2) as cluster:
        a, b = cluster.nodes
        async with wire(a.chat) as owner:
            await owner.turn("/fast /echo before", "idle", message_id="q0")
            await owner.ask("chat_message", message="/long 60", conversation_id="alone")
            running = await owner.ask("chat_message", message="/long 60", conversation_id="read", message_id="m1")
            queued = await owner.ask("chat_message", message="/fast /echo queued", conversation_id="read")
            await owner.send("chat_message", message="/fast /call f", conversation_id="waits")
            call = await owner.get("function_call")
            await owner.ask("chat_message", message="/long 60", conversation_id="streamed")
            await owner.until(lambda frame: is_token(frame) and frame["conversation_id"] == "streamed")
            async with wire(b.chat) as reader, aiohttp.ClientSession(b.base) as http:
                await reader.ask("subscribe", conversation_id="read", after=0)
                await reader.ask("subscribe", conversation_id="waits", after=0)
                streaming = asyncio.ensure_future(_streamed(http, "streamed"))
                asking = asyncio.ensure_future(
                    http.post("/api/chat", json={"message": "x", "conversation_id": "read", "message_id": "m1"})
                )
                await asyncio.sleep(0.3)
                began = int(time.time())
                await killed(a)
                # In the seconds in which nobody knows yet: it is taken once, when somebody can.
                meanwhile = await reader.ask(
                    "chat_message", message="/fast /echo meanwhile", conversation_id="idle", message_id="q1"
                )
                await _read(reader, running, queued, began)
                await _waits(reader, call)
                assert meanwhile["epoch"] >= began, "its owner ended without a word"
                again = await reader.ask("chat_message", message="x", conversation_id="idle", message_id="q0")
                assert (again["seq"], again.get("epoch", 0)) == (1, 0)
                frames = await streaming
                assert kinds(frames) == ["message", "token", "restart", "token", "done"]
                assert frames[-1]["text_length"] == len(text(frames))
                async with await asking as answer:
                    told = await answer.json()
                    assert (answer.status, told.get("status")) == (200, "completed"), told
                    assert told["turn_id"] == running["turn_id"]
        told = await completed(b, "alone")
        assert [line["status"] for line in told["messages"]] == ["completed", "completed"]
        assert told["epoch"] >= began


async def _streamed(http: aiohttp.ClientSession, conversation: str) -> list[Frame]:
    async with http.get(f"/api/chat/stream?conversation_id={conversation}&after=0") as answer:
        return await Events(answer).all()


async def _read(reader: Any, running: Frame, queued: Frame, began: int) -> None:
    """A reader elsewhere sees the restart, in a new epoch, and one answer of each turn."""
    if not any(frame["type"] == "restart" for frame in reader.frames):
        await reader.until(is_("restart", conversation_id="read"), TAKEN_OVER_S)
    await reader.until(lambda frame: is_end(frame) and frame["turn_id"] == queued["turn_id"])
    seen = [frame for frame in reader.frames if is_logged(frame) and frame["conversation_id"] == "read"]
    turn = [frame for frame in seen if frame["turn_id"] == running["turn_id"]]
    assert kinds(turn) == ["message", "token", "restart", "token", "done"]
    restart = next(frame for frame in turn if frame["type"] == "restart")
    assert (restart["attempt"], restart["keep_seq"]) == (1, running["seq"])
    assert restart["epoch"] >= began
    assert turn[-1]["text_length"] == len(text(turn))
    assert text([frame for frame in seen if frame["turn_id"] == queued["turn_id"]]) == "queued"


async def _waits(reader: Any, call: Frame) -> None:
    """A turn that only waits for results goes on without a word."""
    told = await reader.ask("function_result", conversation_id="waits", call_id=call["call_id"], result="here")
    assert told["type"] == "accepted", told
    frames = [frame for frame in reader.frames if frame.get("conversation_id") == "waits"]
    if not is_end(frames[-1]):
        await reader.until(lambda frame: is_end(frame) and frame["conversation_id"] == "waits")
    frames = [frame for frame in reader.frames if is_logged(frame) and frame["conversation_id"] == "waits"]
    assert kinds(frames) == ["message", "token", "function_call", "function_result", "token", "done"]
    assert "here" in text(frames)


async def test_three_attempts_then_node_lost(start_cluster: Any) -> None:
    """Each node that takes the turn over is killed, too; one that only waits for a result survives them all."""
    async with start_cluster(2) as cluster:
        a, b = cluster.nodes
        async with wire(a.chat) as client:
            lost = await client.ask("chat_message", message="/silent", conversation_id="c")
            await client.ask("chat_message", message="/fast /echo next", conversation_id="c")
            await client.send("chat_message", message="/fast /call f", conversation_id="waits")
            call = await client.get("function_call")
        owner, other = a, b
        for attempt in range(1, 4):
            await killed(owner)
            async with wire(other.chat) as client:
                await client.ask("subscribe", conversation_id="c", after=0)
                await client.until(is_("restart", attempt=attempt), TAKEN_OVER_S)
            # Not before: whoever is there while the turn is nobody's may be the one that takes it.
            owner, (other,) = other, await cluster.add()
        await killed(owner)
        async with wire(other.chat) as client:
            await client.ask("subscribe", conversation_id="c", after=0)
            seen = [
                *await client.until(lambda frame: frame["type"] == "error", TAKEN_OVER_S),
                *await client.until(is_end),
            ]
            (error,) = [frame for frame in seen if frame["type"] == "error"]
            assert (error["turn_id"], error["error"]["code"]) == (lost["turn_id"], "NODE_LOST")
            assert error["error"]["retryable"] is True
            assert [frame["attempt"] for frame in seen if frame["type"] == "restart"] == [1, 2, 3]
            epochs = [frame.get("epoch", 0) for frame in seen if frame["type"] in ("message", "restart", "error")]
            assert epochs == sorted(epochs)
            assert seen[-1]["finish_reason"] == "stop", "queued turns follow"
            await client.ask("subscribe", conversation_id="waits", after=call["seq"])
            await client.ask("function_result", conversation_id="waits", call_id=call["call_id"], result=1)
            rest = [frame for frame in await client.until(is_end) if is_logged(frame)]
            assert kinds(rest) in (["function_result", "token", "done"], ["token", "done"])


async def test_the_real_client_goes_on_through_a_balancer(start_cluster: Any) -> None:
    """It reconnects to whichever node there is, and every answer is whole."""
    async with start_cluster(2) as cluster, balancer(lambda: cluster.nodes) as front:
        async with asyncio.timeout(40), Client(front.base) as one, Client(front.base) as two:
            clients = (one, two)
            turns = [await clients[number % 2].send("/long 60", conversation_id=f"c{number}") for number in range(12)]
            texts = [asyncio.ensure_future(turn.wait()) for turn in turns]
            await asyncio.sleep(0.5)
            await killed(cluster.nodes[0])
            said = await asyncio.gather(*texts)
            assert {turn.finish_reason for turn in turns} == {"stop"}
        for turn, answer in zip(turns, said, strict=True):
            lines = (await fold(cluster.nodes[1], turn.conversation_id))["messages"]
            assert [line["content"] for line in lines] == ["/long 60", answer]
