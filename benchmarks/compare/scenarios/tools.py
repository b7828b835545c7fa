"""The generator and the load client face to face, with nobody between: neither may be what is measured."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming

DIRECT = "upstream"


class Tools:
    name = "tools"
    title = "the generator straight to the load client, over OpenAI's API"
    columns = (
        Column("tokens_per_s", "tokens/s", 0),
        Column("cpu_us", "generator's CPU µs a token", 2),
        Column("load_us", "load client's CPU µs a token", 2),
        Column("tokens_per_core", "tokens/s a core of both", 0),
        Column("p99_us", "p99 delay ms", 2, 1e-3),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return [] if scale.quick else [DIRECT]

    def rounds(self, scale: Scale) -> int:
        return 1

    def steps(self, scale: Scale) -> int:
        return 4

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        for streams, rate in ((100, 50.0), (1000, 50.0), (1000, 200.0), (1000, 0.0)):
            words = [*entrant.sse, *streaming(streams, rate, bench.scale.seconds / 2, per_connection=1)]
            if not rate:
                words += ["--message", "tokens=1000 rate=0 size=6 stamp=1"]
            load = await bench.load(running, words, seconds=bench.scale.seconds / 2)
            both = sum(load.cpu_s) + load.own_cpu_s
            yield (
                f"{streams:,} streams × {f'{rate:.0f}/s' if rate else 'as fast as it goes'}",
                Sample.of(
                    load,
                    load_us=1e6 * load.own_cpu_s / max(1, load.tokens),
                    tokens_per_core=load.tokens / both if both else float("nan"),
                ),
            )
