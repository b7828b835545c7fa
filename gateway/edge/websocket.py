"""The WebSocket shell: one TCP connection, from uvicorn's hand-over to its end.

It is a thin `asyncio.Protocol` around websockets' sans-I/O `ServerProtocol`, which does what RFC 6455 says. The
library's own asyncio connection isn't used: its keepalive waits in a drain and so keeps a client that never reads, and
its task, timers and queues cost twice the memory. One write for many frames, bounds, deadlines and the end are ours.

A connection ends in one of three ways. *Closed*: close frames went both ways, then TCP is closed. *Failed*: the peer
broke the protocol or was refused; we send our last word and close only our half, since a full close with unread bytes
resets the connection and takes that word with it. *Aborted*: a deadline has passed. The life cycle is the library's
(CONNECTING, OPEN, CLOSING); `_ends_at` is infinite only while the connection is OPEN, so that nothing can linger.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, cast

from msgspec import Struct
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF, State

from gateway.edge.handler import Handler, log_failure
from gateway.edge.handshake import JSON, MSGPACK, Accept, AcceptThenClose, Policy, Reject, Wire
from gateway.edge.http_guard import error_body
from gateway.edge.intake import Hold, Intake
from gateway.edge.keepalive import NOT_WATCHED, Keepalive
from gateway.edge.liveness import Liveness
from gateway.edge.messages import PING, Fragments, pack, without_pongs
from gateway.edge.sockets import peer_name, tune, unsent_bytes
from protocol.codes import CloseCode, ErrorCode

OVERRUN_BYTES: Final = 262144
"""What the answers to a client may add over the high-water mark before it isn't read any more."""

_library_log = logging.getLogger("gateway.edge.websocket")
_library_log.setLevel(logging.WARNING)  # at INFO it has two lines for each connection


class ShellLimits(Struct, frozen=True, kw_only=True):
    max_message_bytes: int = 65536
    write_deadline_s: float = 10.0
    """How long a peer over the high-water mark may take nothing at all before it is aborted."""
    heartbeat_s: float = 20.0
    """Silence after which a peer is pinged, and after which, once pinged, it is aborted."""
    handshake_timeout_s: float = 10.0
    close_timeout_s: float = 5.0
    """From the start of the end to the abort."""
    high_water_bytes: int = 65536
    low_water_bytes: int = 16384


class _House(NamedTuple):
    """What all connections share."""

    accept: Policy
    limits: ShellLimits
    keepalive: Keepalive


def shell_factory(*, accept: Policy, limits: ShellLimits, keepalive: Keepalive) -> Callable[..., asyncio.Protocol]:
    """A factory for `uvicorn.Config(ws=...)`; all connections of the process share `keepalive`."""
    house = _House(accept, limits, keepalive)

    def make(*, server_state: Any, **_: object) -> WebSocketShell:
        return WebSocketShell(house, server_state.connections)

    return make


