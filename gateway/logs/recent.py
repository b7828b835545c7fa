"""The entries of a `SqliteLog` that are committed but not yet in segments (see `sqlite_store`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock

from gateway.logs.log import Key, Position
from protocol.frames import Entry


class Recent:
    """What the table `recent` holds, in memory. Changed by the writer's thread, read by any.

    Of each conversation it has the last entries without a gap. `bytes` is what the table takes; the writer moves
    everything to segments when that reaches its bound.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[Key, list[Entry]] = {}
        self.bytes = 0
        self.erasures = 0
        """Goes up with every erasure: what was read before one and what was read after it don't belong together."""

    def after(self, key: Key, seq: int, most: int) -> list[Entry]:
        """At most `most` entries with a `seq` over `seq`. The first isn't `seq` + 1 when that is in a segment."""
        with self._lock:
            entries = self._entries.get(key)
            if not entries:
                return []
            start = max(0, seq + 1 - entries[0].seq)
            return entries[start : start + most]

    def last(self, key: Key) -> Position | None:
        with self._lock:
            entries = self._entries.get(key)
            return Position(entries[-1].seq, entries[-1].epoch) if entries else None

    def epoch_at(self, key: Key, seq: int) -> int | None:
        found = self.after(key, seq - 1, 1)
        return found[0].epoch if found and found[0].seq == seq else None

    def all(self) -> list[tuple[Key, list[Entry]]]:
        """Everything; for the writer's thread only, which alone may change the lists."""
        return list(self._entries.items())

    def add(self, appended: Iterable[tuple[Key, Sequence[Entry]]], size_bytes: int, *, afresh: bool) -> None:
        """Takes what was committed, after dropping what was there if `afresh`."""
        with self._lock:
            if afresh:
                self._entries, self.bytes = {}, 0
            for key, entries in appended:
                if (known := self._entries.get(key)) is not None:
                    known.extend(entries)
                else:
                    self._entries[key] = list(entries)
            self.bytes += size_bytes

    def clear(self, *, erased: bool) -> None:
        with self._lock:
            self._entries, self.bytes = {}, 0
            self.erasures += erased
