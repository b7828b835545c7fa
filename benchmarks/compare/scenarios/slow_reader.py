"""Readers that hardly read among those that do: what it costs the others, and the server's memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import RAMP_S, WARM_UP_S, streaming
from benchmarks.processes import total_allocated_bytes

STREAMS, SLOW = 60, 10
RATE, SIZE = 50.0, 400
SLOW_BYTES_PER_S = 2000
NONE, SOME = "all read", f"{SLOW} of {STREAMS} read {SLOW_BYTES_PER_S / 1000:.0f} kB/s of 20"


class SlowReader:
    name = "slow-reader"
    title = f"{STREAMS} streams × {RATE:.0f}/s of {SIZE} characters, a connection each: the others' delay, and memory"
    columns = (
        Column("p50_us", "others' p50 ms", 2, 1e-3),
        Column("p99_us", "p99 ms", 2, 1e-3),
        Column("p999_us", "p99.9 ms", 2, 1e-3),
        Column("grown_bytes", "memory grown MiB", 2, 1 / (1 << 20)),
        Column("slow_tokens", "tokens that the slow got", 0),
        Column("cpu_us", "CPU µs a token"),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return [] if scale.quick else ["gateway", "fastapi", "aiohttp", "node-ws"]

    def rounds(self, scale: Scale) -> int:
        return 1

    def steps(self, scale: Scale) -> int:
        return 2

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        for regime, slow in ((NONE, 0), (SOME, SLOW)):
            seconds = bench.scale.seconds
            work = streaming(STREAMS, RATE, seconds, per_connection=1, size=SIZE)
            words = [*entrant.ws, "--slow", slow, "--slow-rate", SLOW_BYTES_PER_S,
                     "--receive-buffer", 4096, *work]  # fmt: skip
            loading = asyncio.create_task(bench.load(running, words))
            await asyncio.sleep(RAMP_S + WARM_UP_S)
            before = total_allocated_bytes(running.pids())
            await asyncio.sleep(seconds - 0.5)
            grown = total_allocated_bytes(running.pids()) - before
            load = await loading
            yield regime, Sample.of(load, grown_bytes=grown, slow_tokens=float(load.slow_tokens))
