"""Joins small pieces of text, so that a fast model costs fewer frames. Pure: time is an argument.

The first piece of a generation goes out at once, and what is held goes out when it has grown to `max_chars`, when
its oldest character is `max_s` old (a timer's job: see `due_at`), and before any other frame.
"""

from __future__ import annotations


class Batcher:
    """`add` returns the text to send now, or an empty string."""

    __slots__ = ("_held", "_held_chars", "_max_chars", "_max_s", "_started", "due_at")

    def __init__(self, max_chars: int, max_s: float) -> None:
        self._max_chars = max_chars
        self._max_s = max_s
        self._held: list[str] = []
        self._held_chars = 0
        self._started = False
        self.due_at: float | None = None
        """When the held text has to go out, on the clock of `now`; None when nothing is held."""

    def add(self, text: str, now: float) -> str:
        if not self._started:
            self._started = True
            return text
        self._held.append(text)
        self._held_chars += len(text)
        if self._held_chars >= self._max_chars:
            return self.flush()
        if self.due_at is None:
            self.due_at = now + self._max_s
        return ""

    def flush(self) -> str:
        """All that is held."""
        if not self._held:
            return ""
        text, self._held = "".join(self._held), []
        self._held_chars, self.due_at = 0, None
        return text
