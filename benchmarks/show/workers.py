"""What one machine does with one worker and with two, over Redis, and what a token costs Redis.

Figures only. Gateway, Redis, upstream and load share this machine's cores, so what counts is CPU time a token; the
throughput of two workers shows itself where there are cores for all.
"""

from __future__ import annotations

import os

from benchmarks.native.run import load, running_upstream
from benchmarks.processes import family
from benchmarks.show.gateway_process import running_gateway
from benchmarks.show.report import Report
from benchmarks.show.valkey_process import running_valkey

TITLE = "throughput with 1 and 2 workers over Redis, and CPU of Redis for each token"
CONVERSATIONS, CONNECTIONS = 200, 50
SECONDS, WARM_UP_S = 10.0, 3.0
REGIMES = {"200 streams × 25/s": "tokens=200 rate=25 size=6", "saturated": "tokens=400 rate=0 size=6"}
BATCHING = {"batching off": {"BATCH_CHARS": 0}, "default batching": {}}


async def _measure(report: Report, workers: int, regime: str, batching: str) -> None:
    async with running_valkey() as valkey, running_upstream() as upstream:
        settings = {"WORKERS": workers, "LOG_URL": valkey.url, **BATCHING[batching]}
        async with running_gateway(upstream=upstream.url, **settings) as gateway:
            pids = list(family(gateway.pid))
            seen = await load(
                gateway.port,
                [
                    *("--mode", "ws", "--message", REGIMES[regime]),
                    *("--connections", str(CONNECTIONS), "--conversations", str(CONVERSATIONS // CONNECTIONS)),
                    *("--ramp", "1", "--warmup", str(WARM_UP_S), "--seconds", str(SECONDS)),
                ],
                pids=[valkey.pid, *pids],
            )
    name = f"{workers} worker{'s' * (workers > 1)}, {batching}, {regime}"
    redis_us = 1e6 * seen.cpu_s[0] / max(1, seen.tokens)
    gateway_us = 1e6 * sum(seen.cpu_s[1:]) / max(1, seen.tokens)
    report.figure(
        name, f"{seen.tokens_per_s:,.0f} tokens/s; gateway {gateway_us:.1f} µs, Redis {redis_us:.1f} µs a token"
    )
    report.none(seen.problems(), f"{name}: every frame in order")


async def show(report: Report, _: str | None) -> None:
    report.note(f"{os.cpu_count()} cores for gateway, Redis, upstream and load together")
    for regime in REGIMES:
        for batching in BATCHING:
            for workers in (1, 2):
                await _measure(report, workers, regime, batching)
