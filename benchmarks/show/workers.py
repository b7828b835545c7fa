"""What one machine does with one worker and with two, over Redis, and what a token costs Redis.

Figures only. Gateway, Redis, upstream and load share this machine's cores, so what counts is CPU time a token; the
throughput of two workers shows itself where there are cores for all.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.compare.entrants import GATEWAY_WS, SETTINGS
from benchmarks.compare.scenarios.conversations import STARTS_PER_S
from benchmarks.compare.work import streaming
from benchmarks.native.run import load, running_upstream
from benchmarks.processes import family
from benchmarks.show.gateway_process import GatewayProcess, running_gateway
from benchmarks.show.report import Report
from benchmarks.show.valkey_process import running_valkey

TITLE = "throughput with 1 and 2 workers over Redis, and CPU of Redis for each token"
SECONDS = 10.0
REGIMES = {"200 streams × 25/s": (200, 25.0), "saturated, 1,000 streams × 200/s offered": (1000, 200.0)}
BATCHING: dict[str, dict[str, object]] = {"batching off": {"BATCH_CHARS": 0}, "default batching": {}}


@asynccontextmanager
async def _watched(gateway: GatewayProcess) -> AsyncIterator[list[float]]:
    """How long a request that needs nothing takes meanwhile, in seconds: what everything waits at least."""
    delays_s = [0.0]
    over = asyncio.Event()

    async def watch() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            while not over.is_set():
                asked = time.monotonic()
                try:
                    async with session.get(f"{gateway.url}/healthz") as answer:
                        await answer.read()
                except aiohttp.ClientError:
                    pass  # too busy even for that; the time counts
                finally:
                    delays_s.append(time.monotonic() - asked)
                await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        yield delays_s
    finally:
        # Not cancelled: a request that is cancelled as it times out would only be one that timed out.
        over.set()
        await watching


async def _measure(report: Report, workers: int, regime: str, batching: str) -> None:
    streams, rate = REGIMES[regime]
    work = streaming(streams, rate, SECONDS, ramp_s=streams / STARTS_PER_S, warm_up_s=3.0)
    async with running_valkey() as valkey, running_upstream() as upstream:
        settings = {**SETTINGS, "WORKERS": workers, "LOG_URL": valkey.url, **BATCHING[batching]}
        async with running_gateway(upstream=upstream.url, **settings) as gateway:
            words = [*GATEWAY_WS, *work, "--seconds", SECONDS]
            async with _watched(gateway) as delays_s:
                seen = await load(gateway.port, list(map(str, words)), pids=[valkey.pid, *family(gateway.pid)])
    redis_us = 1e6 * seen.cpu_s[0] / max(1, seen.tokens)
    gateway_us = 1e6 * sum(seen.cpu_s[1:]) / max(1, seen.tokens)
    name = f"{workers} worker{'s' * (workers > 1)}, {batching}, {regime}"
    cost = f"gateway {gateway_us:.1f} µs, Redis {redis_us:.2f} µs a token"
    report.figure(name, f"{seen.tokens_per_s:,.0f} tokens/s; {cost}; /healthz within {max(delays_s):.2f} s")
    report.none(seen.problems(), f"{name}: every frame in order")


async def show(report: Report, _: str | None) -> None:
    report.note(f"{os.cpu_count()} cores for gateway, Redis, upstream and load together")
    for regime in REGIMES:
        for batching in BATCHING:
            for workers in (1, 2):
                await _measure(report, workers, regime, batching)
