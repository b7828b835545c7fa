"""A feed is this node's view of one conversation's log; a cursor is a reader's place in it.

    appended                 committed
       |  tail (memory, bounded)  |
    ---+--------------------------+------------------------------> seq
                 ^ visible: what readers may see

Entries are appended here by the session that owns the conversation, written by the `Journal`, and read by cursors.
Every entry but a token is visible only when the log has it; tokens run ahead of the log, up to the next entry of
another kind (SPEC.md section 2). There are no per-reader queues: a cursor takes the slice after itself, from the
tail when that reaches back far enough, else from the log.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from itertools import takewhile
from typing import Protocol

from gateway.logs.log import ANY_EPOCH, Append, Head, Key, Log, LogUnavailable, Position, turns_left_open
from gateway.logs.slices import NOTHING_NEW, Slice, slice_of
from protocol.fold import Fold
from protocol.frames import Entry, Metadata, Snapshot, Token
from protocol.merge import SLICE_BYTES, size_bytes

TAIL_BYTES = 65536
"""Bound of one feed's tail. A reader further behind reads the log instead."""
ENTRY_OVERHEAD_BYTES = 200
"""What an entry's objects take in memory beside its text, roughly."""
FULL_BYTES = 1 << 20
"""While the log can't be written, a tail grows to this, and then has no room: its session stops reading upstream."""
FOLD_BYTES = 1 << 17
"""One step of reading a whole conversation; others run between two."""
IDLE_TAIL_S = 1.0
"""So long after its last turn a feed keeps its tail for readers that are nearly level."""


def _size(entry: Entry) -> int:
    return ENTRY_OVERHEAD_BYTES + (len(entry.content) if type(entry) is Token else size_bytes(entry))


def _fenced_off() -> LogUnavailable:
    return LogUnavailable("this conversation was taken over or deleted")


_NEVER = Metadata(timestamp=0)


class Woken(Protocol):
    """What a feed needs of a cursor."""

    group: int
    """Which connection it belongs to."""

    def wake(self) -> None:
        """There may be something new. Called on the event loop; must not raise."""
        ...


def _began_anew() -> LogUnavailable:
    return LogUnavailable("this conversation was deleted and begun anew while it was read")


class Committer(Protocol):
    """What a feed needs of its writer."""

    log: Log
    available: bool
    """The last commit worked."""
    runs_ahead: bool
    """Tokens may be shown before the log has them."""

    def due(self, feed: Feed, *, urgent: bool) -> None: ...


