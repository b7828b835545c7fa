"""The load test's own WebSocket: frames however they are cut, and everything that isn't a frame."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from websockets.frames import Close, Frame, Opcode

from benchmarks.load.websocket import Answer, WebSocket
from gateway.edge.messages import pack

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
WELCOME = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
PAYLOADS = [b"a", b"b" * 125, b"c" * 126, b"d" * 65535, b"e" * 65536, b"{}"]


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


class Owner:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.payloads: list[bytes] = []
        self.bytes = 0

    def opened(self) -> None:
        self.calls.append("opened")

    def received(self, payload: bytes, now: float) -> None:
        self.payloads.append(payload)

    def read(self, size_bytes: int, now: float) -> None:
        self.bytes += size_bytes

    def closed(self, code: int, reason: str, refusal: Answer | None) -> None:
        self.calls.append((code, reason, refusal))


def connected(*, binary: bool = False) -> tuple[WebSocket, Owner, Wire]:
    owner, wire = Owner(), Wire()
    socket = WebSocket(owner, b"GET /chat", KEY, binary=binary)
    socket.connection_made(cast("asyncio.BaseTransport", wire))
    return socket, owner, wire


def opened() -> tuple[WebSocket, Owner, Wire]:
    socket, owner, wire = connected()
    socket.data_received(WELCOME)
    wire.written = b""
    return socket, owner, wire


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 65536, 1 << 20])
def test_frames_however_they_are_cut(size: int) -> None:
    socket, owner, wire = connected()
    stream = WELCOME + pack(Opcode.TEXT, PAYLOADS)
    for at in range(0, len(stream), size):
        socket.data_received(stream[at : at + size])
    assert owner.payloads == PAYLOADS
    assert owner.calls == ["opened"]
    assert owner.bytes >= len(stream) - len(WELCOME)
    assert wire.written == b"GET /chat"


def test_a_fragmented_message_with_a_ping_in_it() -> None:
    socket, owner, wire = opened()
    for frame in (
        Frame(Opcode.TEXT, b"one ", fin=False),
        Frame(Opcode.PING, b"there?"),
        Frame(Opcode.CONT, b"two ", fin=False),
        Frame(Opcode.CONT, b"three"),
    ):
        socket.data_received(frame.serialize(mask=False))
    assert owner.payloads == [b"one two three"]
    assert wire.written[0] == 0x80 | Opcode.PONG


def test_a_close_is_answered() -> None:
    socket, owner, wire = opened()
    socket.data_received(Frame(Opcode.CLOSE, Close(1012, "draining").serialize()).serialize(mask=False))
    assert wire.written[0] == 0x80 | Opcode.CLOSE
    assert wire.closed
    socket.connection_lost(None)
    assert owner.calls[-1] == (1012, "draining", None)


def test_a_broken_connection_is_1006() -> None:
    socket, owner, _ = opened()
    socket.connection_lost(ConnectionResetError("reset"))
    assert owner.calls[-1] == (1006, "reset", None)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Opcode.TEXT, b"masked").serialize(mask=True),
        Frame(Opcode.BINARY, b"the wrong kind").serialize(mask=False),
        Frame(Opcode.CONT, b"of nothing").serialize(mask=False),
    ],
    ids=("masked", "binary", "continued"),
)
def test_what_no_gateway_sends(frame: bytes) -> None:
    socket, owner, wire = opened()
    socket.data_received(frame)
    assert wire.aborted
    socket.connection_lost(None)
    assert owner.calls[-1][0] == 1002


@pytest.mark.parametrize("size", [1, 1000])
def test_a_refusal_is_read_whole(size: int) -> None:
    socket, owner, wire = connected()
    body = b'{"error": {"code": "OVERLOADED"}}'
    stream = b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for at in range(0, len(stream), size):
        socket.data_received(stream[at : at + size])
    assert wire.closed
    socket.connection_lost(None)
    refusal = owner.calls[-1][2]
    assert (refusal.status, refusal.headers["retry-after"], refusal.body) == (503, "7", body)


def test_an_answer_with_another_key_is_no_handshake() -> None:
    socket, owner, wire = connected()
    socket.data_received(WELCOME.replace(b"s3pP", b"xxxx"))
    socket.eof_received()
    assert wire.closed
    socket.connection_lost(None)
    assert owner.calls[-1][2].status == 101


def test_nobody_hears_of_an_abandoned_one() -> None:
    socket, owner, wire = opened()
    socket.abandon()
    socket.data_received(pack(Opcode.TEXT, [b"{}"]))
    socket.connection_lost(None)
    assert wire.aborted
    assert (owner.calls, owner.payloads) == (["opened"], [])
