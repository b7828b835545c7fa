"""Many readers of the same conversations: what a token costs for each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import PER_CONNECTION, streaming

RATE = 50.0
READERS = (250, 1000)


def regime(readers: int) -> str:
    return f"{readers} readers of all {PER_CONNECTION} conversations × {RATE:.0f}/s"


class FanOut:
    name = "fan-out"
    title = "CPU of each token that is delivered, 4 conversations a connection"
    columns = (
        Column("cpu_us", "CPU µs a token"),
        Column("tokens_per_s", "tokens/s", 0),
        Column("frames_per_token", "frames a token", 2),
        Column("cores", "cores busy", 2),
        Column("p50_us", "p50 added ms", 2, 1e-3),
        Column("p99_us", "p99 added ms", 2, 1e-3),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return ["gateway", "gateway-batched", "node-fanout"]

    def rounds(self, scale: Scale) -> int:
        return scale.rounds

    def steps(self, scale: Scale) -> int:
        return len(self._readers(scale))

    def _readers(self, scale: Scale) -> tuple[int, ...]:
        return READERS[:1] if scale.quick else READERS

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        for readers in self._readers(bench.scale):
            words = [*entrant.ws, "--readers", readers,
                     *streaming(PER_CONNECTION, RATE, bench.scale.seconds)]  # fmt: skip
            yield regime(readers), Sample.of(await bench.load(running, words))
