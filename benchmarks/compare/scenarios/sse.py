"""SSE against WebSocket, and against those who speak SSE only."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming

STREAMS, RATE = 100, 30.0
WS, SSE = "WebSocket, a connection each", "SSE"


class SseAndWs:
    name = "sse-vs-ws"
    title = f"{STREAMS} streams × {RATE:.0f}/s over SSE, and the same over WebSocket"
    columns = (
        Column("cpu_us", "CPU µs a token"),
        Column("tokens_per_s", "tokens/s", 0),
        Column("cores", "cores busy", 2),
        Column("p50_us", "p50 added ms", 2, 1e-3),
        Column("p99_us", "p99 added ms", 2, 1e-3),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return [] if scale.quick else ["gateway", "gateway-batched", "fastapi", "litellm"]

    def rounds(self, scale: Scale) -> int:
        return min(2, scale.rounds)

    def steps(self, scale: Scale) -> int:
        return 2

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        for regime, way in ((SSE, entrant.sse), (WS, entrant.ws)):
            if way:
                words = [*way, *streaming(STREAMS, RATE, bench.scale.seconds, per_connection=1)]
                yield regime, Sample.of(await bench.load(running, words))
