"""What wakes a task that waits for something new, or for nothing to have come for a while."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung from anywhere on the loop, heard by one task. An event with a time-out does the same, but a time-out for
    each wait costs more than the wait: here one timer looks, now and then, whether the time is up."""

    __slots__ = ("_looks_at", "_loop", "_rung", "_timer", "_until", "_waiter")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = False
        self._until = 0.0
        self._timer: asyncio.Handle | None = None
        self._looks_at = 0.0
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hush(self) -> None:
        """Forgets that it was rung."""
        self._rung = False

    async def heard(self, within_s: float) -> bool:
        """Waits until it rings, if it hasn't since `hush`; False: it didn't, within that time. Safe to cancel."""
        if not self._rung:
            self._until = self._loop.time() + within_s
            if self._timer is None or self._until < self._looks_at:
                self._set_timer()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._rung

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self.close()
        self._looks_at = self._until
        self._timer = self._loop.call_at(self._until, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._until:
            self._set_timer()
        else:
            self._waiter.set_result(None)
