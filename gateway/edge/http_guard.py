"""uvicorn's HTTP protocol with the guards that it lacks.

What is added: a time limit for half-sent requests and a bound on their heads, so that clients that dribble hold no
connection for ever; the write deadline for those that stop reading; the contract's error body where uvicorn answers in
plain text; and the bytes that came together with a WebSocket handshake, which uvicorn drops.
"""

from __future__ import annotations

import asyncio
import enum
from functools import partial
from typing import Any, Final

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.edge.liveness import Liveness
from gateway.edge.sockets import tune, unsent_bytes
from protocol.codes import ErrorCode
from protocol.frames import ErrorBody

MAX_PIPELINED: Final = 16
"""Requests that wait behind a running one on the same connection; uvicorn has no bound of its own."""
LINGER_S: Final = 2.0
"""How long a refused client may take to read the refusal and close."""


def error_body(code: ErrorCode, message: str, *, retryable: bool | None = None) -> bytes:
    """The JSON body of every HTTP error. `message` is for people; `retryable` defaults to what the code says."""
    error = ErrorBody(code.name, message, code.retryable if retryable is None else retryable)
    return msgspec.json.encode({"error": error})


CHUNKS: Final = "convobase.chunks"
"""An extension of the ASGI scope. Its `write` is `write_chunk` for the answer to this request."""


def write_chunk(cycle: RequestResponseCycle, body: bytes) -> bool:
    """Writes a part of an answer that has begun, at once and past ASGI's layers, which cost more than the write.

    False: this isn't possible now (its client is slow, or gone, or wants no chunks), and nothing was written.
    """
    if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding or cycle.response_complete:
        return False
    if not body:  # which would be the last chunk
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True


class Stage(enum.Enum):
    """What the client owes us. The order is that of one request; `SENT` goes back to `HEAD` with the next byte.

    The deadline runs in `HEAD` (from the connection or the first byte, to the end of the headers) and in `BODY`
    (between two pieces). In `SENT` the time is the application's, then uvicorn's own keep-alive time-out's. In
    `REFUSED` nothing is read any more but the client's own end of the connection.
    """

    HEAD = enum.auto()
    BODY = enum.auto()
    SENT = enum.auto()
    REFUSED = enum.auto()


