"""What a token costs: CPU time of the whole server, at a usual rate and when more is offered than fits."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming

SPREAD, SATURATED = "100 streams × 50/s", "saturated, 1,000 streams × 200/s offered"


class CpuPerToken:
    name = "cpu-per-token"
    title = "CPU time of the server for each token, over WebSocket, 4 conversations a connection"
    columns = (
        Column("cpu_us", "CPU µs a token"),
        Column("tokens_per_cpu_s", "tokens a CPU second", 0),
        Column("tokens_per_s", "tokens/s", 0),
        Column("frames_per_token", "frames a token", 2),
        Column("cores", "cores busy", 2),
        Column("p50_us", "p50 added ms", 2, 1e-3),
        Column("p99_us", "p99 added ms", 2, 1e-3),
    )

    def entrants(self, scale: Scale) -> list[str]:
        if scale.quick:
            return ["gateway", "gateway-batched", "fastapi", "fastapi-tuned", "relay", "gateway-memory"]
        return [
            "gateway", "gateway-batched", "gateway-memory", "gateway-memory-batched", "fastapi", "fastapi-tuned",
            "granian", "aiohttp", "socketio", "node-ws", "node-socketio", "relay", "relay-merge", "relay-batch",
        ]  # fmt: skip

    def rounds(self, scale: Scale) -> int:
        return scale.rounds

    def steps(self, scale: Scale) -> int:
        return 2

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        seconds = bench.scale.seconds
        for regime, streams, rate in ((SPREAD, 100, 50.0), (SATURATED, 1000, 200.0)):
            words = [*entrant.ws, *streaming(streams, rate, seconds)]
            yield regime, Sample.of(await bench.load(running, words))
