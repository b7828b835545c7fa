"""The blocking half of `SqliteLog`: everything that its writer's thread does, and the reads of its readers.

A commit of a few tokens each for hundreds of conversations would touch one page of every conversation. So it is one
row in the table `recent` instead, and what is there is kept in memory, too. From there one conversation after the
other moves to `segments`, where each one's entries lie together and the tokens of a turn share a row. (The idea of
the log-structured merge-tree, O'Neil et al. 1996, with one level.) A row whose conversations have all moved is used
again: so a commit of tokens is one statement, and mostly writes one page. The row in `conversations` is written only
when turns begin or end, or the epoch changes.

How many conversations a commit moves is in proportion to what it brings and to how far `recent` is over its bound.
So no commit takes long, and `recent` grows with the conversations that stream: each has a few entries more there when
it moves than it would have under a fixed bound, and to move it pays. For a turn that ends nothing is gained by
waiting, so each makes one conversation move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from gateway.logs import fencing, segment
from gateway.logs.log import Append, Head, Key, LogUnavailable
from gateway.logs.packed import Staged, pack
from gateway.logs.recent import Recent
from gateway.logs.sqlite_file import checkpoint, explained, open_database
from gateway.logs.sqlite_heads import NEW, Heads, Known
from gateway.logs.sqlite_queries import (
    over_since,
    read_recent,
    read_segments,
    with_open_turns,
)
from protocol.frames import Entry

Synchronous: TypeAlias = Literal["auto", "full", "normal", "off"]

RECENT_BYTES = 256 << 10
"""Up to here nothing moves. In memory it is some five times that, as entries are objects there, but those of running
turns are shared with their feeds."""
RECENT_GROWTH = 32
"""At so many times `RECENT_BYTES` more, a conversation moves for every append that comes: it can't grow further. 100
conversations of one token each make it 1.2 times as large, 1,000 some 2.6 and 10,000 some 6 times."""
APPEND_BYTES = 1024
"""Larger appends count as several, so that what is bounded is bytes, too."""
MOVE_AT_ONCE = 16
"""So many conversations make a commit of tokens more than one statement."""
SEGMENT_BYTES = 16 << 10
"""Content of one segment, but for an entry that is larger on its own: what a read at most decodes in vain."""
EXPIRE_AT_ONCE = 100
"""Conversations erased in one transaction, between which commits get their turn."""
KEPT_AT_ONCE = 64
"""Appends in a row of `recent` that is written anew."""

_encode = msgspec.msgpack.Encoder().encode

_SAVE_CONVERSATION = """
INSERT INTO conversations (id, owner, conversation_id, epoch, floor, open_turns, updated_ms, erased)
VALUES (?, ?, ?, ?, ?, ?, ?, 0)
ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, floor = excluded.floor, open_turns = excluded.open_turns,
    updated_ms = excluded.updated_ms, erased = 0
