"""Paced reads: many connections that aren't read before a certain time, and one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

TICK_S = 0.005
"""Times are rounded up to this, so that what is due at about the same time is read in one turn of the loop."""

ROUNDING = 0.01
"""Of a tick: a time that is meant to be on one isn't moved to the next by its last digits."""


class Paced(Protocol):
    def poll(self) -> None:
        """Its time has come. Must not raise."""
        ...


class Pacer:
    """Belongs to one event loop. Nothing is ever taken back: who has no more use for its poll ignores it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: dict[int, list[Paced]] = {}
        self._timer: asyncio.Handle | None = None
        self._armed_for = 0
        """The tick of the timer."""

    def later(self, paced: Paced, seconds: float) -> None:
        """Polls `paced` once, `seconds` from now or up to a tick later."""
        tick = math.ceil((self._loop.time() + seconds) / TICK_S - ROUNDING)
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = []
            self._arm()
        due.append(paced)

    def _arm(self) -> None:
        tick = min(self._due)
        if self._timer is not None:
            if self._armed_for <= tick:
                return
            self._timer.cancel()
        self._armed_for = tick
        self._timer = self._loop.call_at(tick * TICK_S, self._poll_due)

    def _poll_due(self) -> None:
        self._timer = None
        # The loop's clock may stand a little before the time that the timer was set for.
        now = self._loop.time() + TICK_S / 2
        for tick in sorted(tick for tick in self._due if tick * TICK_S <= now):
            for paced in self._due.pop(tick):
                paced.poll()
        if self._due:
            self._arm()
