"""A cursor is a reader's place in a feed."""

from __future__ import annotations

from collections.abc import Callable

from gateway.logs.feed import Feed
from gateway.logs.log import Position
from gateway.logs.slices import Slice


def _nobody() -> None:
    """Wakes nobody: a closed cursor holds nothing of its reader."""


class Cursor:
    """A reader's place in a feed: all that the gateway keeps for a reader. Cheap, and the same for every transport.

    `wake` is called, on the event loop, whenever there may be something new; it must not raise.
    """

    __slots__ = ("feed", "position", "wake")

    def __init__(self, feed: Feed, position: Position, wake: Callable[[], None]) -> None:
        self.feed = feed
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
