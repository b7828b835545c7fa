"""The client's side of one WebSocket connection (RFC 6455), cut down to what reading tokens by the million needs.

websockets' sans-I/O protocol takes 2 µs a frame, more than all the rest of reading a token; here it is a header and a
slice. What is rare (fragments, control frames, the handshake) is done by the book, just not quickly.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from base64 import b64encode
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from websockets.frames import Close, Frame, Opcode

from benchmarks.load.target import as_transport

MAX_HEAD_BYTES, MAX_BODY_BYTES = 32768, 4096
NO_CLOSE_FRAME: Final = 1006
_NOTHING = bytearray()
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Answer(NamedTuple):
    """An HTTP answer that refuses what was asked for. `headers` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes


class Handler(Protocol):
    """Who owns the connection. Called on the loop; `now` is the monotonic clock's when the bytes were read."""

    def opened(self) -> None: ...
    def received(self, payload: bytes, now: float) -> None: ...
    def read(self, size_bytes: int, now: float) -> None:
        """After everything that came in one read was handed over."""

    def closed(self, code: int, reason: str, refusal: Answer | None) -> None:
        """Once, when it is over. `refusal`: it never was a WebSocket."""


class _Nobody:
    def opened(self) -> None: ...
    def received(self, payload: bytes, now: float) -> None: ...
    def read(self, size_bytes: int, now: float) -> None: ...
    def closed(self, code: int, reason: str, refusal: Answer | None) -> None: ...


_NOBODY = _Nobody()


class WebSocket(asyncio.Protocol):
    """Sends its handshake as soon as there is a connection."""

    __slots__ = (
        "_accept", "_closing", "_expected", "_handler", "_needed", "_opcode", "_open", "_parts", "_pending", "_refusal",
        "_request", "transport",
    )  # fmt: skip

    def __init__(self, handler: Handler, request: bytes, key: str, *, binary: bool) -> None:
        self._handler = handler
        self._request = request
        self._accept = b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
        self._opcode = Opcode.BINARY if binary else Opcode.TEXT
        self._expected = 0x80 | self._opcode
        self._pending = _NOTHING
        self._needed = 0
        """Bytes that `_pending` has to hold before looking at it again is worth while."""
        self._parts: list[bytes] | None = None
        """Of a fragmented message."""
        self._open = False
        self._closing: tuple[int, str] | None = None
        self._refusal: Answer | None = None
        self.transport: asyncio.Transport | None = None

    # ------------------------------------------------------------ for the owner

    def send(self, payloads: Iterable[bytes]) -> None:
        """Each as one message, all in one write."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self._frame(self._opcode, payload) for payload in payloads))

    def close(self) -> None:
        """In an orderly way, as far as that goes without waiting."""
        if self.transport is not None and not self.transport.is_closing():
            if self._open:
                self.transport.write(self._frame(Opcode.CLOSE, Close(1000, "").serialize()))
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def abandon(self) -> None:
        """Aborts, and tells the owner nothing more."""
        self._handler = _NOBODY
        self.abort()

    # ------------------------------------------------------------ for the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = as_transport(transport)
        self.transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        code, reason = self._closing or (NO_CLOSE_FRAME, str(exc or "the connection broke"))
        self._handler.closed(code, reason, self._refusal)

    def eof_received(self) -> None:
        if self._refusal is not None:
            self._refuse(final=True)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._pending:
            self._pending += data  # it is never `_NOTHING` here
            if len(self._pending) < self._needed:
                return
            data, self._pending = bytes(self._pending), _NOTHING
        if not self._open:
            self._handshake(data, now)
            return
        self._frames(data, now)
        self._handler.read(len(data), now)

    # ------------------------------------------------------------ frames

    def _frames(self, data: bytes, now: float) -> None:
        at, end, expected, received = 0, len(data), self._expected, self._handler.received
        self._needed = 2
        while end - at >= 2:
            length, start = data[at + 1], at + 2
            if length > 125:
                if length > 127:
                    self._fail(1002, "a masked frame")
                    return
                start += 2 if length == 126 else 8
                if end < start:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            stop = start + length
            if stop > end:
                self._needed = stop - at
                break
            first = data[at]
            if first == expected and self._parts is None:
                received(data[start:stop], now)
            else:
                self._rare(first, data[start:stop], now)
            at = stop
        if at < end:
            self._pending = bytearray(data[at:])

    def _rare(self, first: int, payload: bytes, now: float) -> None:
        """A control frame, a fragment, or nothing that a gateway sends."""
        match first & 0x0F:
            case Opcode.PING:
                self._write(Opcode.PONG, payload)
            case Opcode.PONG:
                pass
            case Opcode.CLOSE:
                self._closed_by_peer(payload)
            case (Opcode.TEXT | Opcode.BINARY) as opcode if self._parts is None and opcode == self._opcode:
                self._fragment(first, payload, now)
            case Opcode.CONT if self._parts is not None:
                self._fragment(first, payload, now)
            case opcode:
                self._fail(1002, f"a frame with opcode {opcode} out of place")

    def _fragment(self, first: int, payload: bytes, now: float) -> None:
        self._parts = [*(self._parts or []), payload]
        if first & 0x80:
            whole, self._parts = b"".join(self._parts), None
            self._handler.received(whole, now)

    def _closed_by_peer(self, payload: bytes) -> None:
        close = Close.parse(payload) if len(payload) >= 2 else Close(1005, "")
        self._closing = (int(close.code), close.reason)
        self._write(Opcode.CLOSE, payload[:2])
        if self.transport is not None:
            self.transport.close()

    def _fail(self, code: int, reason: str) -> None:
        """The peer breaks the protocol."""
        self._closing = (code, reason)
        self.abort()

    def _write(self, opcode: Opcode, payload: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(self._frame(opcode, payload))

    @staticmethod
    def _frame(opcode: Opcode, payload: bytes) -> bytes:
        return Frame(opcode, payload).serialize(mask=True)

    # ------------------------------------------------------------ the handshake

    def _handshake(self, data: bytes, now: float) -> None:
        if self._refusal is not None:
            self._refusal = self._refusal._replace(body=self._refusal.body + data)
            self._refuse(final=False)
            return
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            self._pending, self._needed = bytearray(data), 0
            if len(data) > MAX_HEAD_BYTES:
                self._fail(1002, "the answer to the handshake has no end")
            return
        answer = parse_head(head)
        if answer.status == 101 and answer.headers.get("sec-websocket-accept") == self._accept:
            self._open = True
            self._handler.opened()
            if rest:
                self._frames(rest, now)
                self._handler.read(len(rest), now)
            return
        self._refusal = answer._replace(body=rest)
        self._refuse(final=False)

    def _refuse(self, *, final: bool) -> None:
        """Waits for the body of a refusal, which says why."""
        assert self._refusal is not None
        length = self._refusal.headers.get("content-length", "")
        wanted = int(length) if length.isdecimal() else MAX_BODY_BYTES
        if self.transport is not None and (final or len(self._refusal.body) >= min(wanted, MAX_BODY_BYTES)):
            self.transport.close()


def parse_head(head: bytes) -> Answer:
    """Status and headers of an HTTP answer; status 0 for what isn't one."""
    first, *lines = head.decode("latin-1").split("\r\n")
    status = first.split(" ")[1] if first.startswith("HTTP/1.") and " " in first else ""
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(status) if status.isdecimal() else 0, headers, b"")
