"""The time to the first token, and what a question costs: short answers, each in a new conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column

REGIME = "10 at a time"
THINKING_S = 0.15
"""The upstream's own time to its first token."""
MESSAGE = f"tokens=2 rate=50 size=6 delay={THINKING_S} stamp=1"


class FirstToken:
    name = "first-token"
    title = f"time to the first token beyond the upstream's {1000 * THINKING_S:.0f} ms, and CPU of a question"
    columns = (
        Column("first_p50_us", "p50 added ms", 2, 1e-3),
        Column("first_p99_us", "p99 added ms", 2, 1e-3),
        Column("turn_cpu_us", "CPU ms a question", 2, 1e-3),
        Column("turns_per_s", "questions/s", 0),
        Column("cores", "cores busy", 2),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        if scale.quick:
            return ["gateway", "fastapi"]
        return ["gateway", "fastapi", "fastapi-tuned", "aiohttp", "node-ws", "litellm", "relay"]

    def rounds(self, scale: Scale) -> int:
        return min(2, scale.rounds)

    def steps(self, scale: Scale) -> int:
        return 1

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        words = [*(entrant.ws or entrant.sse), "--connections", 10, "--fresh", "--ramp", 0.3, "--warmup", 0.7,
                 "--message", MESSAGE]  # fmt: skip
        load = await bench.load(running, words)
        thinking_us = 1e6 * THINKING_S
        yield (
            REGIME,
            Sample.of(
                load,
                first_p50_us=load.first_token.percentile_us(50) - thinking_us,
                first_p99_us=load.first_token.percentile_us(99) - thinking_us,
                turn_cpu_us=1e6 * sum(load.cpu_s) / load.done if load.done else float("nan"),
                turns_per_s=load.done / load.seconds,
            ),
        )
