"""What a cluster makes of a frozen node and of a Redis that fails: every turn ends once, and nobody reads nonsense."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp

from gateway.logs.log import Key
from gateway.logs.redis_keys import member, partition, slot_of
from gateway.logs.redis_nodes import NODES
from protocol.client import Client
from tests.support.cluster import TAKEN_OVER_S, cluster, fold, until
from tests.support.process import GatewayProcess
from tests.support.valkey import cluster_url, valkey, valkey_cluster
from tests.support.wire import Frame, Wire, is_, is_end, is_logged, is_token, kinds, text, wire


async def ready(node: GatewayProcess) -> int:
    async with aiohttp.ClientSession(node.base) as http, http.get("/readyz") as answer:
        return answer.status


async def whole_log(node: GatewayProcess, conversation: str) -> list[Frame]:
    head = (await fold(node, conversation))["seq"]
    async with wire(node.chat) as client:
        await client.ask("subscribe", conversation_id=conversation, after=0)
        return [f for f in await client.until(lambda f: is_logged(f) and f["seq"] == head) if is_logged(f)]


def signalled(node: GatewayProcess, number: signal.Signals) -> None:
    assert node.process is not None
    node.process.send_signal(number)


# ---------------------------------------------------------------- a frozen node


async def test_a_zombie_writes_nothing(start_cluster: Any) -> None:
    """Frozen past its lease in the middle of a turn, it wakes when the turn is over: not one entry is its own."""
    async with start_cluster(2) as cluster:
        a, b = cluster.nodes
        async with wire(a.chat) as stuck, wire(b.chat) as other:
            running = await stuck.ask("chat_message", message="/long 120", conversation_id="c")
            await stuck.ask("chat_message", message="/fast /echo waits", conversation_id="c")
            await stuck.send("chat_message", message="/fast /call f", conversation_id="calls")
            call = await stuck.get("function_call")
            await other.ask("subscribe", conversation_id="c", after=0)
            await other.until(lambda frame: is_token(frame) and frame["seq"] > 5)
            signalled(a, signal.SIGSTOP)
            try:
                await other.until(is_("restart"), TAKEN_OVER_S)
                await other.ask("subscribe", conversation_id="calls", after=call["seq"])
                await other.ask("function_result", conversation_id="calls", call_id=call["call_id"], result="b's")
                ended = set[str]()
                while len(ended) < 3:
                    ended.add((await other.until(is_end))[-1]["turn_id"])
                before = [await whole_log(b, name) for name in ("c", "calls")]
            finally:
                signalled(a, signal.SIGCONT)
            # What it was still going to say, and the result that a client gave it, come too late.
            late = await stuck.ask("function_result", conversation_id="calls", call_id=call["call_id"], result="a's")
            assert late["error"]["code"] == "CALL_CLOSED"
            turn = await stuck.turn("/fast /echo fine", "c")
            assert text(turn) == "fine", "it serves again, as a node that doesn't own this"
            await asyncio.sleep(0.5)
            after = [await whole_log(b, name) for name in ("c", "calls")]
            assert after[0][: len(before[0])] == before[0]
            assert after[1] == before[1]
            seen = [frame for frame in after[0] if frame["turn_id"] == running["turn_id"]]
            assert kinds(seen) == ["message", "token", "restart", "token", "done"]
            assert seen[-1]["text_length"] == len(text(seen))
            # Its own reader was shown tokens that the log never got, or none: either way it is level with all others.
            _has_all(stuck, after[0])


def _has_all(client: Wire, log: list[Frame]) -> None:
    """What the client knows of `c`, by its frames and snapshots, is the log."""
    known: dict[int, Frame] = {}
    upto = 0
    for frame in client.frames:
        if frame.get("conversation_id") != "c":
            continue
        if frame["type"] == "snapshot":
            known, upto = {}, frame["seq"]
        elif is_logged(frame) and not frame.get("duplicate"):
            known[frame["seq"]] = frame
    for frame in log:
        if frame["seq"] > upto:
            mine = known.get(frame["seq"])
            assert mine is None or mine.get("epoch", 0) == frame.get("epoch", 0)
    assert max(known) == log[-1]["seq"]


# ---------------------------------------------------------------- Redis


async def test_redis_restarts_with_its_data_under_load(tmp_path: Path) -> None:
    """Readers stay connected, nothing that was shown is lost, every turn ends once, and both nodes say not ready."""
    with valkey("--appendonly", "yes", "--appendfsync", "always") as server:
        async with cluster(server, tmp_path, 2) as nodes:
            a, b = nodes.nodes
            async with wire(a.chat) as one, wire(b.chat) as two:
                names = [f"c{number}" for number in range(8)]
                for number, name in enumerate(names):
                    client, other = (one, two) if number % 2 else (two, one)
                    await other.ask("subscribe", conversation_id=name, after=0)
                    await client.ask("chat_message", message="/long 60", conversation_id=name)
                await one.until(is_token)
                server.kill()
                refused = await one.ask("chat_message", message="x", conversation_id="new")
                assert (refused["error"]["code"], refused["error"]["retryable"]) == ("OVERLOADED", True)
                await until(lambda: _both(a, b, 503))
                await asyncio.sleep(0.5)
                server.start()
                await until(lambda: _both(a, b, 200))
                for client in (one, two):
                    await _ended(client, names)
                    assert not any(frame["type"] in ("snapshot", "restart") for frame in client.frames)
                    for name in names:
                        seen = [f for f in client.frames if is_logged(f) and f["conversation_id"] == name]
                        assert kinds(seen) == ["message", "token", "done"]
                        assert seen[-1]["text_length"] == len(text(seen))
                turn = await two.turn("/fast /echo on", "c0")
                assert turn[0].get("epoch", 0) == 0


async def _both(a: GatewayProcess, b: GatewayProcess, status: int) -> bool:
    return [await ready(a), await ready(b)] == [status, status]


async def test_redis_loses_everything_under_load(tmp_path: Path) -> None:
    """Clients send again what a snapshot says is gone, and every answer is whole. Nothing counts as deleted."""
    with valkey() as server:
        async with cluster(server, tmp_path, 2) as nodes:
            a, b = nodes.nodes
            async with asyncio.timeout(50), Client(a.base) as one, Client(b.base) as two, wire(b.chat) as raw:
                before = await one.send("/fast /echo before", conversation_id="idle")
                await before.wait()
                turns = [
                    await (one, two)[number % 2].send("/long 60", conversation_id=f"c{number}") for number in range(8)
                ]
                for turn in turns:
                    await raw.ask("subscribe", conversation_id=turn.conversation_id, after=0)
                texts = [asyncio.ensure_future(turn.wait()) for turn in turns]
                await raw.until(is_token)
                server.kill()
                server.start()
                said = await asyncio.gather(*texts)
                assert {turn.finish_reason for turn in turns} == {"stop"}
                await _ended(raw, [turn.conversation_id for turn in turns])
                assert not any(frame["type"] == "deleted" for frame in raw.frames)
            for turn, answer in zip(turns, said, strict=True):
                found = [(await fold(node, turn.conversation_id))["messages"] for node in (a, b)]
                assert found[0] == found[1]
                assert [line["content"] for line in found[0]] == ["/long 60", answer]
            began = int(time.time()) - 60
            async with wire(b.chat) as client:
                turn = await client.turn("/fast /echo anew", "idle")
                assert text(turn) == "anew"
                assert turn[0].get("epoch", 0) >= began, "a place is never used twice"


async def test_redis_is_emptied_under_load(tmp_path: Path) -> None:
    """No connection breaks, and what an owner can't append isn't published: all the same every reader on every node is
    told of every turn, also of those that say nothing, that it is gone. None waits for an end that can't come."""
    with valkey() as server:
        async with cluster(server, tmp_path, 2) as nodes:
            a, b = nodes.nodes
            async with wire(a.chat) as one, wire(b.chat) as two:
                asked = {}
                for number, message in enumerate(["/long 600", "/fast /call f", "/silent", "/long 600"] * 3):
                    client, other = (one, two) if number % 2 else (two, one)
                    name = f"c{number}"
                    await other.ask("subscribe", conversation_id=name, after=0)
                    asked[name] = await client.ask("chat_message", message=message, conversation_id=name)
                server.ask("FLUSHALL")
                for client in (one, two):
                    told = [frame for frame in client.frames if frame["type"] == "snapshot"]
                    while len(told) < len(asked):
                        told.append(await client.get("snapshot"))
                    assert {frame["conversation_id"] for frame in told} == set(asked)
                    assert all((frame["seq"], frame["messages"], frame["turn"]) == (0, [], None) for frame in told)
                    assert not any(is_end(frame) for frame in client.frames)
                for name in asked:
                    for node in (a, b):
                        assert (await fold(node, name))["error"]["code"] == "NOT_FOUND"
                turn = await one.turn("/fast /echo again", "c1", message_id=asked["c1"]["message_id"])
                assert text(turn) == "again"
                assert turn[0]["epoch"] > 0
                await two.rest(turn[0]["turn_id"])


