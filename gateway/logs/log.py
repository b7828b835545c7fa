"""The seam to a log engine: what the gateway asks of it, and nothing more.

A conversation is an append-only log of entries (`protocol.frames.Entry`) numbered `seq` = 1, 2, 3 …; each carries
the `epoch` in which it was written. `memory` and `sqlite` stand beside this file; one contract suite runs on both.

Several nodes may share an engine. Then at most one of them *owns* a conversation, and the engine refuses the appends
of the others. An engine of one process has one node, and every conversation is that node's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from protocol.frames import Done, Entry, Error, Message


class Key(NamedTuple):
    """Names one conversation: ids belong to their owner, so the same id of somebody else is another log."""

    owner: str
    conversation_id: str


class Position(Struct, frozen=True, order=True, gc=False):
    """A cursor: `seq` and `epoch` of the last entry that somebody has. (0, 0) is before the first.

    A struct, since one is made for each slice, and a named tuple is made in Python.
    """

    seq: int
    epoch: int

    def __iter__(self) -> Iterator[int]:
        return iter((self.seq, self.epoch))


ANY_EPOCH = -1
"""In a cursor just before an entry that was looked up, not remembered: whatever epoch stands there is right."""


class OpenTurn(NamedTuple):
    """A turn whose `message` is in the log and whose `done` or `error` isn't."""

    turn_id: str
    seq: int
    """Of its `message`."""


class Head(Struct, frozen=True, gc=False):
    """Where a log ends. `seq` 0: the conversation doesn't exist."""

    seq: int = 0
    epoch: int = 0
    """Of the last entry; for an erased or expired conversation the last one it had, so that none is used twice."""
    stale: bool = False
    """The next append has to start a new epoch (SPEC.md section 2): the last writer is gone, or entries may be."""
    open_turns: tuple[OpenTurn, ...] = ()
    """In log order."""


class Claim(Struct, frozen=True):
    """What came of asking for a conversation."""

    head: Head
    owner: str | None = None
    """None: this node owns it now, and may append. Else the node that does."""
    lost: bool = False
    """Its last owner ended without a word, so what it was doing has to be done again. Only when it is ours."""


class Append(Struct, frozen=True):
    """Consecutive entries for one conversation; `after` is the entry that they must follow (fencing)."""

    key: Key
    after: Position
    entries: Sequence[Entry]


class LogUnavailable(Exception):
    """The engine can't be reached or refuses to write (disk full, connection lost). Trying again may help."""


class Log(Protocol):
    """One engine. Every method may raise `LogUnavailable`; all are safe to cancel, but a cancelled `commit`
    may still have been written."""

    node_id: str
    """Of this node, among all that share the log; another one after every start."""
    unclean: bool
    """After `open`: the last run didn't `close`, so its turns ended without a word. False where nodes share the
    log: there `Claim.lost` tells it of each conversation."""

    async def open(self) -> None: ...

    async def close(self) -> None:
        """Marks a clean stop: the next `open` finds `unclean` false and no head `stale` because of this run."""
        ...

    async def ping(self) -> None:
        """Raises `LogUnavailable` when the engine couldn't take an append now."""
        ...

    def domain(self, key: Key) -> str:
        """Names the part of the log that a conversation is in, where parts can fail by themselves: what holds up a
        commit in one needn't hold up those in others. The name may change later; it is never unknown."""
        ...

    async def head(self, key: Key) -> Head: ...

    async def claim(self, key: Key, *, instead_of: str | None = None) -> Claim:
        """Makes a conversation, whether or not it exists yet, this node's if it is nobody's; or that of the node
        `instead_of`, which is known to be lost. Of several nodes that ask at once one gets it. Idempotent: what is
        ours already is ours again. Cancelled, it may have been done."""
        ...

    async def release(self, key: Key) -> None:
        """Gives up a conversation in an orderly way: the next owner goes on as if it had been its own. Idempotent,
        and without effect if it isn't this node's."""
        ...

    async def commit(self, batch: Sequence[Append]) -> list[bool]:
        """Writes all appends of `batch` in one commit; each is written whole or not at all.

        Those of one conversation have to be awaited one after the other. Returns for each whether it is in the log.
        False: fenced; the log's head isn't at `after`, or another node owns it (somebody else wrote, or it was erased).
        An append that is already in the log, entry for entry, is True again, so that a commit whose answer got lost can
        be repeated. `LogUnavailable`: nothing may be assumed; repeat it.
        """
        ...

    async def read(self, key: Key, after: int, limit_bytes: int) -> list[Entry]:
        """Entries with `seq` > `after` in order, each as it was appended: as many as fit into about `limit_bytes`
        of content, but at least one if there are any."""
        ...

    async def epoch_at(self, key: Key, seq: int) -> int | None:
        """The epoch of entry `seq`; None when the log has no such entry."""
        ...

    async def erase(self, key: Key) -> bool:
        """Removes every entry; only what keeps epochs from being used twice is remembered. Idempotent. False: another
        node owns the conversation, and nothing was removed."""
        ...

    async def unfinished(self, owner: str | None = None) -> list[Key]:
        """Conversations with open turns: all, or those of the node `owner`; "" for those of nobody."""
        ...

    async def owners(self) -> set[str]:
        """The nodes that own conversations with open turns; none where nodes don't share the log."""
        ...

    async def expire(self, before_ms: int, *, leave_to: Sequence[str] = ()) -> list[Key]:
        """Erases conversations without open turns whose last entry is older than `before_ms` (Unix ms), but not those
        that the nodes `leave_to` own: they hold them in memory, and erase them themselves."""
        ...


def new_node_id() -> str:
    return secrets.token_hex(8)


def turns_left_open(before: Iterable[OpenTurn], entries: Iterable[Entry]) -> tuple[OpenTurn, ...]:
    """The open turns after `entries`: a `message` opens its turn, a `done` or `error` ends it."""
    turns = {turn.turn_id: turn for turn in before}
    for entry in entries:
        match entry:
            case Message():
                turns[entry.turn_id] = OpenTurn(entry.turn_id, entry.seq)
            case Done() | Error():
                turns.pop(entry.turn_id, None)
            case _:
                pass
    return tuple(turns.values())
