"""The blocking half of `SqliteLog`: everything that its writer's thread does, and the reads of its readers.

A commit of a few tokens each for hundreds of conversations would touch one page of every conversation. So it is one
row in the small table `recent` instead, and what is there is kept in memory, too; when it is `RECENT_BYTES` long, it
moves to `segments`, where each conversation's entries lie together and the tokens of a turn share a row. (The idea
of the log-structured merge-tree, O'Neil et al. 1996, with one level.) The row in `conversations` is written only
when turns begin or end, or the epoch changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from gateway.logs import fencing, segment
from gateway.logs.log import Append, Head, Key, LogUnavailable
from gateway.logs.recent import Recent
from gateway.logs.sqlite_file import checkpoint, explained, open_database
from gateway.logs.sqlite_queries import (
    find_conversation,
    key_of,
    last_in_segments,
    over_since,
    read_segments,
    with_open_turns,
)
from protocol.frames import Entry

Synchronous: TypeAlias = Literal["auto", "full", "normal", "off"]

RECENT_BYTES = 256 << 10
"""Bound of the table `recent`. In memory it is some five times that, as entries are objects there. A larger one makes
larger segments, but a commit that moves it takes longer: some 5 ms at this size with 100 conversations, 20 ms with
1,000."""
SEGMENT_BYTES = 16 << 10
"""Content of one segment, but for an entry that is larger on its own: what a read at most decodes in vain."""
HEADS = 16384
"""Conversations whose head is remembered; for others it is looked up again (two index searches)."""
EXPIRE_AT_ONCE = 100
"""Conversations erased in one transaction, between which commits get their turn."""

_StoredAppend: TypeAlias = tuple[int, int, int, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode_appends = msgspec.msgpack.Decoder(list[_StoredAppend]).decode
_NEW = 0
"""The row id of a conversation without a row."""

_SAVE_CONVERSATION = """
INSERT INTO conversations (id, owner, conversation_id, epoch, floor, open_turns, updated_ms, erased)
VALUES (?, ?, ?, ?, ?, ?, ?, 0)
ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, floor = excluded.floor, open_turns = excluded.open_turns,
    updated_ms = excluded.updated_ms, erased = 0
