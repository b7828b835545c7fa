"""What is read from a connection, and when: backpressure on the peer, and a fair share of the loop."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Final

SLICE_BYTES: Final = 16384
"""Consumed in one turn of the loop: a single read may bring 256 KiB, and that can be 40,000 frames."""


class Hold(enum.IntFlag):
    """Why the transport isn't read. It is read when there is no reason."""

    NONE = 0
    HANDLER = 1
    OUTPUT = 2
    BACKLOG = 4
    """The rest of a read is being consumed; exactly one call is scheduled for it."""


class Intake:
    """Hands on what is received in slices, and holds the transport while there is a reason to.

    The backlog is never longer than what the transport delivers before it obeys: one read.
    """

    __slots__ = ("_backlog", "_consume", "_transport", "held")

    def __init__(self, transport: asyncio.Transport, consume: Callable[[bytes], None]) -> None:
        self._transport = transport
        self._consume = consume
        self._backlog = b""
        self.held = Hold.NONE

    def feed(self, data: bytes) -> None:
        self._backlog += data
        if not self.held:
            self._next()

    def hold(self, reason: Hold) -> None:
        if not self.held:
            self._transport.pause_reading()
        self.held |= reason

    def release(self, reasons: Hold) -> None:
        """Nothing is consumed before the next turn of the loop, since this is called from within `consume`, too."""
        if not self.held & reasons:
            return
        self.held &= ~reasons
        if self.held:
            return
        if self._backlog:
            self._go_on_later()
        else:
            self._transport.resume_reading()

    def drop(self) -> None:
        """The connection is gone."""
        self._backlog = b""

    def _next(self) -> None:
        piece, self._backlog = self._backlog[:SLICE_BYTES], self._backlog[SLICE_BYTES:]
        self._consume(piece)
        if self._backlog and not self.held & Hold.BACKLOG:
            self._go_on_later()

    def _go_on_later(self) -> None:
        self.hold(Hold.BACKLOG)
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self.held &= ~Hold.BACKLOG
        if not self.held and self._backlog:
            self._next()
        if not self.held:
            self._transport.resume_reading()
