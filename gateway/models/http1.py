"""A connection to an upstream over HTTP/1.1. While its reader wants nothing, its transport is paused."""

from __future__ import annotations

import asyncio
import math
import os
from typing import Protocol, cast

from gateway.models.answer import Answer
from gateway.models.moderation import Moderation
from gateway.models.pacing import Pacer

READ_BYTES = 65536
"""Of one paced read. The rest is left to the next."""


class Pool(Protocol):
    """What a connection tells its owner."""

    def idle(self, connection: Connection) -> None:
        """It may carry another request."""
        ...

    def gone(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """At most one answer at a time."""

    def __init__(self, pool: Pool, pacer: Pacer, moderation: Moderation) -> None:
        self._pool = pool
        self._pacer = pacer
        self._moderation = moderation
        self._loop = asyncio.get_running_loop()
        self._answer: Answer | None = None
        self._file: int | None = None
        """The socket's, unless TLS lies between it and us."""
        self._held_s = 0.0
        """For how long the transport is paused; 0: it reads."""
        self._polled = False
        """The pacer has us on its list."""
        self._read_at = 0.0
        self._unread_since = 0.0

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
        since, self._unread_since = self._unread_since or now, 0.0
        self._read_at = now
        self._moderation.read(now)
        if hold_s := self._answer.received(data, since):
            self.go_on(hold_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.lost(exc)
        self._pool.gone(self)

    # ------------------------------------------------------------ when to read

    def go_on(self, hold_s: float) -> None:
        """Reads on, but for `hold_s` not yet."""
        if self._answer is None or self._transport.is_closing():
            return
        if hold_s and not self._held_s:
            self._transport.pause_reading()
        elif self._held_s and not hold_s:
            self._transport.resume_reading()
        self._held_s = hold_s
        if 0.0 < hold_s < math.inf and not self._polled:
            self._polled = True
            self._pacer.later(self, hold_s)

    def poll(self) -> None:
        """The pacer's call. Reads past the transport, which would have to be resumed and paused for it."""
        self._polled = False
        answer = self._answer
        if answer is None or not 0.0 < self._held_s < math.inf or self._transport.is_closing():
            return
        data, since = b"", self._read_at
        self._read_at = self._loop.time()
        if self._file is None:
            self._unread_since = since
        else:
            try:
                data = os.read(self._file, READ_BYTES)
            except OSError:
                data = b""
        # Nothing, the end, or an error: the transport finds out which.
        self.go_on(answer.received(data, since) if data else 0.0)

    def ended(self, *, keep: bool) -> None:
        """The answer has."""
        self._answer = None
        if not keep or self._transport.is_closing():
            self._transport.abort()
            return
        if self._held_s:
            self._held_s = 0.0
            self._transport.resume_reading()
        self._pool.idle(self)
