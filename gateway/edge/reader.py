"""A reader that one task follows: what SSE and request-response have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

from gateway.edge.answers import moved
from gateway.logs.cursor import Cursor, new_group
from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.log import LogUnavailable, Position
from gateway.logs.slices import Slice
from gateway.sessions.deadline import Deadline
from protocol.codes import Refusal
from protocol.frames import Snapshot, Token

LOG_RETRY_S = 0.5

PassOn = Callable[[Slice], bool]
"""Takes a slice that is a single `token` frame, at once; False: not now, and it has taken nothing."""


def _not_now(_: Slice) -> bool:
    return False


class Reader:
    """Follows a conversation from a position in `feed`, and in the feeds that take its place. Use as a context
    manager: it ends the cursor.

    Waking a task for every token would cost more than the token: while the task waits for something new, text goes to
    `pass_on` from the loop, and the task sleeps on. It wakes for everything else, and for what `pass_on` won't take.
    """

    def __init__(
        self, feeds: Feeds, feed: Feed, position: Position, heartbeat_s: float, pass_on: PassOn = _not_now
    ) -> None:
        self._feeds = feeds
        self._heartbeat_s = heartbeat_s
        self._pass_on = pass_on
        self._loop = asyncio.get_running_loop()
        self._gone = False
        self._rung = False
        """There may be something new since this was cleared."""
        self._waiter: asyncio.Future[None] | None = None
        """While the task waits for something new."""
        self._silence = Deadline(self._wake)
        """Nothing has come for `heartbeat_s`."""
        self.cursor = self._cursor(feed, position)

    def _cursor(self, feed: Feed, position: Position) -> Cursor:
        return Cursor(feed, position, self._ring, new_group())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cursor.close()
        self._silence.close()

    def leave(self) -> None:
        """The peer is gone: `slices` ends."""
        self._gone = True
        self._ring()

    async def slices(self) -> AsyncIterator[Slice | Snapshot]:
        """Every slice after the cursor that wasn't passed on, in order; an empty one when the reader has become level,
        and again after each `heartbeat_s` in which nothing came. A snapshot where the log doesn't hold any more what
        the reader has seen: it goes on behind that. Ends when the peer or the conversation is gone, and when this node
        stops. Raises what `pass_on` raised.
        """
        while not self._gone:
            self._rung = False
            feed = self.cursor.feed
            if feed.fenced and not feed.deleted:
                if (snapshot := await self._follow_on()) is not None:
                    yield snapshot
                continue
            if (made := self.cursor.take()) is None and (made := await self._fetch()) is None:
                return
            if not made.frames and feed.fenced and not feed.deleted:
                continue  # it was given up while the log was read
            over = not made.frames and (feed.deleted or (feed.handed_over and feed.all_visible))
            yield made
            if over:
                return
            if not made.frames:
                await self._until_rung()

    # ------------------------------------------------------------ waiting

    async def _until_rung(self) -> None:
        """Returns when the task is needed, and when nothing came for `heartbeat_s`. Safe to cancel."""
        if self._rung:
            return
        self._silence.wait_until(self._loop.time() + self._heartbeat_s)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _ring(self) -> None:
        """There may be something new."""
        if not self._rung:
            self._rung = True
            if self._waiter is not None:
                self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Passes on what is new, or else wakes the task."""
        waiter = self._waiter
        if waiter is None or waiter.done() or not self._rung:
            return  # the task woke meanwhile
        try:
            if self._passed():
                self._silence.until = self._loop.time() + self._heartbeat_s
            else:
                waiter.set_result(None)
        except Exception as bug:  # noqa: BLE001 # the reader's own, and raised in its task
            waiter.set_exception(bug)

    def _passed(self) -> bool:
        cursor = self.cursor
        feed = cursor.feed
        if self._gone or feed.fenced or feed.deleted or feed.handed_over:
            return False
        made = feed.slice_after(cursor.position.seq)
        if made is None or len(made.frames) != 1 or type(made.frames[0]) is not Token or not self._pass_on(made):
            return False
        cursor.position = made.upto
        self._rung = False
        if made.upto.seq < feed.visible:
            self._ring()
        return True

    # ------------------------------------------------------------ the task's own ways

    async def _follow_on(self) -> Snapshot | None:
        """Takes the cursor to the feed that has the conversation now."""
        old = self.cursor
        while not self._gone:
            try:
                feed, position, snapshot = await moved(self._feeds, old.feed, old.position)
            except Refusal:
                await asyncio.sleep(LOG_RETRY_S)
                continue
            old.close()
            self.cursor = self._cursor(feed, position)
            return snapshot
        return None

    async def _fetch(self) -> Slice | None:
        """From the log, as soon as that can be read; None when the peer is gone."""
        while not self._gone:
            try:
                return await self.cursor.fetch()
            except LogUnavailable:
                await asyncio.sleep(LOG_RETRY_S)
        return None
