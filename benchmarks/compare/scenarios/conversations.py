"""The same number of tokens a second, from ever more conversations."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming

TOTAL_RATE = 5000
COUNTS = (10, 100, 1000, 10_000)
STARTS_PER_S = 250
"""Questions that are asked at first."""


def regime(count: int) -> str:
    return f"{count:,} conversations × {TOTAL_RATE / count:g}/s"


class Conversations:
    name = "conversations"
    title = f"CPU of a token at {TOTAL_RATE:,} tokens/s from 10 to 10,000 conversations"
    columns = (
        Column("cpu_us", "CPU µs a token"),
        Column("tokens_per_s", "tokens/s", 0),
        Column("p50_us", "p50 added ms", 2, 1e-3),
        Column("p99_us", "p99 added ms", 2, 1e-3),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return [] if scale.quick else ["gateway"]

    def rounds(self, scale: Scale) -> int:
        return min(2, scale.rounds)

    def steps(self, scale: Scale) -> int:
        return len(COUNTS)

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        for count in COUNTS:
            # Small rates need a while until the answers are spread evenly.
            ramp_s = max(1.0, count / STARTS_PER_S)
            work = streaming(count, TOTAL_RATE / count, bench.scale.seconds, ramp_s=ramp_s)
            yield regime(count), Sample.of(await bench.load(running, [*entrant.ws, *work]))
