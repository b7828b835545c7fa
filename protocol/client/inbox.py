"""Frames that wait for their consumer, merged as the gateway merges for a slow reader (SPEC.md section 4)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from protocol.frames import AnyServerFrame, Token
from protocol.merge import SLICE_BYTES, joined

RUN_TOKENS = 256
"""A run of waiting tokens is joined into one string at the latest at this many, so that waiting text costs little
more than its characters."""


class Inbox:
    """A one-consumer buffer. Neighbouring tokens of a turn that wait together are handed out as one frame.

    It has no bound of its own: its owner watches `size_bytes` and stops what fills it (see `channel`).
    """

    def __init__(self, taken: Callable[[], None] | None = None) -> None:
        self.size_bytes = 0
        self.ended = asyncio.Event()
        self._taken = taken
        self._frames: deque[tuple[AnyServerFrame, int]] = deque()
        self._run: list[Token] = []
        self._run_bytes = 0
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._discard = False

    def put(self, frame: AnyServerFrame, size_bytes: int) -> None:
        """`size_bytes`: of the frame on the wire; of a token only its text counts, for the rest merges away."""
        if self._discard or self.ended.is_set():
            return
        if isinstance(frame, Token):
            size_bytes = len(frame.content.encode())
            if not self._fits(frame, size_bytes):
                self._close_run()
            self._run.append(frame)
            self._run_bytes += size_bytes
        else:
            self._close_run()
            self._frames.append((frame, size_bytes))
        self.size_bytes += size_bytes
        self._wake.set()

    def _fits(self, frame: Token, size_bytes: int) -> bool:
        if not self._run:
            return True
        last = self._run[-1]
        return (
            (frame.first_seq or frame.seq) == last.seq + 1
            and frame.turn_id == last.turn_id
            and frame.epoch == last.epoch
            and len(self._run) < RUN_TOKENS
            and self._run_bytes + size_bytes <= SLICE_BYTES
        )

    def _close_run(self) -> None:
        if self._run:
            self._frames.append((joined(self._run), self._run_bytes))
            self._run, self._run_bytes = [], 0

    def end(self, failure: Exception | None = None) -> None:
        """No more frames come. Those that wait are still handed out; then the iteration stops, or raises."""
        if not self.ended.is_set():
            self._failure = failure
            self.ended.set()
            self._wake.set()

    def discard(self) -> None:
        """Nobody wants the frames, neither those that wait nor later ones."""
        self._discard = True
        self._frames.clear()
        self._run, self._run_bytes, self.size_bytes = [], 0, 0

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def take(self) -> AnyServerFrame | None:
        """The next frame; None at the end. Raises what it was ended with. Cancelling it loses nothing."""
        while True:
            if not self._frames:
                self._close_run()
            if self._frames:
                frame, size_bytes = self._frames.popleft()
                self.size_bytes -= size_bytes
                if self._taken is not None:
                    self._taken()
                return frame
            if self.ended.is_set():
                self.raise_failure()
                return None
            self._wake.clear()
            await self._wake.wait()