class WebSocketShell(asyncio.Protocol):
    """One connection. Its methods for the handler never block, and do nothing once the connection is ending."""

    __slots__ = (
        "_connections", "_ends_at", "_fragments", "_handler", "_house", "_intake", "_liveness",
        "_opcode", "_pong", "_transport", "_wire", "bucket", "paused", "peer", "request", "secure", "subprotocol",
    )  # fmt: skip

    request: Request
    """The handshake, until `Handler.opened` has returned."""

    def __init__(self, house: _House, connections: set[Any]) -> None:
        self._house = house
        self._connections = connections
        self._wire = Wire(max_size=house.limits.max_message_bytes, logger=_library_log)
        self._handler: Handler | None = None
        self._fragments: Fragments | None = None
        self._pong = b""
        self._liveness = Liveness(house.keepalive.now)
        self._ends_at = math.inf
        self._opcode = Opcode.TEXT
        self.bucket = NOT_WATCHED
        self.paused = False
        """Over the high-water mark: send no more slices until `Handler.writable`."""
        self.subprotocol: str = JSON
        self.peer = ""
        """`host:port`; "" on a Unix socket."""
        self.secure = False
        """TLS ends in this process."""

    # ------------------------------------------------------------ for the handler

    def write(self, payloads: Sequence[bytes]) -> None:
        """Sends each payload as one message, in the subprotocol's opcode and all in one write."""
        if self._wire.state is State.OPEN:
            self._send(pack(self._opcode, payloads))

    def close(self, code: int, reason: str = "") -> None:
        """Starts the close handshake; a peer that doesn't answer in time is aborted. `code` has to
        be one that may be sent (RFC 6455 section 7.4), else `websockets.ProtocolError` is raised."""
        if self._wire.state is State.OPEN and not self._transport.is_closing():
            # A control frame carries 125 bytes, two of them the code.
            self._wire.send_close(code, reason.encode()[:123].decode(errors="ignore"))
            self._end()
            self._flush_wire()

    def abort(self) -> None:
        """Drops everything unsent."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """Backpressure on a client that sends faster than it is served; its silence isn't held against it."""
        if self._ends_at == math.inf:
            self._intake.hold(Hold.HANDLER)

    def resume_reading(self) -> None:
        if self._intake.held:
            self._liveness.heard_at = self._house.keepalive.now  # nothing could be heard before
            self._intake.release(Hold.HANDLER)

    # ------------------------------------------------------------ for uvicorn and the event loop

    def shutdown(self) -> None:
        """uvicorn stops and waits until all connections are gone. Usually the app has drained them before."""
        self.close(CloseCode.DRAINING)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        limits = self._house.limits
        self._transport = cast("asyncio.Transport", transport)
        self._intake = Intake(self._transport, self._parse)
        self._transport.set_protocol(self)  # uvicorn's comes after `opened`, which may write over the high-water mark
        self._transport.set_write_buffer_limits(limits.high_water_bytes, limits.low_water_bytes)
        tune(transport)
        self.peer = peer_name(transport)
        self.secure = transport.get_extra_info("sslcontext") is not None
        self._connections.add(self)
        self._end_within(limits.handshake_timeout_s)

    def data_received(self, data: bytes) -> None:
        self._liveness.heard_at = self._house.keepalive.now
        self._intake.feed(data)

    def eof_received(self) -> None:
        self._end()  # the transport closes itself now, but only after everything is written, which may be never

    def pause_writing(self) -> None:
        self.paused = True
        self._liveness.stuck_from_now()
        self._house.keepalive.watch(self, self._house.keepalive.now)

    def resume_writing(self) -> None:
        self.paused = False
        self._liveness.heard_at = self._house.keepalive.now  # what was taken is a sign of life too
        if self._wire.state is State.OPEN:
            self._send(self._pong)
        self._pong = b""
        self._intake.release(Hold.OUTPUT)
        if self._handler is not None and self._ends_at == math.inf:
            self._call(self._handler.writable)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._house.keepalive.forget(self)
        self._intake.drop()
        if self._handler is not None:
            self._call(self._handler.closed)
        self._handler = None

    # ------------------------------------------------------------ deadlines

    def check(self, now: float) -> float | None:
        """The sweep's question: everything that can time out does so here."""
        limits, deadline = self._house.limits, self._ends_at
        if deadline == math.inf:
            if self.paused:
                sizes = self._transport.get_write_buffer_size(), unsent_bytes(self._transport)
                deadline = self._liveness.write_deadline(now, limits.write_deadline_s, *sizes)
            elif self._intake.held:
                return now + limits.heartbeat_s  # not too late: hearing begins anew with the release
            else:
                if self._liveness.ping_is_due(now, limits.heartbeat_s):
                    self._send(PING)
                deadline = self._liveness.silence_deadline(limits.heartbeat_s)
        if now >= deadline:
            self.abort()
            return None
        return now if self.paused else deadline  # `now`: at the next tick

    # ------------------------------------------------------------ reading

    def _parse(self, data: bytes) -> None:
        self._wire.receive_data(data)
        if self._wire.handshake_exc is not None and self._wire.writes:  # the library has given up on the request
            self._wire.refuse(Reject(400, error_body(ErrorCode.BAD_FRAME, "This is not a valid HTTP request.")))
        if self._wire.state is State.OPEN:
            self._flush_wire()  # pongs go before the answers to what came after the pings; close frames go last
        for event in self._wire.events_received():
            if isinstance(event, Request):
                self._open(event)
            elif isinstance(event, Frame) and self._ends_at == math.inf:
                self._received(event)
        self._flush_wire()

    def _open(self, request: Request) -> None:
        # The library keeps its own for as long as the connection lives: that one gives up its headers, 5 KiB.
        self.request = dataclasses.replace(request, headers=request.headers.copy())
        request.headers.clear()
        try:
            decision, response = self._wire.decide(self.request, self.peer, self._house.accept)
            self.subprotocol = self._wire.subprotocol or JSON
            self._opcode = Opcode.BINARY if self.subprotocol == MSGPACK else Opcode.TEXT
            handler = decision.handler(self) if isinstance(decision, Accept) else None
        except Exception as exc:  # noqa: BLE001 # the app's mistake ends this connection, not the process
            log_failure(exc, self.peer)
            self._wire.refuse(Reject(500, error_body(ErrorCode.INTERNAL, "The gateway made a mistake.")))
            return
        if isinstance(decision, Reject):
            self._wire.refuse(decision)
            return
        self._wire.send_response(response)
        self._flush_wire()
        self._ends_at = math.inf
        self._house.keepalive.watch(self, self._house.keepalive.after(self._house.limits.heartbeat_s))
        self._handler = handler
        if isinstance(decision, AcceptThenClose):
            self.close(decision.code, decision.reason)
        elif handler is not None:
            self._call(handler.opened)
        del self.request

    def _received(self, frame: Frame) -> None:
        """Control frames have been answered by the library already."""
        if frame.opcode not in DATA_OPCODES:
            return
        fragments = self._fragments or Fragments(frame.opcode)
        try:
            message = fragments.add(frame)
        except UnicodeDecodeError:
            self._wire.fail(CloseCode.INVALID_TEXT, "text that is not UTF-8")
            self._end()
            return
        self._fragments = fragments if message is None else None
        if message is not None and self._handler is not None:
            self._call(self._handler.received, message, fragments.binary)

    def _call(self, method: Callable[..., None], *args: object) -> None:
        try:
            method(*args)
        except Exception as exc:  # noqa: BLE001 # the handler's mistake ends its connection, not the process
            log_failure(exc, self.peer)
            self.close(CloseCode.INTERNAL, "internal error")

    # ------------------------------------------------------------ writing and the end

    def _send(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)
        if self.paused and self._ends_at == math.inf:
            over_bytes = self._transport.get_write_buffer_size() - self._house.limits.high_water_bytes
            if over_bytes > OVERRUN_BYTES:
                self._intake.hold(Hold.OUTPUT)

    def _flush_wire(self) -> None:
        """Sends what the library answered, and follows it when it ends the stream."""
        out = self._wire.data_to_send()
        ending = SEND_EOF in out
        if self.paused:
            out, pong = without_pongs(out)
            self._pong = pong or self._pong
        self._send(b"".join(out))
        if ending and not self._transport.is_closing():
            self._end()
            whole = self._wire.close_rcvd is not None or not self._transport.can_write_eof()
            (self._transport.close if whole else self._transport.write_eof)()

    def _end(self) -> None:
        """What still comes is read from here on, but only to find the peer's close frame or the end of its stream."""
        self._end_within(self._house.limits.close_timeout_s)
        self._intake.release(Hold.HANDLER | Hold.OUTPUT)

    def _end_within(self, seconds: float) -> None:
        ends_at = self._house.keepalive.after(seconds)
        if ends_at < self._ends_at:
            self._ends_at = ends_at
            self._house.keepalive.watch(self, ends_at)
