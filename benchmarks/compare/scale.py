"""How much is measured, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from benchmarks.compare.cores import Cores
from benchmarks.compare.entrants import Running
from benchmarks.native.run import Load, NativeUpstream, load

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

    async def load(self, running: Running, arguments: Sequence[object], *, seconds: float | None = None) -> Load:
        """One run of the load client against it, in new conversations unless `arguments` name their `--prefix`.

        Raises `LoadFailedError`.
        """
        span = self.scale.seconds if seconds is None else seconds
        words = ["--prefix", f"c{next(_RUNS)}", *map(str, arguments), "--seconds", str(span)]
        store = [] if running.store_pid is None else [running.store_pid]
        pids = [*running.pids(), *store]
        seen = await load(running.port, words, pids=pids, core=self.cores.load, timeout_s=span + 90)
        own = len(pids) - len(store)
        return replace(seen, cpu_s=seen.cpu_s[:own], store_cpu_s=sum(seen.cpu_s[own:]))
