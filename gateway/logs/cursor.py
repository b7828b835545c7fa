"""A cursor is a reader's place in a feed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from gateway.logs.feed import Feed
from gateway.logs.log import Position
from gateway.logs.slices import Slice

new_group = count(1).__next__


def _nobody() -> None:
    """Wakes nobody: a closed cursor holds nothing of its reader."""


class Cursor:
    """A reader's place in a feed: all that the gateway keeps for a reader. Cheap, and the same for every transport.

    `wake` is called, on the event loop, whenever there may be something new; it must not raise. Cursors of one
    `group` belong to one connection: what wakes them at the same time goes out in one write.
    """

    __slots__ = ("feed", "group", "position", "wake")

    def __init__(self, feed: Feed, position: Position, wake: Callable[[], None], group: int = 0) -> None:
        self.feed = feed
        self.group = group
        self.position = position
        self.wake = wake
        feed.attach(self)

    @property
    def level(self) -> bool:
        """It has seen all that is visible."""
        return self.position.seq >= self.feed.visible

    def take(self) -> Slice | None:
        """The next slice from memory, and moves past it; None when `fetch` is needed."""
        made = self.feed.slice_after(self.position.seq)
        if made is not None and made.frames:
            self.position = made.upto
        return made

    async def fetch(self) -> Slice:
        """The next slice from the log, and moves past it. Raises `LogUnavailable`. Safe to cancel: the cursor
        moves only when the slice is returned."""
        made = await self.feed.read_after(self.position.seq)
        if made.frames:
            self.position = made.upto
        return made

    def close(self) -> None:
        self.feed.detach(self)
        self.wake = _nobody
