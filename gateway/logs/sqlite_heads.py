"""Where the conversations of a `SqliteLog` end, as far as its writer remembers them."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct

from gateway.logs.log import Head, Key, OpenTurn, Position
from gateway.logs.recent import Recent
from gateway.logs.sqlite_queries import find_conversation, last_in_segments

HEADS = 16384
"""Conversations whose head is remembered; for others it is looked up again (two index searches)."""
NEW = 0
"""The row id of a conversation without a row."""


class Known(Struct):
    """A conversation's row id and its `Head`, which a commit changes in place."""

    row: int = NEW
    seq: int = 0
    epoch: int = 0
    stale: bool = False
    open_turns: tuple[OpenTurn, ...] = ()

    def head(self) -> Head:
        return Head(self.seq, self.epoch, self.stale, self.open_turns)

    def advance(self, head: Head) -> None:
        self.seq, self.epoch, self.stale, self.open_turns = head.seq, head.epoch, head.stale, head.open_turns


class Heads:
    def __init__(self, db: sqlite3.Connection, recent: Recent) -> None:
        self._db = db
        self._recent = recent
        self._known: OrderedDict[Key, Known] = OrderedDict()
        self.get = self._known.get
        """What is remembered."""
        self.floor = 0
        """Rows with a lower one were written before an unclean stop."""

    def find(self, key: Key) -> Known:
        known = self.get(key)
        if known is None:
            known = self._load(key)
            if known.row != NEW:
                self.remember(key, known)
        return known

    def remember(self, key: Key, known: Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)

    def trim(self) -> None:
        """Forgets those that were looked up or whose row was written longest ago. Never within a commit, which has
        them in its hands."""
        while len(self._known) > HEADS:
            self._known.popitem(last=False)

    def forget_idle(self, keys: Iterable[Key]) -> None:
        """Conversations without open turns may stay so for days; their next message looks the head up."""
        for key in keys:
            known = self.get(key)
            if known is not None and not known.open_turns:
                del self._known[key]

    def clear(self) -> None:
        self._known.clear()

    def _load(self, key: Key) -> Known:
        found = find_conversation(self._db, key)
        if found is None:
            return Known()
        last = self._recent.last(key)
        at = last_in_segments(self._db, found.row) if last is None else Position(last.seq, last.epoch)
        if at is None:
            return Known(found.row, 0, found.epoch, True)
        return Known(found.row, at.seq, at.epoch, found.floor < self.floor, found.open_turns)