class Feed:
    """See above. All methods are synchronous and atomic on the event loop, but those that read the log."""

    __slots__ = (
        "__weakref__",
        "_committed_waiters",
        "_empty",
        "_inflight",
        "_metadata",
        "_slice",
        "_slice_after",
        "_trim_timer",
        "_writer",
        "committed",
        "committed_epoch",
        "cursors",
        "deleted",
        "epoch",
        "fenced",
        "follows",
        "handed_over",
        "key",
        "open_turns",
        "seq",
        "stale",
        "tail",
        "tail_bytes",
        "tail_start",
        "visible",
    )

    def __init__(self, key: Key, head: Head, writer: Committer) -> None:
        self.key = key
        self.seq = self.committed = self.visible = self.tail_start = head.seq
        self.epoch = self.committed_epoch = head.epoch
        self.stale = head.stale
        self.open_turns = head.open_turns
        self.tail: list[Entry] = []
        self.tail_bytes = 0
        self.cursors: tuple[Woken, ...] = ()
        self.fenced = False
        """Nothing more comes through this feed: somebody else owns the conversation, or it was erased."""
        self.follows = False
        """Another node appends: entries come by `extend`."""
        self.deleted = False
        """Readers get `deleted` after the last entry."""
        self.handed_over = False
        """This node stops: nothing more is appended here, and whoever reads over HTTP may go when level."""
        self._writer = writer
        self._inflight = 0
        """So many entries after `committed` were taken by the journal."""
        self._committed_waiters: tuple[tuple[int, asyncio.Future[None]], ...] = ()
        self._metadata = _NEVER
        self._empty: asyncio.Event | None = None
        """While `end` waits: set by the last cursor that leaves."""
        self._slice: Slice | None = None
        self._slice_after = -1
        self._trim_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ writing (the owning session only)

    def stamp(self, now_ms: int | None = None) -> Metadata:
        """Metadata for an entry appended now; entries of one millisecond share it."""
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        stamp = self._metadata
        if stamp.timestamp != now_ms:
            stamp = self._metadata = Metadata(timestamp=now_ms)
        return stamp

    def next_position(self) -> Position:
        """Where the next entry goes. A stale log starts a new epoch: max(old + 1, Unix seconds)."""
        if self.stale:
            self.stale = False
            self.epoch = max(self.epoch + 1, int(time.time()))
        return Position(self.seq + 1, self.epoch)

    def append(self, *entries: Entry) -> None:
        """Takes entries made for `next_position`. They are visible once committed, tokens at once.

        After the log fenced this feed off there is nobody to write for, and nothing is taken.
        """
        if self.fenced:
            return
        urgent, seen = False, self.visible
        sizes = [_size(entry) for entry in entries]  # first of all: what can't be encoded isn't taken
        for entry, size in zip(entries, sizes, strict=True):
            if entry.seq != self.seq + 1:
                raise AssertionError(f"entry {entry.seq} can't follow {self.seq}")
            self.seq = entry.seq
            if type(entry) is Token:
                if self.visible == entry.seq - 1 and self._writer.runs_ahead:
                    self.visible = entry.seq
            else:
                urgent = True
            self.tail.append(entry)
            self.tail_bytes += size
        if urgent:
            self.open_turns = turns_left_open(self.open_turns, entries)
        self._writer.due(self, urgent=urgent)
        if self.visible != seen:
            self._wake()

    def append_text(self, turn_id: str, pieces: list[str]) -> list[Token]:
        """Makes tokens of pieces of a turn's text, and takes them as `append` does. It is written for speed: this runs
        for every token. Empty when nothing is taken."""
        if self.fenced:
            return []
        if self.stale:
            self.next_position()
        now_ms, metadata = time.time_ns() // 1_000_000, self._metadata
        if metadata.timestamp != now_ms:
            metadata = self._metadata = Metadata(timestamp=now_ms)
        conversation_id, epoch, writer = self.key.conversation_id, self.epoch, self._writer
        seen = seq = self.seq
        tokens: list[Token] = []
        for text in pieces:
            seq += 1
            self.tail_bytes += ENTRY_OVERHEAD_BYTES + len(text)
            token = Token(
                text, conversation_id=conversation_id, turn_id=turn_id, seq=seq, epoch=epoch, metadata=metadata
            )
            tokens.append(token)
        self.tail += tokens
        self.seq = seq
        writer.due(self, urgent=False)
        if self.visible == seen and writer.runs_ahead:
            self.visible = seq
            for cursor in self.cursors:
                cursor.wake()
        return tokens

    @property
    def log_available(self) -> bool:
        """The last commit worked where this conversation is."""
        return self._writer.available

    @property
    def all_visible(self) -> bool:
        """Nothing is on its way to the log that readers wait for."""
        return self.visible == self.seq

    @property
    def has_room(self) -> bool:
        """Of a tail that is over its bound nearly all isn't committed: see `written`."""
        return self.tail_bytes < FULL_BYTES and not self.fenced

    async def when_committed(self, seq: int) -> None:
        """Returns when entry `seq` is in the log; raises `LogUnavailable` when it never will be. Safe to cancel."""
        if self.committed >= seq:
            return
        if self.fenced:
            raise _fenced_off()
        waiting = seq, asyncio.get_running_loop().create_future()
        self._committed_waiters = (*self._committed_waiters, waiting)
        try:
            await waiting[1]
        except asyncio.CancelledError:  # else an outage of the log would gather those that left
            self._committed_waiters = tuple(other for other in self._committed_waiters if other is not waiting)
            raise

    async def when_room(self) -> None:
        """Returns when all that was appended is in the log; raises `LogUnavailable` when nothing more will be.
        Safe to cancel."""
        await self.when_committed(self.seq)
        if self.fenced:
            raise _fenced_off()

    # ------------------------------------------------------------ the journal's side

    @property
    def uncommitted(self) -> list[Entry]:
        """What isn't known to be in the log."""
        return self.tail[self.committed - self.tail_start :]

    def take_append(self) -> Append | None:
        """What has to be written next; the same again until `written` or `refused` was called."""
        if self.committed == self.seq or self.fenced:
            return None
        entries = self.uncommitted
        if self._inflight:
            entries = entries[: self._inflight]
        elif entries[-1].epoch != (epoch := entries[0].epoch):
            # One append has one epoch: what was begun in the next waits for the next commit.
            entries = list(takewhile(lambda entry: entry.epoch == epoch, entries))
        self._inflight = len(entries)
        return Append(self.key, Position(self.committed, self.committed_epoch if self.committed else 0), entries)

    def written(self) -> None:
        """The entries of `take_append` are in the log."""
        if self.fenced:  # while they were written
            return
        seen, last = self.visible, self.tail[self.committed - self.tail_start + self._inflight - 1]
        self.committed, self.committed_epoch = last.seq, last.epoch
        self._inflight = 0
        if seen < last.seq:
            self.visible = last.seq
        if self.visible < self.seq and self._writer.runs_ahead:
            for entry in self.tail[self.visible - self.tail_start :]:  # tokens right after that may be seen, too
                if type(entry) is not Token:
                    break
                self.visible = entry.seq
        if not self.open_turns or self.tail_bytes > 2 * TAIL_BYTES:
            self._trim()
        if self._committed_waiters:
            self._resolve_waiters()
        if self.visible != seen:
            self._wake()

    def rewind(self, head: Head) -> bool:
        """The log ends at `head`, before what it had of ours. If it is a beginning of what we hold, the rest is to be
        written again, at the same places, and this is True."""
        after = head.seq - self.tail_start
        if head.stale or not 0 <= after < len(self.tail) or head.seq >= self.committed:
            return False
        if after and self.tail[after - 1].epoch != head.epoch:
            return False
        self.committed, self.committed_epoch = head.seq, head.epoch
        self._inflight = 0
        return True

    def refused(self) -> None:
        """The log fenced us off. Nothing more can be written through this feed."""
        self.fenced = True
        self._inflight = 0
        waiters, self._committed_waiters = self._committed_waiters, ()
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(_fenced_off())
        self._wake()

    def _resolve_waiters(self) -> None:
        if not self._committed_waiters:
            return
        for seq, waiter in self._committed_waiters:
            if seq <= self.committed and not waiter.done():
                waiter.set_result(None)
        self._committed_waiters = tuple(waiting for waiting in self._committed_waiters if waiting[0] > self.committed)

    def _trim(self) -> None:
        """Keeps the tail within its bound; what isn't committed stays, and is bounded by `has_room`."""
        if not self.open_turns and self.committed == self.seq and self._trim_timer is None:
            if not self.cursors:
                self._drop(len(self.tail))
                return
            self._trim_timer = asyncio.get_running_loop().call_later(IDLE_TAIL_S, self._trim_idle)
        if self.tail_bytes > 2 * TAIL_BYTES:
            surplus, count = self.tail_bytes - TAIL_BYTES, 0
            for entry in self.tail:
                if surplus <= 0 or entry.seq > self.committed:
                    break
                surplus -= _size(entry)
                count += 1
            self._drop(count)

    def _trim_idle(self) -> None:
        """Nothing comes any more: a reader that is still behind reads the log."""
        self._trim_timer = None
        if not self.open_turns and self.committed == self.seq:
            self._drop(len(self.tail))

    def _drop(self, count: int) -> None:
        dropped, self.tail = self.tail[:count], self.tail[count:]
        self.tail_bytes -= sum(map(_size, dropped))
        self.tail_start += count
        if not self.tail:
            self._slice, self._metadata = None, _NEVER

    # ------------------------------------------------------------ following another node

    def extend(self, entries: list[Entry]) -> None:
        """Takes what another node has appended: entries that are in the log, and go on where this feed ends."""
        last = entries[-1]
        self.tail += entries
        self.tail_bytes += sum(map(_size, entries))
        self.seq = self.committed = self.visible = last.seq
        self.epoch = self.committed_epoch = last.epoch
        self.open_turns = turns_left_open(self.open_turns, entries)
        self._trim()
        self._resolve_waiters()
        self._wake()

    # ------------------------------------------------------------ reading

    def slice_after(self, after: int) -> Slice | None:
        """The next merged slice of visible entries after entry `after`; None when the tail doesn't reach back
        that far. Empty when there is nothing new."""
        made, visible, start = self._slice, self.visible, after - self.tail_start
        if start < 0:
            return None
        if made is not None and self._slice_after == after and (made.upto.seq == visible or made.whole):
            return made
        entries = self.tail[start : visible - self.tail_start]
        if not entries:
            return NOTHING_NEW
        made = slice_of(entries)
        if len(self.cursors) > 1:  # one reader alone never comes to the same place again
            self._slice, self._slice_after = made, after
        return made

    async def read_after(self, after: int) -> Slice:
        """As `slice_after`, from the log. Raises `LogUnavailable`. Safe to cancel."""
        entries = await self._writer.log.read(self.key, after, SLICE_BYTES)
        if self.fenced:
            return NOTHING_NEW  # what is there now may be another conversation under the same id, or another's work
        return slice_of(entries) if entries else NOTHING_NEW

    async def fold(self) -> Fold:
        """The fold of all visible entries. Raises `LogUnavailable`. Safe to cancel."""
        fold, log = Fold(), self._writer.log
        while fold.seq < self.tail_start:
            more = await log.read(self.key, fold.seq, FOLD_BYTES)
            if not more:
                return fold  # erased while it was read
            if fold.seq and await log.epoch_at(self.key, fold.seq) != fold.epoch:
                raise _began_anew()
            fold.apply_all(more)
        rest = self.tail[fold.seq - self.tail_start : max(0, self.visible - self.tail_start)]
        if rest and rest[0].epoch < fold.epoch:
            raise _began_anew()
        fold.apply_all(rest)
        return fold

    async def snapshot(self) -> Snapshot:
        """What the visible entries say, with their cursor. Raises `LogUnavailable`. Safe to cancel."""
        fold = await self.fold()
        return Snapshot(
            conversation_id=self.key.conversation_id,
            seq=fold.seq,
            epoch=fold.epoch,
            messages=fold.messages(),
            turn=fold.running(),
        )

    async def is_valid(self, cursor: Position) -> bool:
        """Log matching (Raft, section 5.3): the entry at that seq has that epoch. Raises `LogUnavailable`."""
        if cursor.seq == 0:
            return True
        if cursor.seq > self.visible:
            return False
        if cursor.epoch == ANY_EPOCH:
            return True
        if cursor.seq > self.tail_start:
            return self.tail[cursor.seq - self.tail_start - 1].epoch == cursor.epoch
        return await self._writer.log.epoch_at(self.key, cursor.seq) == cursor.epoch

    def head(self) -> Position:
        """The cursor of the last visible entry."""
        if not self.visible:
            return Position(0, 0)
        if self.visible > self.tail_start:
            return Position(self.visible, self.tail[self.visible - self.tail_start - 1].epoch)
        return Position(self.visible, self.committed_epoch)

    @property
    def group(self) -> int:
        """Of who reads it, or, with no reader here, a number that spreads as well."""
        return self.cursors[0].group if self.cursors else hash(self.key)

    def attach(self, cursor: Woken) -> None:
        self.cursors = (*self.cursors, cursor)

    def detach(self, cursor: Woken) -> None:
        self.cursors = tuple(other for other in self.cursors if other is not cursor)
        if not self.cursors and self._empty is not None:
            self._empty.set()

    async def end(self, grace_s: float) -> None:
        """The conversation is being erased: readers get `deleted` after its last entry, and leave. Those that
        haven't when `grace_s` is over will find the log empty."""
        self.deleted = True
        self._empty = asyncio.Event()
        self._wake()
        if self.cursors and grace_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._empty.wait()

    def hand_over(self) -> None:
        """This node's part is over; the next owner's entries won't come through this feed."""
        self.handed_over = True
        self._wake()

    def _wake(self) -> None:
        for cursor in self.cursors:
            cursor.wake()
