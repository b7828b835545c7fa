"""A reader that is too slow: it reads so many bytes a second, or stops for a while in the middle of an answer."""

from __future__ import annotations

import asyncio

from benchmarks.load.plan import Plan

TICK_S = 0.1


class SlowReader:
    """Of one connection; `attach` for each new transport of it."""

    def __init__(self, plan: Plan) -> None:
        self._rate = plan.slow_bytes_per_s
        self._stop_s = plan.slow_stop_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._budget = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._free = False
        self._armed = True
        """It hasn't stopped in this answer yet."""
        self.stopped = False
        """It isn't reading at present."""

    def attach(self, transport: asyncio.Transport) -> None:
        self._transport, self.stopped, self._budget = transport, False, self._rate * TICK_S
        self._cancel()

    def took(self, size_bytes: int) -> None:
        """So much was read."""
        if self._rate and not self._free:
            self._budget -= size_bytes
            if self._budget <= 0:
                self._stop(-self._budget / self._rate + TICK_S)

    def token(self) -> None:
        """A token of an answer came."""
        if not self._rate and self._armed and not self._free:
            self._armed = False
            self._stop(self._stop_s)

    def answered(self) -> None:
        self._armed = True

    def lost(self) -> None:
        """The connection is gone."""
        self._transport, self.stopped = None, False
        self._cancel()

    def free(self) -> None:
        """Reads like everybody else from here on, so that what it missed can be checked."""
        self._free = True
        self._go_on()

    def _stop(self, seconds: float) -> None:
        if self._transport is not None and not self.stopped and not self._transport.is_closing():
            self._transport.pause_reading()
            self.stopped = True
            self._timer = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._cancel()
        if self.stopped and self._transport is not None and not self._transport.is_closing():
            self._budget = self._rate * TICK_S
            self.stopped = False
            self._transport.resume_reading()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
