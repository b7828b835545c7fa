"""How long a model is waited for: a time-out whose end moves with every token.

A timer that is set anew for each would cost more than the token, above all with ten thousand of them in the loop's
heap. So the timer stays where it is, and looks at what has become of the end when it goes off.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Self


class Patience:
    """An asynchronous context manager whose body ends by `TimeoutError` when loop time has come to `until`.

    `until` may be moved later by assignment, at no cost. Only what may be earlier than what was asked for last, or
    come after `math.inf`, has to go through `wait_until`.
    """

    __slots__ = ("_looks_at", "_loop", "_timeout", "_timer", "until")

    def __init__(self) -> None:
        self.until = math.inf
        """`math.inf`: there is no end."""
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf

    def wait_until(self, until: float) -> None:
        """Any time, also an earlier one than before."""
        self.until = until
        if until < self._looks_at:
            self._set(until)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.until = math.inf
        self._set(math.inf)
        await self._timeout.__aexit__(kind, problem, traceback)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = when
        self._timer = None if when == math.inf else self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer, self._looks_at = None, math.inf
        if self._loop.time() >= self.until:
            if not self._timeout.expired():
                self._timeout.reschedule(self.until)
        elif self.until < math.inf:
            self._set(self.until)
