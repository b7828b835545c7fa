"""Added delay: from when a token was due upstream to its arrival at the client, at rising rates until it breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming

STREAMS = 100
FIRST, LAST = 2_000, 64_000
BROKEN_P99_US, BROKEN_SHARE = 250_000, 0.95
"""It breaks when the slowest hundredth waits longer, or less than this share of what is offered arrives."""
BASE = "fastapi"
HALF = f"half of {BASE}'s breaking rate"
BREAKING = "breaking rate"
USUAL_HALF = 2_400.0
"""When the base doesn't take part."""


class Latency:
    name = "latency"
    title = f"delay added to a token, {STREAMS} streams over WebSocket, and the rate where it breaks"
    columns = (
        Column("p50_us", "p50 ms", 2, 1e-3),
        Column("p99_us", "p99 ms", 2, 1e-3),
        Column("p999_us", "p99.9 ms", 2, 1e-3),
        Column("rate", "tokens/s", 0),
        Column("cpu_us", "CPU µs a token"),
        Column("cores", "cores busy", 2),
    )

    def __init__(self) -> None:
        self._half = USUAL_HALF
        self._swept: set[str] = set()
        """Who has been through all rates: that takes its time, and is done in the first round only."""

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        """The base first: the others are measured at half of its rate."""
        if scale.quick:
            return []
        return [BASE, "fastapi-tuned", "node-ws", "gateway", "gateway-batched", "relay"]

    def rounds(self, scale: Scale) -> int:
        return scale.rounds

    def steps(self, scale: Scale) -> int:
        return 8

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        if entrant.name not in self._swept:
            self._swept.add(entrant.name)
            async for found in self._sweep(bench, entrant, running):
                yield found
        yield HALF, await self._at(bench, entrant, running, self._half, seconds=bench.scale.seconds)

    async def _sweep(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        good, rate = 0.0, float(FIRST)
        while rate <= LAST:
            sample = await self._at(bench, entrant, running, rate)
            yield f"{rate:,.0f} tokens/s", sample
            if not _holds(sample, rate):
                break
            good, rate = rate, rate * 2
        if good and rate <= LAST:  # between the last that held and the first that didn't
            between = (good * rate) ** 0.5
            good = between if _holds(await self._at(bench, entrant, running, between), between) else good
        yield BREAKING, Sample({"rate": good})
        if entrant.name == BASE and good:
            self._half = good / 2

    async def _at(
        self, bench: Bench, entrant: Entrant, running: Running, rate: float, seconds: float | None = None
    ) -> Sample:
        span = seconds or bench.scale.seconds / 2
        words = [*entrant.ws, *streaming(STREAMS, rate / STREAMS, span, warm_up_s=0.5)]
        load = await bench.load(running, words, seconds=span)
        return Sample.of(load, rate=load.tokens_per_s)


def _holds(sample: Sample, rate: float) -> bool:
    return sample.figures["rate"] >= BROKEN_SHARE * rate and sample.figures["p99_us"] <= BROKEN_P99_US
