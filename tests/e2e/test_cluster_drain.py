"""SIGTERM for one node of several: its turns end, or go on elsewhere, and spend no attempt (SPEC.md section 10.6)."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from protocol.client import Client
from tests.support.cluster import alive, balancer, fold, until
from tests.support.process import GatewayProcess
from tests.support.wire import Events, Frame, is_, is_end, is_logged, is_token, kinds, text, wire


async def ended(node: GatewayProcess) -> None:
    await asyncio.to_thread(node.check_end)


async def test_turns_are_handed_over_without_spending_an_attempt(start_cluster: Any) -> None:
    async with start_cluster(2, drain_s=0.3) as cluster:
        a, b = cluster.nodes
        async with wire(a.chat) as client, wire(b.chat) as other, aiohttp.ClientSession(a.base) as http:
            await client.turn("/fast /echo idle", "idle")
            running = await client.ask("chat_message", message="/long 80", conversation_id="c")
            queued = await client.ask("chat_message", message="/fast /echo queued", conversation_id="c")
            await client.send("chat_message", message="/fast /call f", conversation_id="waits")
            call = await client.get("function_call")
            await other.ask("subscribe", conversation_id="c", after=0)
            await other.until(is_token)
            async with http.get("/api/chat/stream?conversation_id=c&after=0") as answer:
                events = Events(answer)
                streamed = await events.until(is_token)
                began = asyncio.get_running_loop().time()
                a.terminate()
                away = await client.get("goaway")
                assert away["reconnect_after_ms"] >= 0
                assert await client.closed() == 1012
                streamed += await events.all()
            assert not any(map(is_end, streamed)), "an event stream ends where it is, and attaches again"
            await ended(a)
            if not any(frame["type"] == "restart" for frame in other.frames):
                await other.until(is_("restart"))
            assert asyncio.get_running_loop().time() - began < 5
            await other.until(lambda frame: is_end(frame) and frame["turn_id"] == queued["turn_id"])
            seen = [frame for frame in other.frames if is_logged(frame) and frame["conversation_id"] == "c"]
            turn = [frame for frame in seen if frame["turn_id"] == running["turn_id"]]
            assert kinds(turn) == ["message", "token", "restart", "token", "done"]
            restart = next(frame for frame in turn if frame["type"] == "restart")
            assert (restart["attempt"], restart["keep_seq"]) == (0, running["seq"])
            assert {frame.get("epoch", 0) for frame in seen} == {0}, "nothing was lost"
            assert turn[-1]["text_length"] == len(text(turn))
            # Who was cut off goes on by its cursor: all that was shown is in the log.
            for frames in ([f for f in client.frames if is_logged(f) and f["conversation_id"] == "c"], streamed):
                await other.ask("subscribe", conversation_id="c", after=frames[-1]["seq"])
                rest = await other.until(lambda frame: is_end(frame) and frame["turn_id"] == queued["turn_id"])
                assert not any(frame["type"] == "snapshot" for frame in rest)
            await other.ask("subscribe", conversation_id="waits", after=call["seq"])
            await other.send("function_result", conversation_id="waits", call_id=call["call_id"], result=1)
            rest = [frame for frame in await other.until(is_end) if is_logged(frame)]
            assert kinds(rest) == ["function_result", "token", "done"], "without a word"
            turn = await other.turn("/fast /echo on", "idle")
            assert (turn[0]["seq"], turn[0].get("epoch", 0)) == (4, 0), "as if it had been its own"


async def test_a_draining_node_still_serves_what_it_runs(start_cluster: Any) -> None:
    """Its turns come to their end there, and commands for them from other nodes reach it."""
    async with start_cluster(2, drain_s=50) as cluster:
        a, b = cluster.nodes
        async with wire(a.chat) as client, wire(b.chat) as other, aiohttp.ClientSession(a.base) as http:
            await client.ask("chat_message", message="/long 4000", conversation_id="slow")
            long = await client.ask("chat_message", message="/long 60", conversation_id="ends")
            await client.ask("chat_message", message="/long 5000", conversation_id="stopped")
            await other.ask("subscribe", conversation_id="ends", after=0)
            a.terminate()

            async def draining() -> bool:
                async with http.get("/readyz") as answer:
                    return answer.status == 503

            await until(draining)
            again = await other.ask("chat_message", message="/fast /echo next", conversation_id="ends")
            assert again["type"] == "message", again
            stopped = await other.ask("cancel", conversation_id="stopped")
            assert stopped["outcome"] == "stopped"
            turn = await other.turn("/fast /echo new", "another")
            assert text(turn) == "new"

            async def taken_here() -> bool:
                here = await client.ask(
                    "chat_message", message="/fast /echo here", conversation_id="third", message_id="h"
                )
                # A node whose beats were late, on a busy machine, knows nobody for a moment, and says so.
                assert here["type"] == "message" or here["error"]["code"] == "OVERLOADED", here
                return here["type"] == "message"

            await until(taken_here)  # another node does it, for those who are still here
            for asked in (long, again):
                if not any(is_end(frame) and frame["turn_id"] == asked["turn_id"] for frame in other.frames):
                    await other.until(lambda frame, asked=asked: is_end(frame) and frame["turn_id"] == asked["turn_id"])
            seen = [frame for frame in other.frames if is_logged(frame) and frame["conversation_id"] == "ends"]
            assert kinds([frame for frame in seen if frame["turn_id"] == long["turn_id"]]) == [
                "message", "token", "done",
            ]  # fmt: skip
            assert alive(a), "it still has something to do"
            turn = await other.turn("/fast /echo on", "ends")
            assert text(turn) == "on", "what has ended there is anybody's"
            stopped = await other.ask("cancel", conversation_id="slow")
            assert stopped["outcome"] == "stopped"
        await ended(a)


async def test_a_rolling_deploy_costs_nobody_anything(start_cluster: Any) -> None:
    """One node after another is replaced, behind a balancer, while people go on talking."""
    async with start_cluster(2, drain_s=20) as cluster, balancer(lambda: cluster.nodes) as front:
        done = False
        answers: list[tuple[str, str, str | None]] = []

        async def talk(number: int) -> None:
            async with Client(front.base) as client:
                for count in range(100):
                    turn = await client.send(f"/echo {number}/{count} and more", conversation_id=f"c{number}")
                    answers.append((f"{number}/{count} and more", await turn.wait(), turn.finish_reason))
                    if done:
                        return

        async with asyncio.timeout(50):
            people = [asyncio.ensure_future(talk(number)) for number in range(8)]
            for _ in range(2):
                await asyncio.sleep(0.5)
                old = cluster.nodes[0]
                (fresh,) = await cluster.add()
                cluster.nodes.remove(old)
                old.terminate()
                await ended(old)
                assert fresh in cluster.nodes
            done = True
            await asyncio.gather(*people)
        assert len(answers) > 20
        assert all(asked == told and reason == "stop" for asked, told, reason in answers)
        for number in range(8):
            frames = await _all(cluster.nodes[0], f"c{number}")
            assert not any(frame["type"] in ("restart", "error") for frame in frames)
            assert {frame.get("epoch", 0) for frame in frames} == {0}


async def _all(node: GatewayProcess, conversation: str) -> list[Frame]:
    head = (await fold(node, conversation))["seq"]
    async with wire(node.chat) as client:
        await client.ask("subscribe", conversation_id=conversation, after=0)
        return await client.until(lambda frame: is_logged(frame) and frame["seq"] == head)
