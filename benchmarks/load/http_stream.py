"""One HTTP/1.1 connection that asks for event streams, one after another (SPEC.md section 3.4).

The events are split where the gateway ends them, without the freedoms that the HTML standard allows: an event costs a
tenth of what the full parser in `protocol.sse` takes, and a proxy that rewrites them is noticed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import httptools

from benchmarks.load.target import as_transport

MAX_BODY_BYTES = 65536


class Handler(Protocol):
    """Who owns the connection. Called on the loop; `now` is the monotonic clock's when the bytes were read."""

    def event(self, cursor: bytes, data: bytes, now: float) -> None: ...
    def read(self, size_bytes: int, now: float) -> None:
        """After everything that came in one read was handed over."""

    def answered(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """An answer is whole. `body` is empty for a stream of events, which came by `event`."""

    def closed(self, reason: str) -> None:
        """Once, when the connection is over."""


class _Nobody:
    def event(self, cursor: bytes, data: bytes, now: float) -> None: ...
    def read(self, size_bytes: int, now: float) -> None: ...
    def answered(self, status: int, headers: dict[str, str], body: bytes) -> None: ...
    def closed(self, reason: str) -> None: ...


_NOBODY = _Nobody()


class HttpStream(asyncio.Protocol):
    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._rest = b""
        self._now = 0.0
        self.transport: asyncio.Transport | None = None
        self.busy = False
        """A request isn't answered to the end."""

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and not self.busy

    def request(self, data: bytes) -> None:
        assert self.transport is not None
        self.busy = True
        self.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def abandon(self) -> None:
        """Aborts, and tells the owner nothing more."""
        self._handler = _NOBODY
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = as_transport(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.closed(str(exc or "the connection broke"))

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._body += str(problem).encode()
            self.abort()
            return
        self._handler.read(len(data), self._now)

    # ------------------------------------------------------------ for the parser

    def on_message_begin(self) -> None:
        self._headers = {}
        self._body.clear()
        self._rest = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._body += data[: MAX_BODY_BYTES - len(self._body)]
            return
        *events, self._rest = (self._rest + data if self._rest else data).split(b"\n\n")
        for event in events:
            if event.startswith(b":"):
                continue
            head, _, payload = event.partition(b"data: ")
            self._handler.event(head[4:-1] if head.startswith(b"id: ") else b"", payload, self._now)

    def on_message_complete(self) -> None:
        self.busy = False
        if not self._parser.should_keep_alive() and self.transport is not None:
            self.transport.close()
        self._handler.answered(self._parser.get_status_code(), self._headers, bytes(self._body))
