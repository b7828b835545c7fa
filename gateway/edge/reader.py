"""A reader that one task follows: what SSE and request-response have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

from gateway.logs.feed import Cursor, Feed, Slice
from gateway.logs.log import LogUnavailable, Position

LOG_RETRY_S = 0.5


class Reader:
    """Follows a feed from a position. Use as a context manager: it ends the cursor."""

    def __init__(self, feed: Feed, position: Position) -> None:
        self._woken = asyncio.Event()
        self._gone = False
        self.cursor = Cursor(feed, position, self._woken.set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cursor.close()

    def leave(self) -> None:
        """The peer is gone: `slices` ends."""
        self._gone = True
        self._woken.set()

    async def slices(self, heartbeat_s: float) -> AsyncIterator[Slice]:
        """Every slice after the cursor, in order; an empty one when the reader has become level, and again after
        each `heartbeat_s` in which nothing came. Ends when the peer or the conversation is gone, and when this node
        stops.
        """
        cursor, woken = self.cursor, self._woken
        while not self._gone:
            woken.clear()
            made = cursor.take()
            if made is None and (made := await self._fetch()) is None:
                return
            yield made
            if made.frames:
                continue
            if cursor.feed.deleted or cursor.feed.handed_over or cursor.feed.fenced:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(heartbeat_s):
                    await woken.wait()

    async def _fetch(self) -> Slice | None:
        """From the log, as soon as that can be read; None when the peer is gone."""
        while not self._gone:
            try:
                return await self.cursor.fetch()
            except LogUnavailable:
                await asyncio.sleep(LOG_RETRY_S)
        return None
