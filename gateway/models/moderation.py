"""Under load, one turn of the event loop for several reads.

A loop that wakes for each token pays more for the wake than for the token. Network cards have the same trouble, and
the same cure: interrupt moderation. While more than `BUSY_PER_S` reads come in a second, the loop rests after a turn
until `TURN_S` have passed since it last did; what comes meanwhile is read in one turn. With fewer reads, or when its
turns are longer than that anyway, it never rests. So nothing waits longer than `TURN_S`, and only while it is busy.

The rest blocks the loop, on purpose: instead of sleeping until anything comes, it sleeps until enough has come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BUSY_PER_S = 3000.0
TURN_S = 0.001
WINDOW_S = 0.02
"""The rate is that of the last so many seconds."""


class Moderation:
    """Of one event loop: tell it of each `read`."""

    def __init__(
        self, *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sleep = sleep
        self._clock = clock
        self._reads = 0
        self._since = 0.0
        self._busy = False
        self._scheduled = False
        self._unserved = False
        self._rested_at = 0.0

    def read(self, now: float) -> None:
        """Something was read at loop time `now`."""
        self._reads += 1
        if now - self._since >= WINDOW_S:
            self._busy = self._reads > BUSY_PER_S * (now - self._since)
            self._reads, self._since = 0, now
        if self._busy:
            self._unserved = True
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        """Comes around until nothing was read since the last time, so that all that was read has been sent on."""
        if self._unserved:
            self._unserved = False
            self._loop.call_soon(self._end_turn)
            return
        self._scheduled = False
        left_s = self._rested_at + TURN_S - self._clock()
        if left_s > 0:
            self._sleep(left_s)
        self._rested_at = self._clock()
