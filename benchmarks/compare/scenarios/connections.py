"""A storm of connections, and what one costs that is open and idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.native.run import held_connections
from benchmarks.processes import total_allocated_bytes

FEW = 1000
SETTLE_S = 1.0


class Connections:
    name = "connection-storm"
    title = "all connections at once: how long it takes, and memory of each when it is idle"
    columns = (
        Column("storm_s", "all open after s", 2),
        Column("p50_us", "handshake p50 ms", 1, 1e-3),
        Column("p99_us", "p99 ms", 1, 1e-3),
        Column("handshake_cpu_us", "CPU µs each", 0),
        Column("failed", "failed", 0),
        Column("idle_bytes", "KiB each, idle", 1, 1 / 1024),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        if scale.quick:
            return ["gateway", "fastapi"]
        return ["gateway", "fastapi", "aiohttp", "socketio", "node-ws", "relay"]

    def rounds(self, scale: Scale) -> int:
        return 1

    def steps(self, scale: Scale) -> int:
        return 1

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        core = bench.cores.load
        # The first ones bring in what is needed once, and stay: what they would leave free isn't to be filled again.
        async with held_connections(running.port, [*entrant.ws, "--connections", str(FEW)], core=core):
            await asyncio.sleep(SETTLE_S)
            before = total_allocated_bytes(running.pids())
            count = 2000 if bench.scale.quick else 5000
            words = [*entrant.ws, "--connections", str(count), "--in-flight", str(count)]
            async with held_connections(running.port, words, pids=running.pids(), core=core) as storm:
                await asyncio.sleep(SETTLE_S)
                grown = total_allocated_bytes(running.pids()) - before
        figures = {
            "storm_s": storm.seconds,
            "p50_us": storm.connected.percentile_us(50),
            "p99_us": storm.connected.percentile_us(99),
            "handshake_cpu_us": 1e6 * sum(storm.cpu_s) / max(1, storm.opened),
            "failed": float(storm.failed),
            "idle_bytes": grown / max(1, storm.opened),
        }
        yield f"{count:,} at once", Sample(figures, {"connected": storm.connected}, storm.problems())