"""


class _Work:
    """What one commit is about to write. Dropped when that fails, so that nothing has to be undone."""

    def __init__(self) -> None:
        self.heads: dict[Key, tuple[int, Head]] = {}
        self.appends: list[tuple[int, Append]] = []
        self.changed: dict[Key, Append] = {}
        """Conversations whose row has to be written, with their last append."""
        self.durable = False
        """It holds more than tokens."""


class Store:
    """One open database. Not thread-safe, but for `recent`. Every method may raise `LogUnavailable`."""

    def __init__(self, path: Path, synchronous: Synchronous, recent: Recent) -> None:
        self._path = path
        self._synchronous = synchronous
        self._level = "FULL"
        self._recent = recent
        self._heads: OrderedDict[Key, tuple[int, Head]] = OrderedDict()
        self._next_id = 1
        self._in_doubt = False
        """A transaction failed: what is in memory is read from the file again before anything is done."""
        self._failing = False
        """Nothing was written since a transaction failed."""
        self._inode = 0
        self.db = open_database(path)
        try:
            self.unclean, self._floor = self._start()
        except BaseException:
            self.db.close()
            raise

    def _start(self) -> tuple[bool, int]:
        """Counts an unclean stop, and marks this run unclean until `close` says otherwise.

        Both marks are synced whatever the mode: an unclean stop that nobody noticed would let epochs be used twice.
        """
        with explained(self._path):
            self._inode = self._path.stat().st_ino
            clean, floor = self.db.execute("SELECT clean, floor FROM meta").fetchone()
        floor += not clean
        with self._transaction("FULL"):
            self.db.execute("UPDATE meta SET clean = 0, floor = ?", (floor,))
        self._recover()
        return not clean, floor

    def close(self) -> None:
        """Marks a clean stop. The connection is closed in any case."""
        try:
            self._mend()
            with self._transaction("FULL"):
                self._flush()
                self.db.execute("UPDATE meta SET clean = 1")
            self._recent.clear(erased=False)
            with explained(self._path):
                checkpoint(self.db)
        finally:
            self.db.close()

    # ------------------------------------------------------------ appending

    def commit(self, batch: Sequence[Append]) -> list[bool]:
        self._mend()
        work = _Work()
        with explained(self._path):
            verdicts = [self._stage(append, work) for append in batch]
        if work.appends:
            self._write(work)
        return verdicts

    def _stage(self, append: Append, work: _Work) -> bool:
        key = append.key
        row, head = work.heads.get(key) or self._heads.get(key) or self._find(key)
        if fencing.simply_continues(head, append):
            work.heads[key] = row, Head(append.entries[-1].seq, head.epoch, False, head.open_turns)
            work.appends.append((row, append))
            return True
        fencing.check(append)
        if not fencing.takes(head, append):
            return fencing.may_be_stored(head, append) and self._is_stored(append, work)
        plain = fencing.only_tokens(append.entries)
        after = fencing.advanced(head, append, plain=plain)
        if row == _NEW:
            row, self._next_id = self._next_id, self._next_id + 1
        if head.seq == 0 or after.epoch != head.epoch or after.open_turns != head.open_turns:
            work.changed[key] = append
            plain = False
        work.durable = work.durable or not plain
        work.heads[key] = row, after
        work.appends.append((row, append))
        return True

    def _is_stored(self, append: Append, work: _Work) -> bool:
        """Whether the log, with what this commit adds to it, has just these entries in their places."""
        key, after, count = append.key, append.after.seq, len(append.entries)
        limit_bytes = sum(map(segment.content_bytes, append.entries))
        found, _ = read_segments(self.db, key, after, limit_bytes)
        later = self._recent.after(key, after, count)
        for _, staged in work.appends:
            if staged.key == key:
                later += staged.entries
        found += (entry for entry in later if entry.seq > after + len(found))
        return found[:count] == list(append.entries)

    def _write(self, work: _Work) -> None:
        stored = [
            (row, append.entries[0].seq, append.entries[0].epoch, segment.encode(append.entries))
            for row, append in work.appends
        ]
        packed = _encode(stored)
        flush = self._recent.bytes + len(packed) > RECENT_BYTES
        with self._transaction(self._level_for(durable=work.durable)):
            if flush:
                self._flush()
            for key, append in work.changed.items():
                self._save(key, *work.heads[key], append.entries[-1])
            self.db.execute("INSERT INTO recent (appends) VALUES (?)", (packed,))
        self._failing = False
        if flush:
            self._forget_idle([key for key, _ in self._recent.all()])
        self._recent.add([(append.key, append.entries) for _, append in work.appends], len(packed), afresh=flush)
        for key in work.changed:
            self._remember(key, work.heads[key])
        self._heads.update(work.heads)  # those that are there already keep their age

    def _save(self, key: Key, row: int, head: Head, last: Entry) -> None:
        turns = _encode(head.open_turns) if head.open_turns else None
        self.db.execute(_SAVE_CONVERSATION, (row, *key, head.epoch, self._floor, turns, _timestamp(last)))

    def _flush(self) -> None:
        """Moves `recent` to segments, within a transaction; the caller drops it from memory after the commit."""
        for key, entries in self._recent.all():
            row, head = self._find(key)
            for piece in segment.split(entries, SEGMENT_BYTES):
                self.db.execute(
                    "INSERT INTO segments (conversation, last_seq, first_seq, epoch, entries) VALUES (?, ?, ?, ?, ?)",
                    (row, piece[-1].seq, piece[0].seq, piece[0].epoch, segment.encode(piece)),
                )
            if not head.open_turns:  # else the end of the turn will tell
                updated_ms = _timestamp(entries[-1])
                self.db.execute("UPDATE conversations SET updated_ms = ? WHERE id = ?", (updated_ms, row))
        self.db.execute("DELETE FROM recent")

    # ------------------------------------------------------------ heads

    def head(self, key: Key) -> Head:
        self._mend()
        with explained(self._path):
            return self._find(key)[1]

    def _find(self, key: Key) -> tuple[int, Head]:
        found = self._heads.get(key)
        if found is None:
            found = self._load(key)
            if found[0] != _NEW:
                self._remember(key, found)
        return found

    def _remember(self, key: Key, found: tuple[int, Head]) -> None:
        self._heads[key] = found
        self._heads.move_to_end(key)
        while len(self._heads) > HEADS:
            self._heads.popitem(last=False)

    def _forget_idle(self, keys: Iterable[Key]) -> None:
        """Conversations without open turns may stay so for days; their next message looks the head up."""
        for key in keys:
            found = self._heads.get(key)
            if found is not None and not found[1].open_turns:
                del self._heads[key]

    def _load(self, key: Key) -> tuple[int, Head]:
        found = find_conversation(self.db, key)
        if found is None:
            return _NEW, Head()
        last = self._recent.last(key) or last_in_segments(self.db, found.row)
        if last is None:
            return found.row, Head(0, found.epoch, True)
        return found.row, Head(*last, found.floor < self._floor, found.open_turns)

    def unfinished(self) -> list[Key]:
        self._mend()
        with explained(self._path):
            return with_open_turns(self.db)

    # ------------------------------------------------------------ erasing

    def erase(self, key: Key) -> None:
        if self.head(key).seq:
            self._erase([key])

    def expire(self, before_ms: int) -> list[Key]:
        """Erases at most `EXPIRE_AT_ONCE` conversations; none left when it returns fewer."""
        self._mend()
        if self._recent.bytes:
            with self._transaction(self._level_for(durable=False)):
                self._flush()  # so that `updated_ms` is exact
            self._recent.clear(erased=False)
        with explained(self._path):
            keys = over_since(self.db, before_ms, EXPIRE_AT_ONCE)
        if keys:
            self._erase(keys)
        return keys

    def _erase(self, keys: Iterable[Key]) -> None:
        gone = {}
        with self._transaction(self._level_for(durable=True)):
            self._flush()
            for key in keys:
                row, head = self._find(key)
                self.db.execute("DELETE FROM segments WHERE conversation = ?", (row,))
                self.db.execute(
                    "UPDATE conversations SET epoch = ?, open_turns = NULL, updated_ms = 0, erased = 1 WHERE id = ?",
                    (head.epoch, row),
                )
                gone[key] = row, fencing.erased(head)
        self._recent.clear(erased=True)
        for key, found in gone.items():
            self._remember(key, found)
        with explained(self._path):
            checkpoint(self.db)

    # ------------------------------------------------------------ faults

    def ping(self) -> None:
        """Raises when nothing could be written: after a write that failed it makes one of its own."""
        with explained(self._path):
            if self._path.stat().st_ino != self._inode:
                raise LogUnavailable(f"{self._path} was replaced by another file; restart the gateway")
        self._mend()
        with self._transaction(self._level_for(durable=self._failing)):
            if self._failing:
                self.db.execute("INSERT INTO recent VALUES (-1, zeroblob(?))", (SEGMENT_BYTES,))
                self.db.execute("DELETE FROM recent WHERE id = -1")
        self._failing = False

    @contextmanager
    def _transaction(self, level: str) -> Iterator[None]:
        """One write transaction, synced as `level` says. When it fails it is rolled back, and memory is in doubt."""
        try:
            with explained(self._path):
                if level != self._level:
                    self.db.execute(f"PRAGMA synchronous = {level}")
                    self._level = level
                self.db.execute("BEGIN IMMEDIATE")
                yield
                self.db.execute("COMMIT")
        except BaseException:
            self._in_doubt = self._failing = True
            with explained(self._path):
                if self.db.in_transaction:  # SQLite itself rolls back after some errors
                    self.db.execute("ROLLBACK")
            raise

    def _level_for(self, *, durable: bool) -> str:
        if self._synchronous == "auto":
            return "FULL" if durable else "NORMAL"
        return self._synchronous.upper()

    def _mend(self) -> None:
        if self._in_doubt:
            self._recover()
            self._in_doubt = False

    def _recover(self) -> None:
        """Makes memory what the file says."""
        keys: dict[int, Key] = {}
        appended: list[tuple[Key, list[Entry]]] = []
        size_bytes = 0
        self._heads.clear()
        with explained(self._path):
            for (packed,) in self.db.execute("SELECT appends FROM recent ORDER BY id"):
                size_bytes += len(packed)
                for row, first_seq, epoch, stored in _decode_appends(packed):
                    key = keys.get(row) or keys.setdefault(row, key_of(self.db, row))
                    appended.append((key, segment.decode(stored, key.conversation_id, first_seq, epoch)))
            self._next_id = 1 + self.db.execute("SELECT coalesce(max(id), 0) FROM conversations").fetchone()[0]
        self._recent.add(appended, size_bytes, afresh=True)


def _timestamp(entry: Entry) -> int:
    return 0 if entry.metadata is None else entry.metadata.timestamp
