"""The log in Redis, and several workers: what a token costs the gateway and what it costs Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming

STREAMS, RATE = 100, 50.0
REGIME = f"{STREAMS} streams × {RATE:.0f}/s"


class Workers:
    name = "workers"
    title = "the log in Redis, one worker and two on the same core, over WebSocket"
    columns = (
        Column("cpu_us", "gateway's CPU µs a token"),
        Column("store_cpu_us", "Redis' CPU µs a token", 2),
        Column("tokens_per_s", "tokens/s", 0),
        Column("cores", "cores busy", 2),
        Column("p50_us", "p50 added ms", 2, 1e-3),
        Column("p99_us", "p99 added ms", 2, 1e-3),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        if scale.quick:
            return []
        return ["gateway", "gateway-redis", "gateway-redis-batched", "gateway-redis-2-workers"]

    def rounds(self, scale: Scale) -> int:
        return min(2, scale.rounds)

    def steps(self, scale: Scale) -> int:
        return 1

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        words = [*entrant.ws, *streaming(STREAMS, RATE, bench.scale.seconds)]
        yield REGIME, Sample.of(await bench.load(running, words))