async def test_a_part_of_a_redis_cluster_is_gone(tmp_path: Path) -> None:
    """What is on the other servers goes on, on every node. The rest is refused meanwhile, and then goes on too."""
    keeps = ("--appendonly", "yes", "--appendfsync", "always")
    with valkey_cluster(3, 0, "--cluster-require-full-coverage", "no", *keeps) as servers:
        per_server = 16384 // 3 + 1
        gone = next(server for server in range(3) if server != slot_of(NODES) // per_server)

        def is_there(name: str) -> bool:
            return slot_of(partition(member(Key("0:/anonymous", name)))) // per_server == gone

        names = {where: [f"c{n}" for n in range(50) if is_there(f"c{n}") is where][:4] for where in (True, False)}
        async with cluster(servers[0], tmp_path, 2, log_url=cluster_url(servers)) as nodes:
            a, b = nodes.nodes
            async with wire(a.chat) as one, wire(b.chat) as two:
                for name in names[True] + names[False]:
                    await two.ask("subscribe", conversation_id=name, after=0)
                    await one.ask("chat_message", message="/long 60", conversation_id=name)
                servers[gone].kill()
                for client in (one, two):
                    await _ended(client, names[False])
                await until(lambda: _both(a, b, 503))
                for client in (one, two):
                    turn = await client.turn("/fast /echo on", names[False][0])
                    assert text(turn) == "on"
                    refused = await client.ask("chat_message", message="x", conversation_id=names[True][0])
                    assert (refused["error"]["code"], refused["error"]["retryable"]) == ("OVERLOADED", True)
                servers[gone].start()
                await until(lambda: _both(a, b, 200))
                for client in (one, two):
                    await _ended(client, names[True])
                    assert not any(frame["type"] == "restart" for frame in client.frames)


async def _ended(client: Wire, names: list[str]) -> None:
    """Waits until a turn has ended in each of these conversations."""
    while not {frame["conversation_id"] for frame in client.frames if is_end(frame)} >= set(names):
        await client.until(is_end)


async def test_redis_is_full(tmp_path: Path) -> None:
    """New messages are refused in plain words; what runs goes on when there is room, and nothing is lost."""
    with valkey("--maxmemory-policy", "noeviction") as server:
        async with cluster(server, tmp_path, 2) as nodes:
            a, b = nodes.nodes
            async with wire(a.chat) as one, wire(b.chat) as two:
                await two.ask("subscribe", conversation_id="c")
                running = await one.ask("chat_message", message="/long 60", conversation_id="c")
                await two.until(is_token)
                server.ask("CONFIG", "SET", "maxmemory", "1mb")
                await until(lambda: _both(a, b, 503))
                for client in (one, two):
                    refused = await client.ask("chat_message", message="x", conversation_id="new")
                    assert (refused["error"]["code"], refused["error"]["retryable"]) == ("OVERLOADED", True)
                await asyncio.sleep(1)
                server.ask("CONFIG", "SET", "maxmemory", "0")
                await until(lambda: _both(a, b, 200))
                for client in (one, two):
                    if not any(is_end(frame) for frame in client.frames):
                        await client.until(is_end)
                    seen = [f for f in client.frames if f.get("turn_id") == running["turn_id"] and is_logged(f)]
                    assert kinds(seen) == ["message", "token", "done"]
                    assert seen[-1]["text_length"] == len(text(seen))


# ---------------------------------------------------------------- retention


async def test_conversations_expire(start_cluster: Any) -> None:
    """As a whole, on every node, but not while a turn is open."""
    async with start_cluster(2, retention_s=2) as cluster:
        a, b = cluster.nodes
        async with wire(a.chat) as one, wire(b.chat) as two:
            await one.turn("/fast /echo old", "old")
            await two.turn("/fast /echo read", "read")
            await one.ask("subscribe", conversation_id="read", after=0)
            await one.until(is_end)
            open_turn = await one.ask("chat_message", message="/silent", conversation_id="open")

            async def gone() -> bool:
                told = [await fold(node, name) for node in (a, b) for name in ("old", "read")]
                return all(answer.get("error", {}).get("code") == "NOT_FOUND" for answer in told)

            await until(gone, 20)
            await one.until(is_("deleted", conversation_id="read"))
            again = await two.turn("/fast /echo anew", "old")
            assert (again[0]["seq"], text(again)) == (1, "anew")
            assert again[0]["epoch"] > 0
            assert (await fold(b, "open"))["turn"]["turn_id"] == open_turn["turn_id"]
            await two.ask("cancel", conversation_id="open")
