"""A connection to an upstream over HTTP/1.1. While its reader wants nothing, its transport is paused.

Through TLS it isn't: it would read on all the same, and what it had read would be lost if the server then closed the
connection (uvloop 0.23). There it is gathered here.
"""

from __future__ import annotations

import asyncio
import math
import os
from typing import Protocol, cast

from gateway.models.answer import Answer
from gateway.models.moderation import Moderation
from gateway.models.pacing import Pacer

READ_BYTES = 65536
"""Of one paced read. The rest is left to the next. And of what is gathered: then it is due at once, or, if nobody
knows when it will be wanted, no more is read."""


class Pool(Protocol):
    """What a connection tells its owner."""

    def idle(self, connection: Connection) -> None:
        """It may carry another request."""
        ...

    def gone(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """At most one answer at a time."""

    __slots__ = ("_answer", "_file", "_gathered", "_gathered_since", "_held_s", "_loop", "_moderation", "_pacer",
                 "_polled", "_pool", "_read_at", "_transport")  # fmt: skip

    def __init__(self, pool: Pool, pacer: Pacer, moderation: Moderation) -> None:
        self._pool = pool
        self._pacer = pacer
        self._moderation = moderation
        self._loop = asyncio.get_running_loop()
        self._answer: Answer | None = None
        self._file: int | None = None
        """The socket's, unless TLS lies between it and us."""
        self._held_s = 0.0
        """For how long the reader wants nothing; 0: it reads."""
        self._polled = False
        """The pacer has us on its list."""
        self._read_at = 0.0
        self._gathered = bytearray()
        self._gathered_since = 0.0

    def ask(self, request: bytes) -> Answer:
        """Sends a request and returns its answer-to-be."""
        answer = self._answer = Answer(self)
        self._transport.write(request)
        return answer

    def abort(self) -> None:
        self._transport.abort()

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    # ------------------------------------------------------------ for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if transport.get_extra_info("sslcontext") is None:
            self._file = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self._transport.abort()  # nobody has asked
            return
        now = self._loop.time()
        self._moderation.read(now)
        if self._held_s and self._file is None:
            self._gather(data, now)
            return
        self._read_at = now
        if hold_s := self._answer.received(data, now):
            self.go_on(hold_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and self._gathered:
            self._answer.received(bytes(self._gathered), self._gathered_since)
        if self._answer is not None:
            self._answer.lost(exc)
        self._pool.gone(self)

    # ------------------------------------------------------------ when to read

    def go_on(self, hold_s: float) -> None:
        """Reads on, but for `hold_s` not yet."""
        if self._answer is None or self._transport.is_closing():
            return
        if self._file is None:
            if hold_s < math.inf == self._held_s:
                self._transport.resume_reading()
        elif hold_s and not self._held_s:
            self._transport.pause_reading()
        elif self._held_s and not hold_s:
            self._transport.resume_reading()
        self._held_s = hold_s
        if self._gathered and not hold_s:
            self._bring(self._answer)
        elif 0.0 < hold_s < math.inf and not self._polled:
            self._polled = True
            self._pacer.later(self, hold_s)

    def poll(self) -> None:
        """The pacer's call. Reads past the transport, which would have to be resumed and paused for it."""
        self._polled = False
        answer = self._answer
        if answer is None or not 0.0 < self._held_s < math.inf or self._transport.is_closing():
            return
        if self._file is None:
            if self._gathered:
                self._bring(answer)
            else:
                self.go_on(0.0)
            return
        since, self._read_at = self._read_at, self._loop.time()
        try:
            data = os.read(self._file, READ_BYTES)
        except OSError:
            data = b""
        # Nothing, the end, or an error: the transport finds out which.
        hold_s = answer.received(data, since) if data else 0.0
        if self._held_s and 0.0 < hold_s < math.inf:  # as nearly always: the same again
            self._held_s = hold_s
            self._polled = True
            self._pacer.later(self, hold_s)
        else:
            self.go_on(hold_s)

    def _gather(self, data: bytes, now: float) -> None:
        if not self._gathered:
            self._gathered_since = now
        self._gathered += data
        if self._answer is not None and len(self._gathered) >= READ_BYTES:
            if self._held_s == math.inf:
                self._transport.pause_reading()
            else:
                self._bring(self._answer)

    def _bring(self, answer: Answer) -> None:
        """What was gathered."""
        data, self._gathered = bytes(self._gathered), bytearray()
        self.go_on(answer.received(data, self._gathered_since))

    def ended(self, *, keep: bool) -> None:
        """The answer has."""
        self._answer = None
        if not keep or self._gathered or self._transport.is_closing():
            self._gathered.clear()
            self._transport.abort()
            return
        if self._held_s:
            self._held_s = 0.0
            self._transport.resume_reading()
        self._pool.idle(self)
