"""How much is measured, and where it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

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


class Cores(NamedTuple):
    """The server has one for itself; the load client and the upstream share the other, as far as there are two."""

    server: int
    load: int
    upstream: int

    @classmethod
    def found(cls) -> Cores:
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[min(1, len(usable) - 1)], usable[min(2, len(usable) - 1)])


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
        return await load(running.port, words, pids=running.pids(), core=self.cores.load, timeout_s=span + 90)
