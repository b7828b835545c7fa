"""How much is measured, and with what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from benchmarks.compare.cores import Cores
from benchmarks.compare.entrants import Running
from benchmarks.native.run import Load, NativeUpstream, load

SETTLE_S, POLL_S = 30.0, 0.1
_RUNS = count()


class Scale(NamedTuple):
    rounds: int
    seconds: float
    """Of one measurement."""
    quick: bool = False

    @classmethod
    def full(cls) -> Scale:
        return cls(rounds=3, seconds=4.0)

    @classmethod
    def fast(cls) -> Scale:
        return cls(rounds=1, seconds=2.0, quick=True)


class Bench(NamedTuple):
    """What a scenario measures with."""

    scale: Scale
    cores: Cores
    upstream: NativeUpstream

    async def load(
        self, running: Running, arguments: Sequence[object], *, seconds: float | None = None, settle: bool = True
    ) -> Load:
        """One run of the load client against it, in new conversations unless `arguments` name their `--prefix`.

        `settle`: waits at first until the upstream has nothing more to send, so that what goes on after the clients of
        the last one have left isn't measured. Raises `LoadFailedError`.
        """
        if settle:
            await self.settle()
        span = self.scale.seconds if seconds is None else seconds
        words = ["--prefix", f"c{next(_RUNS)}", *map(str, arguments), "--seconds", str(span)]
        store = [] if running.store_pid is None else [running.store_pid]
        pids = [*running.pids(), *store]
        seen = await load(running.port, words, pids=pids, core=self.cores.load, timeout_s=span + 90)
        own = len(pids) - len(store)
        return replace(seen, cpu_s=seen.cpu_s[:own], store_cpu_s=sum(seen.cpu_s[own:]))

    async def settle(self) -> None:
        """Waits until the upstream has nothing more to send, or half a minute."""
        for _ in range(int(SETTLE_S / POLL_S)):
            if not (await self.upstream.stats())["streams"]:
                return
            await asyncio.sleep(POLL_S)