"""
_KEEP = "INSERT OR REPLACE INTO recent (id, appends) VALUES (?, ?)"
_UPDATED = "UPDATE conversations SET updated_ms = ? WHERE owner = ? AND conversation_id = ?"
_MOVE = "INSERT INTO segments (conversation, last_seq, first_seq, epoch, entries) VALUES (?, ?, ?, ?, ?)"


class _Work:
    """What one commit is about to write."""

    def __init__(self) -> None:
        self.staged: list[Staged] = []
        self.changed: dict[Key, tuple[Known, Entry]] = {}
        """Conversations whose row has to be written, with their last entry."""
        self.durable = False
        """It holds more than tokens."""


class Store:
    """One open database. Not thread-safe, but for `recent`. Every method may raise `LogUnavailable`."""

    def __init__(self, path: Path, synchronous: Synchronous, recent: Recent) -> None:
        self._path = path
        self._synchronous = synchronous
        self._level = "FULL"
        self._recent = recent
        self._next_id = 1
        self._moves_due = 0.0
        self._in_doubt = False
        """Something failed: what is in memory is read from the file again before anything is done."""
        self._failing = False
        """Nothing was written since a transaction failed."""
        self._inode = 0
        self.db = open_database(path)
        self._heads = Heads(self.db, recent)
        try:
            self.unclean = self._start()
        except BaseException:
            self.db.close()
            raise

    def _start(self) -> bool:
        """Counts an unclean stop, and marks this run unclean until `close` says otherwise.

        Both marks are synced whatever the mode: an unclean stop that nobody noticed would let epochs be used twice.
        """
        with explained(self._path):
            self._inode = self._path.stat().st_ino
            clean, floor = self.db.execute("SELECT clean, floor FROM meta").fetchone()
        floor += not clean
        with self._transaction("FULL"):
            self.db.execute("UPDATE meta SET clean = 0, floor = ?", (floor,))
        self._heads.floor = floor
        self._recover()
        return not clean

    def close(self) -> None:
        """Marks a clean stop. The connection is closed in any case."""
        try:
            self._mend()
            with self._transaction("FULL"):
                self.db.execute("UPDATE meta SET clean = 1")
            self._recent.load({}, ())
            with explained(self._path):
                checkpoint(self.db)
        finally:
            self.db.close()

    # ------------------------------------------------------------ appending

    def commit(self, batch: Sequence[Append]) -> list[bool]:
        self._mend()
        self._in_doubt = True  # heads are ahead until all is written
        work = _Work()
        verdicts: list[bool] = []
        get, staged = self._heads.get, work.staged
        with explained(self._path):
            for append in batch:
                known = get(append.key)
                if (
                    known is not None
                    and not known.stale
                    and (end := fencing.simply_continues(known.seq, known.epoch, append))
                ):
                    known.seq = end
                    staged.append((known.row, append.key, append.entries))
                    verdicts.append(True)
                else:
                    verdicts.append(self._stage(append, work))
            if staged:
                self._write(work)
        self._in_doubt = False
        return verdicts

    def _stage(self, append: Append, work: _Work) -> bool:
        key = append.key
        known = self._heads.find(key)
        head = known.head()
        fencing.check(append)
        if not fencing.takes(head, append):
            return fencing.may_be_stored(head, append) and self._is_stored(append, work)
        plain = fencing.only_tokens(append.entries)
        after = fencing.advanced(head, append, plain=plain)
        if known.row == NEW:
            known.row, self._next_id = self._next_id, self._next_id + 1
            self._heads.remember(key, known)
        if head.seq == 0 or after.epoch != head.epoch or after.open_turns != head.open_turns:
            work.changed[key] = known, append.entries[-1]
            plain = False
        work.durable = work.durable or not plain
        known.advance(after)
        work.staged.append((known.row, key, append.entries))
        return True

    def _is_stored(self, append: Append, work: _Work) -> bool:
        """Whether the log, with what this commit adds to it, has just these entries in their places."""
        key, after, count = append.key, append.after.seq, len(append.entries)
        limit_bytes = sum(map(segment.content_bytes, append.entries))
        found, _ = read_segments(self.db, key, after, limit_bytes)
        later = self._recent.after(key, after, count)
        for _, staged_key, entries in work.staged:
            if staged_key == key:
                later += entries
        found += (entry for entry in later if entry.seq > after + len(found))
        return found[:count] == list(append.entries)

    def _write(self, work: _Work) -> None:
        packed = pack(work.staged)
        count = self._moves(work, len(packed))
        moving = self._recent.oldest(count) if count else []
        row = self._recent.take_slot(), packed
        level = self._level_for(durable=work.durable)
        if moving or work.changed:
            with self._transaction(level):
                self._move(moving)
                for key, (known, last) in work.changed.items():
                    self._save(key, known, last)
                self.db.execute(_KEEP, row)
        else:
            self._failing = True
            self._sync_as(level)
            self.db.execute(_KEEP, row)  # a transaction by itself
        self._failing = False
        if moving:
            self._recent.drop(moving)
            self._heads.forget_idle(key for key, _ in moving)
        self._recent.add(row[0], len(packed), work.staged)
        for key, (known, _) in work.changed.items():
            self._heads.remember(key, known)
        self._heads.trim()

    def _save(self, key: Key, known: Known, last: Entry) -> None:
        turns = _encode(known.open_turns) if known.open_turns else None
        self.db.execute(_SAVE_CONVERSATION, (known.row, *key, known.epoch, self._heads.floor, turns, _timestamp(last)))

    # ------------------------------------------------------------ moving to segments

    def _moves(self, work: _Work, size_bytes: int) -> int:
        """How many conversations move with a commit of so much."""
        over = self._recent.bytes / RECENT_BYTES - 1
        if over <= 0:
            self._moves_due = 0.0
            return 0
        self._moves_due += (len(work.staged) + size_bytes / APPEND_BYTES) * over / RECENT_GROWTH
        self._moves_due += sum(not known.open_turns for known, _ in work.changed.values())
        if self._moves_due < MOVE_AT_ONCE and not work.changed:
            return 0
        count = int(self._moves_due)
        self._moves_due -= count
        return count

    def _move(self, moving: Iterable[tuple[Key, Sequence[Entry]]]) -> None:
        """Within a transaction; the caller drops it from memory after the commit."""
        for key, entries in moving:
            known = self._heads.find(key)
            for piece in segment.split(entries, SEGMENT_BYTES):
                first, last = piece[0], piece[-1]
                self.db.execute(_MOVE, (known.row, last.seq, first.seq, first.epoch, segment.encode(piece)))
            if not known.open_turns:  # else the end of the turn will tell
                updated_ms = _timestamp(entries[-1])
                self.db.execute("UPDATE conversations SET updated_ms = ? WHERE id = ?", (updated_ms, known.row))

    # ------------------------------------------------------------ heads

    def head(self, key: Key) -> Head:
        self._mend()
        with explained(self._path):
            head = self._heads.find(key).head()
        self._heads.trim()
        return head

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
        while True:
            with explained(self._path):
                keys = over_since(self.db, before_ms, EXPIRE_AT_ONCE)
            written = {key: _timestamp(last) for key in keys if (last := self._recent.last(key)) is not None}
            later = [(updated_ms, *key) for key, updated_ms in written.items() if updated_ms >= before_ms]
            if not later:
                break
            with self._transaction(self._level_for(durable=False)):
                self.db.executemany(_UPDATED, later)
        if keys:
            self._erase(keys)
        return keys

    def _erase(self, keys: Collection[Key]) -> None:
        """Rows of `recent` hold many conversations, and some that have moved: it is written anew without these."""
        with self._transaction(self._level_for(durable=True)):
            gone = {key: self._heads.find(key) for key in keys}
            kept = [
                (self._heads.find(key).row, key, piece)
                for key, entries in self._recent.without(gone)
                for piece in segment.split(entries, SEGMENT_BYTES)
            ]
            pieces = [kept[at : at + KEPT_AT_ONCE] for at in range(0, len(kept), KEPT_AT_ONCE)]
            packed = dict(enumerate(map(pack, pieces), 1))
            self.db.execute("DELETE FROM recent")
            self.db.executemany(_KEEP, packed.items())
            for known in gone.values():
                self.db.execute("DELETE FROM segments WHERE conversation = ?", (known.row,))
                self.db.execute(
                    "UPDATE conversations SET epoch = ?, open_turns = NULL, updated_ms = 0, erased = 1 WHERE id = ?",
                    (known.epoch, known.row),
                )
        sizes = {slot: len(row) for slot, row in packed.items()}
        staged = [(slot, one) for slot, piece in enumerate(pieces, 1) for one in piece]
        self._recent.load(sizes, staged, erased=True)
        for key, known in gone.items():
            known.advance(fencing.erased(known.head()))
            self._heads.remember(key, known)
        self._heads.trim()
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
                self._sync_as(level)
                self.db.execute("BEGIN IMMEDIATE")
                yield
                self.db.execute("COMMIT")
        except BaseException:
            self._in_doubt = self._failing = True
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        with explained(self._path):
            if self.db.in_transaction:  # SQLite itself rolls back after some errors
                self.db.execute("ROLLBACK")

    def _sync_as(self, level: str) -> None:
        """From the next transaction on."""
        if level != self._level:
            self.db.execute(f"PRAGMA synchronous = {level}")
            self._level = level

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
        self._roll_back()  # if that failed, too: a commit of one statement would join what is never committed
        self._heads.clear()
        with explained(self._path):
            sizes, staged = read_recent(self.db)
            self._next_id = 1 + self.db.execute("SELECT coalesce(max(id), 0) FROM conversations").fetchone()[0]
        self._recent.load(sizes, staged)


def _timestamp(entry: Entry) -> int:
    return 0 if entry.metadata is None else entry.metadata.timestamp
