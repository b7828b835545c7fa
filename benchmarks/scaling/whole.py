"""Measures whole gateways, alone and on Redis: what the model of them is fitted to, and what it has to foretell.

One core for the gateways, the other one for all else. Default batching; answers of 6-character tokens that never end
while it is measured; 4 conversations a connection.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from redis.asyncio import Redis

from benchmarks.native.run import Load, NativeUpstream, held_connections, load, running_upstream
from benchmarks.processes import total_allocated_bytes
from benchmarks.scaling.parts import running_valkey
from benchmarks.show.gateway_process import GatewayProcess, running_gateway

NODE_CORE, OTHER_CORE = 0, 1
PER_CONNECTION = 4
RAMP_S, WARM_UP_S, SECONDS = 2.0, 1.0, 6.0
TOKEN_CHARS = 6
CONNECTIONS, IDLE_S = 2000, 24.0
"""Longer than the interval of heartbeats."""
BATCHES = ((10, 50), (40, 200))
"""`BATCH_CHARS` and `BATCH_MS`: the default first."""
LOADS = ((100, 20.0), (100, 50.0), (300, 50.0), (600, 50.0))
"""Streams, and tokens a second of each."""
TRIES, QUIET = 3, 0.03
"""Nobody else should have had the core for a larger part of the time."""
SETTINGS = {"LOG_LEVEL": "warning", "MODEL": "bench", "MAX_CONNECTIONS": 20000, "MAX_STREAMS": 20000}


class WholePoint(NamedTuple):
    log: str
    """`memory` or `redis`."""
    nodes: int
    streams: int
    rate: float
    batch_chars: int
    batch_ms: int
    tokens_per_s: float
    node_us: float
    """CPU of all nodes for a token."""
    waited: float
    """Part of the time in which a node had something to do and its core was somebody else's: a disturbed point."""
    redis_us: float = 0.0
    appends_per_token: float = 0.0
    appends_per_call: float = 0.0


class FollowedPoint(NamedTuple):
    """A node whose clients read what another node generates."""

    streams: int
    rate: float
    follower_us: float
    """CPU of the reading node for a token."""


async def alone(step: Callable[[str], None]) -> list[WholePoint]:
    """Of a gateway on `memory:`."""
    points = []
    for batch in BATCHES:
        for streams, rate in LOADS:
            step(f"a gateway on memory:, {streams} streams × {rate:g}/s, batches of {batch[0]} characters")
            points.append(await least_disturbed(partial(on_memory, streams, rate, batch)))
    return points


async def shared(step: Callable[[str], None]) -> list[WholePoint]:
    """Of one and of two on one Redis."""
    points = []
    for nodes in (1, 2):
        for streams, rate in LOADS:
            step(f"{nodes} on redis:, {streams} streams × {rate:g}/s")
            points.append(await least_disturbed(partial(on_redis, nodes, streams, rate)))
    return points


async def on_memory(streams: int, rate: float, batch: tuple[int, int]) -> WholePoint:
    settings = {"BATCH_CHARS": batch[0], "BATCH_MS": batch[1]}
    async with running_upstream(OTHER_CORE) as upstream, gateways(upstream, 1, "memory:", **settings) as (gateway,):
        began, waited = time.monotonic(), waited_s([gateway.pid])
        told = await _load(gateway, streams, rate, [gateway.pid])
        waited = (waited_s([gateway.pid]) - waited) / (time.monotonic() - began)
    per_s, us = round(told.tokens_per_s), round(told.cpu_us_per_token, 2)
    return WholePoint("memory", 1, streams, rate, *batch, per_s, us, round(waited, 3))


