"""One timer for all connections of a process.

A timer handle per connection costs half a KiB and an entry in the loop's heap, and nearly every one of them is
cancelled or fires only to find that nothing is wrong. So deadlines are rounded up to ticks, and those of one tick
share a bucket: a coarse timing wheel (Varghese and Lauck, 1987, scheme 6) in a dict. The timer runs only while
something is watched.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol

NOT_WATCHED: Final = -1
MAX_CHECKS_PER_TURN: Final = 256
"""Connections that were opened together fall due together: more than these wait for the next turn of the loop."""


class Watched(Protocol):
    """Something that has to be looked at now and then."""

    bucket: int
    """Kept by `Keepalive`, in ticks; `NOT_WATCHED` at first. It is always the one bucket that holds the object."""

    def check(self, now: float) -> float | None:
        """Looks after itself at loop time `now`, without blocking or raising. Returns the loop time of the next
        check; None: none is needed."""
        ...


class Keepalive:
    """Calls `check` of each watched object soon after its time: at most one tick late, and never early.

    Not thread-safe: it belongs to one event loop.
    """

    __slots__ = ("_buckets", "_tick_s", "_timer", "now")

    def __init__(self, tick_s: float = 1.0) -> None:
        self.now = 0.0
        """Loop time of the latest tick: a clock that costs nothing to read, for what may be off by a tick."""
        self._tick_s = tick_s
        self._buckets: dict[int, set[Watched]] = {}
        self._timer: asyncio.Handle | None = None

    def watch(self, watched: Watched, at: float) -> None:
        """Has `watched` checked at loop time `at`, instead of when it would have been."""
        bucket = math.ceil(at / self._tick_s)
        if watched.bucket == bucket:
            return
        self.forget(watched)
        watched.bucket = bucket
        self._buckets.setdefault(bucket, set()).add(watched)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self.now = loop.time()
            self._timer = loop.call_later(self._tick_s, self._sweep)

    @staticmethod
    def after(seconds: float) -> float:
        """The loop time that many seconds from now, exactly."""
        return asyncio.get_running_loop().time() + seconds

    def forget(self, watched: Watched) -> None:
        """Idempotent."""
        if watched.bucket != NOT_WATCHED:
            self._buckets[watched.bucket].discard(watched)
            watched.bucket = NOT_WATCHED

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        done = self._check_due()
        if not done:
            self._timer = loop.call_soon(self._sweep)
        elif self._buckets:
            self._timer = loop.call_later(self._tick_s, self._sweep)
        else:
            self._timer = None

    def _check_due(self) -> bool:
        """Returns False when some had to be left for the next turn of the loop."""
        now, checks_left = self.now, MAX_CHECKS_PER_TURN
        for index in sorted(index for index in self._buckets if index * self._tick_s <= now):
            bucket = self._buckets[index]
            while bucket:
                if checks_left == 0:
                    return False
                checks_left -= 1
                watched = bucket.pop()
                watched.bucket = NOT_WATCHED
                again = watched.check(now)
                if again is not None:
                    # Not before the next tick, so that this loop ends whatever `check` asks for.
                    self.watch(watched, max(again, now + self._tick_s))
            del self._buckets[index]
        return True
