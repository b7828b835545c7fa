"""Joins small pieces of text, so that a fast model costs fewer frames. Pure: time is an argument.

The first piece of a generation goes out at once, and what is held goes out when it has grown to `max_chars`, when
its oldest character is `max_s` old (a timer's job: see `due_at`), and before any other frame.

What isn't read yet costs nothing. So the batcher also tells when reading again is worth while: when `max_chars`
should be there at the pace of the text so far, and `max_s` after the last read at the latest. What such a late read
brings has waited already, and goes out at once.

Text that comes so slowly that nothing would join it within `max_s` isn't held, and is read when it comes: to wait
would only make it late.

Late reads are due on a grid: at multiples of `max_s`, of a half, a quarter or an eighth of it, whatever is the least
that lets `max_chars` come together. So those that have a phase in common, as the conversations of one connection
have, are due together, and what they bring goes out in one write. Other groups of conversations have other phases, so
that not all are due in the same moment.
"""

from __future__ import annotations

import math

KEPT = 0.75
"""What of the past counts beside each new read in the measured pace."""
FINEST = 8
"""Parts of `max_s` in the finest grid."""
ROUNDING = 0.01
"""Of a step: who reads on the grid isn't due at once again because of the last digits of the time."""
PHASES, PHASE_S = 16, 0.005
"""So many are told apart, and so far apart they are."""
SPARSE = 0.9
"""Of `max_s`: with longer gaps between the pieces none is held."""
PAUSE = 2
"""Of `max_s`: a longer gap counts as this, so that after it the pace is soon known again."""
LATE_S = 0.002
"""Text that may have waited for so long before it was read comes from a late read."""


class Batcher:
    """`add` what was read, and send what that returns."""

    __slots__ = ("_chars", "_held", "_held_chars", "_max_chars", "_max_s", "_pieces", "_read_at", "_seconds",
                 "_started", "due_at")  # fmt: skip

    def __init__(self, max_chars: int, max_s: float) -> None:
        self._max_chars = max_chars
        self._max_s = max_s
        self._held: list[str] = []
        self._held_chars = 0
        self._started = False
        self._read_at = 0.0
        self._chars = self._pieces = self._seconds = 0.0
        """Of the text that was measured: what it took, too."""
        self.due_at: float | None = None
        """When the held text has to go out, on the clock of `now`; None when nothing is held."""

    def add(self, pieces: list[str], since: float, now: float) -> str:
        """Text that was read `now` and may have waited to be read from `since` on. Returns what goes out now: all that
        is held, or nothing yet."""
        text = pieces[0] if len(pieces) == 1 else "".join(pieces)
        chars = len(text)
        if self._started:
            self._chars = KEPT * self._chars + chars
            self._pieces = KEPT * self._pieces + len(pieces)
            self._seconds = KEPT * self._seconds + min(now - self._read_at, PAUSE * self._max_s)
        self._read_at = now
        late = now - since >= LATE_S
        if self._started and not late and not self._sparse and self._held_chars + chars < self._max_chars:
            self._held.append(text)
            self._held_chars += chars
            if self.due_at is None:
                self.due_at = now + self._max_s
            return ""
        self._started = True
        return self.flush() + text if self._held else text

    @property
    def _sparse(self) -> bool:
        return self._seconds >= SPARSE * self._max_s * self._pieces

    def flush(self) -> str:
        """All that is held."""
        text = "".join(self._held)
        self._held.clear()
        self._held_chars, self.due_at = 0, None
        return text

    def unread_s(self, now: float, group: int) -> float:
        """For how long nothing need be read: 0, or more than 0 and about `max_s` at most. Those of a `group`, any
        number, have their phase in common."""
        if not self._chars or self._sparse:
            return 0.0
        phase_s = group % PHASES * PHASE_S
        full_s = self._seconds / self._chars * (self._max_chars - self._held_chars)
        step_s, least_s = self._max_s, self._max_s / FINEST
        while step_s > least_s and full_s <= step_s / 2:
            step_s /= 2
        steps = (now - phase_s) / step_s + 1
        return math.floor(steps + ROUNDING) * step_s + phase_s - now