class GuardedHttp(HttpToolsProtocol):
    """Made by `guarded_http`, which sets the three limits."""

    handshake_timeout_s: float
    max_header_bytes: int
    write_deadline_s: float

    _stage: Stage
    _head_bytes: int
    _progress_at: float
    _deadline: asyncio.TimerHandle | None
    _stuck_check: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        super().connection_made(transport)
        tune(transport)
        self._deadline = self._stuck_check = None
        self._chunk_bytes = 0
        self._begin_head(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_stuck_check()
        super().connection_lost(exc)

    def _is_refused(self) -> bool:
        return self._stage is Stage.REFUSED

    # ------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, which forgets the offset at which an upgraded request ends."""
        if self._is_refused():
            return
        self._unset_keepalive_if_required()
        if self._stage is Stage.SENT:
            # Also for a blank line, which begins no request but has just stopped the keep-alive time-out.
            self._begin_head(0)
        self._chunk_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self.send_400_response("This is not a valid HTTP request.")
            return
        if self._stage is Stage.HEAD:
            self._head_bytes += len(data)
            self._check_head_bytes()

    def _upgrade(self, rest: bytes) -> None:
        if self._is_refused():
            return
        if not self._should_upgrade():
            self._unsupported_upgrade_warning()
            return
        if self._answering():
            self.send_400_response("A WebSocket handshake can't be pipelined.")
            return
        self._disarm()
        self.handle_websocket_upgrade()
        if rest:
            self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined] # it is an asyncio.Protocol
        # The parser holds our bound methods: without this the pair would wait for the garbage collector.
        self.parser = None  # type: ignore[assignment] # as uvicorn does when a connection is lost

    def on_message_begin(self) -> None:
        if self._stage is Stage.SENT:
            # It begins somewhere inside this chunk. Where isn't known, so none of the chunk is counted as its head.
            self._begin_head(-self._chunk_bytes)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # What follows a chunked body are trailers: nobody asked for them.
        if self._stage is Stage.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_refused():
            return
        self._head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._check_head_bytes()
        if not self._is_refused() and len(self.pipeline) >= MAX_PIPELINED:
            self.send_400_response("Too many requests are pipelined.")
        if self._is_refused():
            return
        self._stage = Stage.BODY
        self._progress_at = self.loop.time()
        super().on_headers_complete()
        self.scope["extensions"] = {CHUNKS: {"write": partial(write_chunk, self.cycle)}}

    def on_body(self, body: bytes) -> None:
        self._progress_at = self.loop.time()
        if not self._is_refused():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused():
            self._stage = Stage.SENT
            self._disarm()
            super().on_message_complete()

    # ------------------------------------------------------------ limits

    def _begin_head(self, head_bytes: int) -> None:
        self._stage = Stage.HEAD
        self._head_bytes = head_bytes
        self._progress_at = self.loop.time()
        self._arm(self.handshake_timeout_s)

    def _check_head_bytes(self) -> None:
        if self._head_bytes > self.max_header_bytes:
            limit = f"The request line and headers are larger than {self.max_header_bytes} bytes."
            self._refuse(431, ErrorCode.FRAME_TOO_LARGE, limit)

    def _arm(self, delay_s: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(delay_s, self._check_progress)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check_progress(self) -> None:
        left_s = self._progress_at + self.handshake_timeout_s - self.loop.time()
        if self._waits_for_us():
            self._arm(self.handshake_timeout_s)
        elif left_s > 0:
            self._arm(left_s)
        else:
            late = f"The rest of the request did not come within {self.handshake_timeout_s:g} s."
            self._refuse(408, ErrorCode.BAD_FRAME, late, retryable=True)

    def _waits_for_us(self) -> bool:
        """Whether the client can't go on, or isn't expected to, because of what this side does."""
        if self._stage is Stage.HEAD:
            return self._answering()
        return self.flow.read_paused or self.cycle.waiting_for_100_continue

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn hides that there may be none yet
        return cycle is not None and not cycle.response_complete

    # ------------------------------------------------------------ the write deadline

    def pause_writing(self) -> None:
        super().pause_writing()
        self._liveness = Liveness(self.loop.time())
        self._check_stuck()

    def resume_writing(self) -> None:
        self._stop_stuck_check()
        super().resume_writing()

    def _check_stuck(self) -> None:
        now = self.loop.time()
        sizes = self.transport.get_write_buffer_size(), unsent_bytes(self.transport)
        if now >= self._liveness.write_deadline(now, self.write_deadline_s, *sizes):
            self._stuck_check = None
            self.transport.abort()
        else:
            self._stuck_check = self.loop.call_later(min(1.0, self.write_deadline_s / 4), self._check_stuck)

    def _stop_stuck_check(self) -> None:
        if self._stuck_check is not None:
            self._stuck_check.cancel()
            self._stuck_check = None

    # ------------------------------------------------------------ refusing

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, ErrorCode.BAD_FRAME, msg)

    def _refuse(self, status: int, code: ErrorCode, message: str, *, retryable: bool | None = None) -> None:
        """Answers with an error, if nothing else is being answered, and closes."""
        stage, self._stage = self._stage, Stage.REFUSED
        self._disarm()
        if self._answering():
            if stage is not Stage.BODY or self.pipeline or self.cycle.response_started:
                # An error can't be put into the middle of another answer.
                self.transport.close()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error_body(code, message, retryable=retryable)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self._close_after_reading()

    def _close_after_reading(self) -> None:
        """Closing a socket that has unread bytes resets the connection, and the client may never see the answer
        (RFC 9112 section 9.6): so only our half is closed, and theirs is awaited for `LINGER_S`."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            self.transport.close()


def guarded_http(
    handshake_timeout_s: float, max_header_bytes: int = 16384, write_deadline_s: float = 10.0
) -> type[GuardedHttp]:
    """A protocol class for `uvicorn.Config(http=...)`.

    `handshake_timeout_s` limits the head of a request as a whole, and every pause within its body: 408.
    `max_header_bytes` limits the request line and the headers together: 431. `write_deadline_s`: a client that takes
    nothing of an answer for so long is aborted, as on a WebSocket.
    """
    limits: dict[str, Any] = {
        "handshake_timeout_s": handshake_timeout_s,
        "max_header_bytes": max_header_bytes,
        "write_deadline_s": write_deadline_s,
    }
    return type("ConfiguredGuardedHttp", (GuardedHttp,), limits)
