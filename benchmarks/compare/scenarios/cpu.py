"""What a token costs: CPU time of the whole server, at a usual rate and when more is offered than fits."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming

TOGETHER_S = 3.5
"""The slowest entrant needs about 3 ms for a question."""
SPREAD, SATURATED = "100 streams × 50/s", "saturated, 1,000 streams × 200/s offered"
SPREAD_ONLY = ["granian", "socketio", "node-socketio"]


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

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        if scale.quick:
            return ["gateway", "gateway-batched", "gateway-memory", "fastapi", "relay"]
        others = ["gateway-memory-batched", "fastapi-tuned", "relay-merge", "relay-batch", "aiohttp", "node-ws"]
        others += SPREAD_ONLY
        return ["gateway", "gateway-batched", "gateway-memory", "fastapi", "relay", *(others if not number else [])]

    def rounds(self, scale: Scale) -> int:
        return scale.rounds

    def steps(self, scale: Scale) -> int:
        return 2

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        seconds = bench.scale.seconds
        spread = streaming(100, 50.0, seconds)
        yield SPREAD, Sample.of(await bench.load(running, [*entrant.ws, *spread]))
        if entrant.name in SPREAD_ONLY:
            return
        # A flooded server may do a second's work in one turn of its loop: several turns are to be seen.
        seconds *= 1.5
        await bench.settle()  # before the flood's moment is fixed
        flood = streaming(1000, 200.0, seconds, ramp_s=0.2, warm_up_s=0.5, together_s=TOGETHER_S)
        words = [*entrant.ws, *flood]
        yield SATURATED, Sample.of(await bench.load(running, words, seconds=seconds, settle=False))
