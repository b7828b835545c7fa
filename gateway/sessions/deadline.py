"""A moment that is put off again and again, as the end of a silence is by every token.

A timer that is set anew each time would cost more than what puts it off, above all with ten thousand of them in the
loop's heap. So the timer stays where it is, and looks at what has become of the moment when it goes off.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


def _nothing() -> None:
    """What a closed deadline does: it holds nothing of who had it."""


class Deadline:
    """Calls `passed` on the event loop when loop time has come to `until`, once for each time that it was set.

    `until` may be moved later by assignment, at no cost. Only what may be earlier than what was asked for last, or
    come after `math.inf` or after it has passed, has to go through `wait_until`. Until `close` it holds its owner.
    """

    __slots__ = ("_looks_at", "_loop", "_passed", "_timer", "until")

    def __init__(self, passed: Callable[[], object]) -> None:
        self.until = math.inf
        """`math.inf`: never."""
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf

    def wait_until(self, until: float) -> None:
        """Any time, also an earlier one than before."""
        self.until = until
        if until < self._looks_at:
            self._set(until)

    def close(self) -> None:
        """It doesn't pass any more. Idempotent."""
        self._passed = _nothing
        self.until = math.inf
        self._set(math.inf)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = when
        self._timer = None if when == math.inf else self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer, self._looks_at = None, math.inf
        if self._loop.time() >= self.until:
            self._passed()
        elif self.until < math.inf:
            self._set(self.until)
