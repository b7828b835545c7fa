"""The entries of a `SqliteLog` that are committed but not yet in segments (see `sqlite_store`)."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Sequence
from itertools import islice
from operator import itemgetter
from threading import Lock
from typing import NamedTuple

from gateway.logs.log import Key
from gateway.logs.packed import Staged
from protocol.frames import Entry

SORT_APPENDS = 500
"""So many are sorted by conversation at once: it takes some 0.2 ms."""


class _Commit(NamedTuple):
    number: int
    """In the order of commits."""
    slot: int
    size_bytes: int


class Recent:
    """What the table `recent` holds, in memory. Changed by the writer's thread, read by any.

    Of each conversation it has the last entries without a gap. A row of the table is a *slot*: it holds one commit, and
    is free for another one once all of that has moved to segments. Conversations move in the order in which the
    commits have come that hold them back.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[Key, list[Entry]] = {}
        self._since: OrderedDict[Key, int] = OrderedDict()
        """The commit with a conversation's first entry, oldest first."""
        self._unsorted: list[tuple[int, Sequence[Staged]]] = []
        """Commits that aren't in `_entries` yet. Few are asked for, and many at once go three times as fast."""
        self._unsorted_appends = 0
        self._commits: deque[_Commit] = deque()
        self._free: list[int] = []
        self._slots = 0
        self._number = 0
        self.bytes = 0
        """What the commits take whose slots aren't free."""
        self.erasures = 0
        """Goes up with every erasure: what was read before one and what was read after it don't belong together."""

    # ------------------------------------------------------------ for any thread

    def after(self, key: Key, seq: int, most: int) -> list[Entry]:
        """At most `most` entries with a `seq` over `seq`. The first isn't `seq` + 1 when that is in a segment."""
        with self._lock:
            self._sort()
            entries = self._entries.get(key)
            if not entries:
                return []
            start = max(0, seq + 1 - entries[0].seq)
            return entries[start : start + most]

    def last(self, key: Key) -> Entry | None:
        with self._lock:
            self._sort()
            entries = self._entries.get(key)
            return entries[-1] if entries else None

    def epoch_at(self, key: Key, seq: int) -> int | None:
        found = self.after(key, seq - 1, 1)
        return found[0].epoch if found and found[0].seq == seq else None

    def _sort(self) -> None:
        if not self._unsorted_appends:
            return
        known = self._entries
        for number, staged in self._unsorted:
            for _, key, entries in staged:
                there = known.get(key)
                if there is not None:
                    there.extend(entries)
                else:
                    known[key] = list(entries)
                    self._since[key] = number
        self._unsorted, self._unsorted_appends = [], 0

    # ------------------------------------------------------------ for the writer's thread only

    def take_slot(self) -> int:
        """For the commit that is about to be written."""
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots

    def add(self, slot: int, size_bytes: int, staged: Sequence[Staged]) -> None:
        """Takes what was committed."""
        self._number += 1
        self._commits.append(_Commit(self._number, slot, size_bytes))
        self.bytes += size_bytes
        with self._lock:
            self._unsorted.append((self._number, staged))
            self._unsorted_appends += len(staged)
            if self._unsorted_appends > SORT_APPENDS:
                self._sort()

    def oldest(self, count: int) -> list[tuple[Key, list[Entry]]]:
        """All entries of at most `count` conversations: those that hold back the oldest commits."""
        with self._lock:
            self._sort()
            return [(key, self._entries[key]) for key in islice(self._since, count)]

    def without(self, gone: Container[Key]) -> list[tuple[Key, list[Entry]]]:
        with self._lock:
            self._sort()
            return [found for found in self._entries.items() if found[0] not in gone]

    def drop(self, moved: Iterable[tuple[Key, Sequence[Entry]]]) -> None:
        """What `oldest` has given is in segments now. Nothing was added in between."""
        with self._lock:
            for key, _ in moved:
                del self._entries[key], self._since[key]
            self._release()

    def load(self, sizes: dict[int, int], staged: Iterable[tuple[int, Staged]], *, erased: bool = False) -> None:
        """Begins anew: with slots of these `sizes` in bytes, and what stands in which of them. Appends of one
        conversation come in their order; the slots needn't."""
        entries: dict[Key, list[Entry]] = {}
        since: dict[Key, int] = {}
        for slot, (_, key, some) in staged:
            entries.setdefault(key, []).extend(some)
            since[key] = min(slot, since.get(key, slot))
        with self._lock:
            self._entries = entries
            self._since = OrderedDict(sorted(since.items(), key=itemgetter(1)))
            self._unsorted, self._unsorted_appends = [], 0
            self._commits = deque(_Commit(slot, slot, size_bytes) for slot, size_bytes in sorted(sizes.items()))
            self._slots = self._number = max(sizes, default=0)
            self._free = []
            self.bytes = sum(sizes.values())
            self.erasures += erased
            self._release()

    def _release(self) -> None:
        """Frees the slots of which everything has moved. All commits are sorted."""
        oldest = next(iter(self._since.values()), self._number + 1)
        while self._commits and self._commits[0].number < oldest:
            commit = self._commits.popleft()
            self._free.append(commit.slot)
            self.bytes -= commit.size_bytes
