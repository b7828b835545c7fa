"""Memory of a conversation: idle in the pool, evicted from it, and while it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.work import streaming
from benchmarks.processes import total_allocated_bytes

IDLE, EVICTED, ACTIVE = "idle in the pool", "evicted", "being answered"
EVICTING = "gateway-evicting"
SETTLE_S = 4.0
"""Longer than that entrant lets a conversation idle."""
STREAMS = 500
COUNT, WARM_UPS = 2000, 2


class Memory:
    name = "memory"
    title = "memory of the server for each conversation"
    columns = (Column("each_bytes", "KiB each", 2, 1 / 1024), Column("count", "conversations", 0))

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return [] if scale.quick else ["gateway", EVICTING, "fastapi", "node-ws"]

    def rounds(self, scale: Scale) -> int:
        return 1

    def steps(self, scale: Scale) -> int:
        return 2

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        # In this order: what answers leave behind as free memory would hide what idle conversations need.
        if entrant.keeps:
            yield EVICTED if entrant.name == EVICTING else IDLE, await self._idle(bench, entrant, running)
        if entrant.name != EVICTING:
            yield ACTIVE, await self._active(bench, entrant, running)

    async def _active(self, bench: Bench, entrant: Entrant, running: Running) -> Sample:
        """Its share of a connection and its upstream request are part of it."""
        await self._converse(bench, entrant, running, 100)
        before = total_allocated_bytes(running.pids())
        seconds = 3.0
        words = [*entrant.ws, *streaming(STREAMS, 2.0, seconds, ramp_s=3.0)]
        loading = asyncio.create_task(bench.load(running, words, seconds=seconds))
        await asyncio.sleep(3.0 + seconds)
        during = total_allocated_bytes(running.pids())
        load = await loading
        return Sample({"each_bytes": (during - before) / STREAMS, "count": STREAMS}, {}, load.problems())

    async def _idle(self, bench: Bench, entrant: Entrant, running: Running) -> Sample:
        """The first ones leave their workspace to the others, and SQLite's cache is full; nobody reads them any
        more."""
        for _ in range(WARM_UPS):
            await self._converse(bench, entrant, running, COUNT)
        before = total_allocated_bytes(running.pids())
        problems = await self._converse(bench, entrant, running, COUNT)
        each_bytes = (total_allocated_bytes(running.pids()) - before) / COUNT
        return Sample({"each_bytes": each_bytes, "count": COUNT}, {}, problems)

    async def _converse(self, bench: Bench, entrant: Entrant, running: Running, count: int) -> list[str]:
        """So many conversations of one question and a short answer, all but their log let go. Returns what went
        wrong."""
        words = [*entrant.ws, "--connections", 10, "--conversations", count // 10, "--once",
                 "--ramp", count / 300, "--message", "tokens=5 size=6"]  # fmt: skip
        load = await bench.load(running, words, seconds=60)
        await asyncio.sleep(SETTLE_S)
        return load.problems()
