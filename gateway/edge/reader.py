"""A reader that one task follows: what SSE and request-response have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Self

from gateway.edge.answers import moved
from gateway.edge.bell import Bell
from gateway.logs.cursor import Cursor, new_group
from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.log import LogUnavailable, Position
from gateway.logs.slices import Slice
from protocol.codes import Refusal
from protocol.frames import Snapshot

LOG_RETRY_S = 0.5


class Reader:
    """Follows a conversation from a position in `feed`, and in the feeds that take its place. Use as a context
    manager: it ends the cursor."""

    def __init__(self, feeds: Feeds, feed: Feed, position: Position) -> None:
        self._feeds = feeds
        self._bell = Bell()
        self._gone = False
        self.cursor = Cursor(feed, position, self._bell.ring, new_group())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cursor.close()
        self._bell.close()

    def leave(self) -> None:
        """The peer is gone: `slices` ends."""
        self._gone = True
        self._bell.ring()

    async def slices(self, heartbeat_s: float) -> AsyncIterator[Slice | Snapshot]:
        """Every slice after the cursor, in order; an empty one when the reader has become level, and again after
        each `heartbeat_s` in which nothing came. A snapshot where the log doesn't hold any more what the reader has
        seen: it goes on behind that. Ends when the peer or the conversation is gone, and when this node stops.
        """
        bell = self._bell
        while not self._gone:
            bell.hush()
            feed = self.cursor.feed
            if feed.fenced and not feed.deleted:
                if (snapshot := await self._follow_on()) is not None:
                    yield snapshot
                continue
            if (made := self.cursor.take()) is None and (made := await self._fetch()) is None:
                return
            if not made.frames and feed.fenced and not feed.deleted:
                continue  # it was given up while the log was read
            yield made
            if made.frames:
                continue
            if feed.deleted or feed.handed_over:
                return
            await bell.heard(heartbeat_s)

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
            self.cursor = Cursor(feed, position, self._bell.ring, new_group())
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