async def on_redis(nodes: int, streams: int, rate: float) -> WholePoint:
    with running_valkey() as server:
        async with (
            Redis(host="127.0.0.1", port=server.port) as redis,
            running_upstream(OTHER_CORE) as upstream,
            gateways(upstream, nodes, f"redis://127.0.0.1:{server.port}") as running,
        ):
            server_pid = (await redis.info("server"))["process_id"]
            os.sched_setaffinity(server_pid, {OTHER_CORE})
            pids = [gateway.pid for gateway in running]
            began, waited = time.monotonic(), waited_s(pids)
            counting = asyncio.create_task(_appended(redis, upstream))
            told = await asyncio.gather(
                *(
                    _load(gateway, streams // nodes, rate, [gateway.pid, server_pid], number)
                    for number, gateway in enumerate(running)
                )
            )
            waited = (waited_s(pids) - waited) / (time.monotonic() - began) / nodes
            appends, calls, written = await counting
    tokens = sum(one.tokens for one in told)
    node_us = sum(one.cpu_s[0] for one in told) / tokens * 1e6
    redis_s = sum(one.cpu_s[1] / one.seconds for one in told) / nodes  # each saw all of it
    tokens_per_s = sum(one.tokens_per_s for one in told)
    return WholePoint(
        "redis", nodes, streams, rate, *BATCHES[0], round(tokens_per_s), round(node_us, 2), round(waited, 3),
        round(redis_s / tokens_per_s * 1e6, 2),
        round(appends / written, 3), round(appends / calls, 2),
    )  # fmt: skip


async def _appended(redis: Redis, upstream: NativeUpstream) -> tuple[int, int, int]:
    """Appends, calls of scripts and tokens, of a while in which nothing but tokens comes: no turn begins or ends."""

    async def counts() -> tuple[int, int, int]:
        stats, tokens = await redis.info("commandstats"), (await upstream.stats())["tokens"]
        return stats["cmdstat_xadd"]["calls"], stats["cmdstat_evalsha"]["calls"], tokens

    await asyncio.sleep(RAMP_S + WARM_UP_S + 1)
    before = await counts()
    await asyncio.sleep(SECONDS - 2)
    appends, calls, tokens = (now - then for now, then in zip(await counts(), before, strict=True))
    return appends, calls, tokens


async def followed_point(step: Callable[[str], None], streams: int = 100, rate: float = 50.0) -> FollowedPoint:
    """All streams run on one node, all their readers of this measurement are on another one."""
    step("a node that follows another one's conversations")
    tokens = int(rate * SECONDS)
    with running_valkey() as server:
        async with (
            running_upstream(OTHER_CORE) as upstream,
            gateways(upstream, 2, f"redis://127.0.0.1:{server.port}") as (owner, follower),
        ):
            generating = asyncio.create_task(_load(owner, streams, rate, [owner.pid]))
            await asyncio.sleep(RAMP_S + WARM_UP_S)
            words = [
                "--mode", "ws", "--connections", streams // PER_CONNECTION, "--conversations", PER_CONNECTION,
                "--prefix", "n0-", "--after", 0, "--expect", tokens, "--seconds", 3 * SECONDS,
            ]  # fmt: skip
            told = await load(follower.port, [str(word) for word in words], pids=[follower.pid], core=OTHER_CORE)
            await generating
    return FollowedPoint(streams, rate, round(told.cpu_us_per_token, 2))


@asynccontextmanager
async def gateways(
    upstream: NativeUpstream, count: int, log_url: str, **settings: int
) -> AsyncIterator[list[GatewayProcess]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running_gateway(upstream=upstream.url, core=NODE_CORE, LOG_URL=log_url, **SETTINGS, **settings)
            )
            for _ in range(count)
        ]


async def least_disturbed(measure: Callable[[], Awaitable[WholePoint]]) -> WholePoint:
    """The first quiet one of a few measurements, or the quietest: what it waited is in it."""
    tries = []
    for _ in range(TRIES):
        tries.append(await measure())
        if tries[-1].waited <= QUIET:
            break
    return min(tries, key=lambda point: point.waited)


def waited_s(pids: Sequence[int]) -> float:
    """How long their main threads could have run and didn't (the second figure of schedstat), in seconds."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) for pid in pids) / 1e9


async def _load(gateway: GatewayProcess, streams: int, rate: float, pids: list[int], number: int = 0) -> Load:
    tokens = int(rate * (RAMP_S + WARM_UP_S + SECONDS + 3))
    words = [
        "--mode", "ws", "--connections", streams // PER_CONNECTION, "--conversations", PER_CONNECTION,
        "--ramp", RAMP_S, "--warmup", WARM_UP_S, "--seconds", SECONDS, "--prefix", f"n{number}-",
        "--message", f"tokens={tokens} rate={rate:g} size={TOKEN_CHARS} stamp=1",
    ]  # fmt: skip
    told = await load(gateway.port, [str(word) for word in words], pids=pids, core=OTHER_CORE)
    if problems := told.problems():
        raise RuntimeError(f"the load client saw {problems}")
    return told


async def turn_us(step: Callable[[str], None]) -> float:
    """CPU of a node on redis: for a turn of one token: the message, its context, the request, and the end."""
    step("turns of one token")
    with running_valkey() as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with running_upstream(OTHER_CORE) as upstream, gateways(upstream, 1, url) as (gateway,):
            words = [
                "--mode", "ws", "--connections", 8, "--conversations", PER_CONNECTION, "--seconds", SECONDS, "--fresh",
                "--message", "tokens=1",
            ]  # fmt: skip
            told = await load(gateway.port, [str(word) for word in words], pids=[gateway.pid], core=OTHER_CORE)
    return round(told.cpu_s[0] / told.done * 1e6, 1)


async def node_sizes(step: Callable[[str], None]) -> dict[str, Any]:
    """Memory and CPU time of idle connections."""
    step(f"{CONNECTIONS} idle connections")
    words = ["--mode", "ws", "--connections", str(CONNECTIONS)]
    async with running_upstream(OTHER_CORE) as upstream, gateways(upstream, 1, "memory:") as (gateway,):
        await load(gateway.port, [*words[:3], "100", "--once", "--message", "tokens=5"], core=OTHER_CORE)
        before = total_allocated_bytes([gateway.pid])
        async with held_connections(gateway.port, words, pids=[gateway.pid], core=OTHER_CORE) as held:
            connected, spent = total_allocated_bytes([gateway.pid]), gateway.cpu_s()
            await asyncio.sleep(IDLE_S)
            spent = gateway.cpu_s() - spent
    return {
        "base_bytes": before,
        "connections": CONNECTIONS,
        "idle_connection_bytes": round((connected - before) / CONNECTIONS),
        "idle_connection_us_per_s": round(spent / IDLE_S / CONNECTIONS * 1e6, 2),
        "connect_us": round(sum(held.cpu_s) / CONNECTIONS * 1e6, 1),
    }
