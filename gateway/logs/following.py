"""A followed feed: what another node appends, put into this node's view of the conversation.

Entries are pushed one hop behind their owner. What was missed is read from the log, which is always right. Whether a
push continues what we have is the log-matching rule again (SPEC.md section 2.4): the entry before it has to have the
epoch that ours has. Where it hasn't, the log lost a tail that we still hold: the feed is given up, and each of its
readers begins anew with its own cursor, behind a snapshot where that isn't valid any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto

import structlog

from gateway.logs.feed import Feed
from gateway.logs.log import Key, Log, LogUnavailable, Position
from protocol.frames import Entry
from protocol.merge import SLICE_BYTES

RETRY_S = 0.5

log_lines = structlog.get_logger(__name__)


class Place(Enum):
    """Where pushed entries stand to a feed."""

    KNOWN = auto()
    """It has them."""
    NEXT = auto()
    """They go on where it ends, perhaps after some that it has."""
    GAP = auto()
    """Something between is missing."""
    ELSEWHERE = auto()
    """They are of a log that doesn't hold what the feed has."""


def placed(feed: Feed, after: Position, entries: list[Entry]) -> Place:
    """`entries` are consecutive and of one epoch, which is never lower than that of the entry before them."""
    first, last = entries[0], entries[-1]
    if first.seq > feed.seq + 1:
        return Place.GAP
    if last.seq < feed.seq:
        return Place.ELSEWHERE if last.epoch > feed.epoch else Place.KNOWN
    if feed.seq == 0:
        return Place.NEXT
    at_our_end = after.epoch if first.seq == feed.seq + 1 else first.epoch
    if at_our_end != feed.epoch:
        return Place.ELSEWHERE
    return Place.KNOWN if last.seq == feed.seq else Place.NEXT


class Following:
    """The `Follower` of one conversation. It finds its feed anew each time: the feed may come later, and go earlier."""

    __slots__ = ("_again", "_feed", "_give_up", "_key", "_log", "_missed_while_none", "_reading", "_tasks")

    def __init__(
        self,
        key: Key,
        log: Log,
        feed: Callable[[], Feed | None],
        give_up: Callable[[Feed], None],
        tasks: set[asyncio.Task[None]],
    ) -> None:
        """`give_up`: this feed's entries aren't those of the log any more. `tasks`: what is at work, for whoever has to
        end it."""
        self._key = key
        self._log = log
        self._feed = feed
        self._give_up = give_up
        self._tasks = tasks
        self._reading: asyncio.Task[None] | None = None
        self._again = False
        self._missed_while_none = False

    def received(self, after: Position, entries: list[Entry]) -> None:
        feed = self._followed()
        if feed is None:
            return
        match placed(feed, after, entries):
            case Place.NEXT:
                feed.extend(entries[feed.seq + 1 - entries[0].seq :])
            case Place.GAP:
                self.missed()
            case Place.ELSEWHERE:
                self._give_up(feed)
            case Place.KNOWN:
                pass

    def erased(self) -> None:
        feed = self._followed()
        if feed is not None:
            feed.deleted = True
            self._give_up(feed)

    def missed(self) -> None:
        if self._followed() is None:
            return
        self._again = True
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_on(), name="catch up with another node")
            self._tasks.add(self._reading)
            self._reading.add_done_callback(self._read)

    def feed_made(self) -> None:
        """The feed was made from a head that may be older than what was pushed meanwhile."""
        if self._missed_while_none:
            self._missed_while_none = False
            self.missed()

    def _followed(self) -> Feed | None:
        feed = self._feed()
        if feed is None:
            self._missed_while_none = True
        return feed if feed is not None and feed.follows and not feed.fenced else None

    async def _read_on(self) -> None:
        while self._again and (feed := self._followed()) is not None:
            self._again = False
            try:
                if not await level(feed, self._log):
                    self._give_up(feed)
            except LogUnavailable:
                self._again = True
                await asyncio.sleep(RETRY_S)

    def _read(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        self._tasks.discard(task)
        if task.cancelled():
            return
        if (problem := task.exception()) is not None:
            log_lines.error("catching up with another node failed by a bug", exc_info=problem)
        if self._again:  # missed between the task's last step and this one
            self.missed()


async def level(feed: Feed, log: Log) -> bool:
    """Reads on in the log until a followed feed has all of it; False when the log doesn't hold what the feed has, and
    then `feed.deleted` says whether it was erased. Raises `LogUnavailable`. Safe to cancel."""
    while feed.follows:  # if it is ours meanwhile, what it has more than the log is on its way there
        at = Position(feed.seq, feed.epoch)
        if at.seq and await log.epoch_at(feed.key, at.seq) != at.epoch:
            if feed.seq != at.seq or not feed.follows:
                continue  # something was pushed while we asked
            head = await log.head(feed.key)
            # What was erased remembers its own last epoch. What an engine lost whole begins in a newer one.
            feed.deleted = feed.deleted or (head.seq == 0 and head.stale and head.epoch <= feed.epoch)
            return False
        entries = await log.read(feed.key, at.seq, SLICE_BYTES)
        fresh = [entry for entry in entries if entry.seq > feed.seq]
        if fresh and fresh[0].seq == feed.seq + 1:
            feed.extend(fresh)
        elif not fresh:
            break
    return True
