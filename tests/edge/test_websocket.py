from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import pytest
import structlog
import trustme
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close, Frame, Opcode

from gateway.edge.handler import Handler
from gateway.edge.handshake import Accept, AcceptThenClose, Decision, Reject
from gateway.edge.http_guard import error_body
from gateway.edge.websocket import OVERRUN_BYTES, ShellLimits, WebSocketShell
from protocol.codes import ErrorCode
from tests.support.serving import Echo, Server, serving

JSON, MSGPACK = "convobase.v1+json", "convobase.v1+msgpack"
HEAD = (
    b"GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n"
)
HANDSHAKE = HEAD + b"\r\n"


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    """A traceback of the event loop or of a library is a failure, whatever else was seen."""
    structlog.reset_defaults()
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def text(data: bytes) -> bytes:
    return frame(Opcode.TEXT, data)


async def until(condition: Callable[[], Any]) -> None:
    """For what happens inside and is told to nobody."""
    while not condition():
        await asyncio.sleep(0.005)


async def raw(server: Server, first: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection after its handshake, on which nothing is answered by a library."""
    reader, writer = await server.connect()
    writer.write(HANDSHAKE + first)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Opcode and payload of an unmasked, unfragmented frame."""
    first, length = await reader.readexactly(2)
    assert first & 0x80
    if length == 126:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", await reader.readexactly(8))
    return first & 0x0F, await reader.readexactly(length)


async def close_code(reader: asyncio.StreamReader) -> int:
    """Of the next frame; then the server must end the stream."""
    opcode, data = await next_frame(reader)
    assert opcode == Opcode.CLOSE
    assert await reader.read() == b""
    return Close.parse(data).code


# ---------------------------------------------------------------- the handshake


@pytest.mark.parametrize(
    ("offered", "answered", "spoken"),
    [
        ([], None, JSON),
        ([JSON], JSON, JSON),
        ([MSGPACK], MSGPACK, MSGPACK),
        ([MSGPACK, JSON], MSGPACK, MSGPACK),
        (["soap", JSON, MSGPACK], JSON, JSON),
        (["soap"], None, JSON),
    ],
)
async def test_subprotocol(offered: list[str], answered: str | None, spoken: str) -> None:
    async with serving() as server:
        async with connect(server.url, subprotocols=offered or None) as client:
            assert client.subprotocol == answered
            await client.send("hello")
            assert await client.recv() == ("hello" if spoken == JSON else b"hello")
        handler = await server.handler()
        assert handler.shell.subprotocol == spoken


async def test_what_the_handler_sees_of_the_request() -> None:
    async with serving() as server, connect(server.url + "?a=b") as client:
        handler = await server.handler()
        await handler.is_open.wait()
        assert handler.path == "/chat?a=b"
        assert handler.shell.peer == "{}:{}".format(*client.local_address)
        assert not handler.shell.secure
        with pytest.raises(AttributeError):
            _ = handler.shell.request  # dropped, because it is large


@pytest.mark.parametrize("cut", [0, 1, 20, len(HANDSHAKE) - 1, len(HANDSHAKE), len(HANDSHAKE) + 1])
async def test_frames_that_come_with_the_handshake_are_not_lost(cut: int) -> None:
    stream = HANDSHAKE + text(b"one") + text(b"two")
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(stream[:cut])
        await writer.drain()
        await asyncio.sleep(0.01)  # so that it mostly comes in two reads; it must work either way
        writer.write(stream[cut:])
        await reader.readuntil(b"\r\n\r\n")
        assert await next_frame(reader) == (Opcode.TEXT, b"one")
        assert await next_frame(reader) == (Opcode.TEXT, b"two")
        writer.close()


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Version: 13", b"Version: 12", 400),
        (b"Key: AAECAwQFBgcICQoLDA0ODw==", b"Key: short", 400),
        (b"Sec-WebSocket-Key", b"X-Key", 400),
        (b"Host: localhost", b"Host: localhost\r\nContent-Length: 5", 400),
        (b"GET", b"POST", 405),
    ],
)
async def test_a_bad_handshake_is_refused_with_our_error(old: bytes, new: bytes, status: int) -> None:
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(HANDSHAKE.replace(old, new))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert orjson.loads(body)["error"]["code"] == "BAD_FRAME"
        assert server.handlers == []
        writer.close()


async def test_reject() -> None:
    body = error_body(ErrorCode.NOT_FOUND, "There is nothing here.")
    async with serving(decide=lambda request, peer: Reject(404, body, [("X-Why", "because")])) as server:
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url)
        response = refused.value.response
        assert (response.status_code, response.body) == (404, body)
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-Why"] == "because"


async def test_accept_then_close() -> None:
    decision = AcceptThenClose(4401, "get a new token")
    async with serving(decide=lambda request, peer: decision) as server, connect(server.url) as client:
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4401, "get a new token")


def fail(*_: object) -> Any:
    raise RuntimeError("a mistake")


@pytest.mark.parametrize("decide", [fail, lambda request, peer: Accept(fail)], ids=["policy", "factory"])
async def test_a_policy_that_fails_is_a_500(decide: Callable[..., Decision]) -> None:
    async with serving(decide=decide) as server:
        with capture_logs() as lines, pytest.raises(InvalidStatus) as refused:
            await connect(server.url)
        assert refused.value.response.status_code == 500
        assert b"mistake" not in (refused.value.response.body or b"").replace(b"The gateway made a mistake.", b"")
        assert [line["error"] for line in lines] == ["RuntimeError('a mistake')"]


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
async def test_echo(size: int) -> None:
    async with serving() as server, connect(server.url) as client:
        await client.send("x" * size)
        assert await client.recv() == "x" * size


async def test_many_payloads_are_one_write() -> None:
    payloads = [b"", b"a" * 125, b"b" * 126, b"c" * 70000]
    async with serving() as server, connect(server.url) as client:
        handler = await server.handler()
        handler.shell.write(payloads)
        assert [await client.recv(decode=False) for _ in payloads] == payloads


async def test_fragments_with_control_frames_between() -> None:
    whole = "für elise".encode()
    stream = [
        frame(Opcode.TEXT, whole[:2], fin=False),
        frame(Opcode.PING, b"a"),
        frame(Opcode.CONT, b"", fin=False),
        frame(Opcode.PONG, b"unasked"),
        frame(Opcode.CONT, whole[2:]),
    ]
    async with serving() as server:
        reader, writer = await raw(server)
        for piece in b"".join(stream):
            writer.write(bytes([piece]))
            await asyncio.sleep(0)
        assert await next_frame(reader) == (Opcode.PONG, b"a")
        assert await next_frame(reader) == (Opcode.TEXT, whole)
        handler = await server.handler()
        assert handler.messages == [(whole, False)]
        writer.close()


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        pytest.param(text(b"x" * 1001), 1009, id="too big"),
        pytest.param(frame(Opcode.TEXT, b"x" * 600, fin=False) + frame(Opcode.CONT, b"x" * 401), 1009, id="in sum"),
        pytest.param(text(b"\xff"), 1007, id="not UTF-8"),
        pytest.param(frame(Opcode.TEXT, b"\xff", fin=False), 1007, id="not UTF-8 already"),
        pytest.param(Frame(Opcode.TEXT, b"x").serialize(mask=False), 1002, id="not masked"),
        pytest.param(frame(Opcode.CONT, b"x"), 1002, id="continues nothing"),
        pytest.param(b"\xc1\x80\x00\x00\x00\x00", 1002, id="compressed"),
        pytest.param(frame(Opcode.CLOSE, struct.pack("!H", 1005)), 1002, id="a code that may not be sent"),
    ],
)
async def test_a_violation_is_answered_and_ends_the_connection(stream: bytes, code: int) -> None:
    async with serving(limits=ShellLimits(max_message_bytes=1000)) as server:
        # With more behind it than is read at once: unread bytes must not reset the connection.
        reader, writer = await raw(server, text(b"before") + stream + frame(Opcode.PING, b"x" * 100) * 200)
        handler = await server.handler()
        while True:
            opcode, data = await next_frame(reader)
            if opcode == Opcode.CLOSE:
                break
            assert (opcode, data) in [(Opcode.TEXT, b"before"), (Opcode.PONG, b"x" * 100)]
        assert Close.parse(data).code == code
        assert await reader.read() == b""
        writer.close()
        await handler.is_closed.wait()
        assert handler.messages == [(b"before", False)]
        assert handler.calls == ["opened", "closed"]


# ---------------------------------------------------------------- the end


async def test_close_by_the_peer() -> None:
    async with serving() as server:
        reader, writer = await raw(server, text(b"last") + frame(Opcode.CLOSE, struct.pack("!H", 1000) + b"bye"))
        assert await close_code(reader) == 1000
        handler = await server.handler()
        await handler.is_closed.wait()
        assert handler.messages == [(b"last", False)]
        assert handler.calls == ["opened", "closed"]
        assert server.connections == set()
        writer.close()


async def test_close_by_the_server() -> None:
    async with serving() as server, connect(server.url) as client:
        handler = await server.handler()
        handler.shell.close(4408, "ö" * 100)
        handler.shell.close(1000)
        handler.shell.write([b"too late"])
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4408, "ö" * 61)
        await handler.is_closed.wait()
        handler.shell.write([b"later still"])
        handler.shell.close(1000)
        handler.shell.abort()
        assert handler.calls == ["opened", "closed"]


@pytest.mark.parametrize("held", [False, True])
async def test_a_peer_that_ignores_the_close_is_aborted(held: bool) -> None:
    async with serving(limits=ShellLimits(close_timeout_s=0.1)) as server:
        reader, writer = await raw(server)
        handler = await server.handler()
        if held:
            handler.shell.pause_reading()
        handler.shell.close(1000)
        writer.write(text(b"not heard"))
        await handler.is_closed.wait()
        assert await next_frame(reader) == (Opcode.CLOSE, struct.pack("!H", 1000))
        assert handler.messages == []
        writer.close()


async def test_a_half_open_peer_does_not_linger() -> None:
    async with serving(limits=ShellLimits(close_timeout_s=0.1)) as server:
        reader, writer = await raw(server)
        writer.write_eof()
        assert await reader.read() == b""
        handler = await server.handler()
        await handler.is_closed.wait()
        assert handler.calls == ["opened", "closed"]
        writer.close()


async def test_a_reset_is_just_an_end() -> None:
    async with serving() as server:
        _, writer = await raw(server)
        handler = await server.handler()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        for _ in range(20):
            handler.shell.write([b"x" * 1000])
            await asyncio.sleep(0)
        await handler.is_closed.wait()
        assert handler.calls == ["opened", "closed"]


async def test_abort() -> None:
    async with serving() as server, connect(server.url) as client:
        handler = await server.handler()
        handler.shell.abort()
        for _ in range(10):
            handler.shell.write([b"to nobody"])
        await client.wait_closed()
        assert client.close_code == 1006
        assert handler.calls == ["opened", "closed"]


async def test_uvicorns_stop_closes_with_1012() -> None:
    async with serving() as server:
        clients = [await connect(server.url) for _ in range(100)]
    for client in clients:
        await client.wait_closed()
        assert client.close_code == 1012
    assert [handler.calls for handler in server.handlers] == [["opened", "closed"]] * 100


# ---------------------------------------------------------------- mistakes of the handler


class Mistaken(Echo):
    wrong = ""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name != super().__getattribute__("wrong"):
            return found

        def mistake(*args: object) -> None:
            found(*args)
            raise RuntimeError("a mistake")

        return mistake


@pytest.mark.parametrize("wrong", ["opened", "received", "writable", "closed"])
async def test_a_mistake_is_one_line_and_1011(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mistaken, "wrong", wrong)
    with capture_logs() as lines:
        async with serving(Mistaken) as server, connect(server.url, max_size=None) as client:
            handler = await server.handler()
            if wrong == "writable":
                handler.shell.write([b"x" * 2**22])
            with suppress(ConnectionClosedError):
                await client.send("hello")
                await client.recv()
                if wrong == "closed":
                    await client.close()
                await client.wait_closed()
            assert client.close_code == (1000 if wrong == "closed" else 1011)
            await handler.is_closed.wait()
            assert handler.calls.count("closed") == 1
    (line,) = lines
    assert line["error"] == "RuntimeError('a mistake')"
    assert line["at"].startswith("test_websocket.py:")


# ---------------------------------------------------------------- backpressure and deadlines


class Quiet(Echo):
    def received(self, data: bytes, binary: bool) -> None:
        self.messages.append((data, binary))


async def test_writable_after_paused() -> None:
    async with serving() as server, connect(server.url, max_size=None) as client:
        handler = await server.handler()
        handler.shell.write([b"x" * 2**23])
        assert handler.shell.paused
        await client.recv()
        await handler.is_writable.wait()
        assert not handler.shell.paused
        handler.shell.write([b"more"])
        assert await client.recv() == "more"


class Busy(Quiet):
    """Can take only a few messages at a time."""

    def received(self, data: bytes, binary: bool) -> None:
        super().received(data, binary)
        self.shell.pause_reading()


async def test_pause_reading_stops_messages_within_a_slice() -> None:
    count = 20000
    async with serving(Busy) as server:
        _, writer = await raw(server)
        handler = await server.handler()
        writer.write(text(b"%06d" % 0) * count)  # 240 KB of 12 bytes each
        seen = 0
        while len(handler.messages) < count:
            await asyncio.sleep(0.001)
            assert len(handler.messages) - seen <= 16384 // 12 + 1
            seen = len(handler.messages)
            handler.shell.resume_reading()
        writer.close()


async def test_a_peer_that_answers_pings_stays() -> None:
    async with serving(limits=ShellLimits(heartbeat_s=0.1)) as server:
        reader, writer = await raw(server)
        for _ in range(4):
            assert await next_frame(reader) == (Opcode.PING, b"")
            writer.write(frame(Opcode.PONG))
        writer.write(text(b"alive"))
        while (await next_frame(reader)) != (Opcode.TEXT, b"alive"):
            pass
        writer.close()


async def test_a_peer_that_is_silent_is_aborted() -> None:
    async with serving(limits=ShellLimits(heartbeat_s=0.1)) as server:
        reader, writer = await raw(server)
        handler = await server.handler()
        assert await next_frame(reader) == (Opcode.PING, b"")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await next_frame(reader)
        await handler.is_closed.wait()
        writer.close()


async def test_a_peer_that_we_do_not_read_is_not_called_silent() -> None:
    limits = ShellLimits(heartbeat_s=0.1)
    async with serving(limits=limits) as server:
        reader, writer = await raw(server)
        handler = await server.handler()
        handler.shell.pause_reading()
        writer.write(text(b"patient"))
        await asyncio.sleep(5 * limits.heartbeat_s)
        assert not handler.is_closed.is_set()
        handler.shell.resume_reading()
        assert await next_frame(reader) == (Opcode.TEXT, b"patient")
        writer.close()


async def narrow(server: Server) -> socket.socket:
    """A client with a small receive buffer that has shaken hands and reads nothing by itself."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", server.port))
    await loop.sock_sendall(sock, HANDSHAKE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await loop.sock_recv(sock, 1)
    return sock


class Flooding(Quiet):
    """Sends as long as it may, as a pump does."""

    def opened(self) -> None:
        super().opened()
        self.writable()

    def writable(self) -> None:
        while not self.shell.paused:
            self.shell.write([b"x" * 4096])


async def test_a_peer_that_takes_nothing_is_aborted_at_the_write_deadline() -> None:
    async with serving(Flooding, limits=ShellLimits(write_deadline_s=0.2)) as server:
        sock = await narrow(server)
        handler = await server.handler()
        started = asyncio.get_running_loop().time()
        await handler.is_closed.wait()
        assert 0.2 <= asyncio.get_running_loop().time() - started < 5.0
        sock.close()


async def test_a_half_open_peer_that_takes_nothing_does_not_linger_either() -> None:
    async with serving(Flooding, limits=ShellLimits(close_timeout_s=0.1)) as server:
        sock = await narrow(server)
        handler = await server.handler()
        sock.shutdown(socket.SHUT_WR)
        await handler.is_closed.wait()
        assert handler.calls == ["opened", "closed"]
        sock.close()


async def test_a_slow_peer_that_takes_something_is_not_aborted() -> None:
    """It never gets under the low-water mark within the deadline, and outlives many of them."""
    limits = ShellLimits(write_deadline_s=0.3, heartbeat_s=0.2)
    async with serving(Flooding, limits=limits) as server:
        sock = await narrow(server)
        handler = await server.handler()
        loop = asyncio.get_running_loop()
        end = loop.time() + 5 * limits.write_deadline_s
        while loop.time() < end:
            assert await loop.sock_recv(sock, 16384)
            await asyncio.sleep(0.1)
        assert not handler.is_closed.is_set()
        sock.close()


async def test_a_ping_flood_by_a_peer_that_never_reads_costs_nothing() -> None:
    """Pongs are not queued over the high-water mark; the latest is sent when there is room again."""
    async with serving(Flooding) as server:
        sock = await narrow(server)
        handler = await server.handler()
        transport = handler.shell._transport
        assert handler.shell.paused
        loop = asyncio.get_running_loop()
        for number in range(2000):
            await loop.sock_sendall(sock, b"".join(frame(Opcode.PING, b"%09d" % number) for _ in range(10)))
        await until(lambda: handler.shell._pong[2:] == b"%09d" % 1999)
        assert transport.get_write_buffer_size() <= ShellLimits().high_water_bytes + 4100
        seen = b""
        while b"\x8a\x09000001999" not in seen:
            seen = seen[-16:] + await loop.sock_recv(sock, 2**20)
        sock.close()


class Answering(Flooding):
    """Answers though it is paused."""

    def received(self, data: bytes, binary: bool) -> None:
        super().received(data, binary)
        self.shell.write([b"y" * 1000])


async def test_a_peer_whose_answers_pile_up_is_not_read_until_it_reads() -> None:
    limits = ShellLimits()
    async with serving(Answering, limits=limits) as server:
        sock = await narrow(server)
        handler = await server.handler()
        loop = asyncio.get_running_loop()
        flood = asyncio.create_task(loop.sock_sendall(sock, text(b"q") * 200_000))
        await until(lambda: handler.shell._intake.held)
        await asyncio.sleep(0.05)
        # A slice may bring 2,340 questions, each is answered with 1,004 bytes.
        bound = limits.high_water_bytes + OVERRUN_BYTES + 2400 * 1004
        assert handler.shell._transport.get_write_buffer_size() <= bound
        answered = len(handler.messages)
        while len(handler.messages) == answered:
            await loop.sock_recv(sock, 2**20)
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        sock.close()


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_tls(authority: trustme.CA) -> None:
    tls, trusting = contexts(authority)
    async with serving(tls=tls) as server:
        url = server.url.replace("ws://", "wss://")
        async with connect(url, ssl=trusting, max_size=None) as client:
            handler = await server.handler()
            await handler.is_open.wait()
            assert handler.shell.secure
            await client.send("hello")
            assert await client.recv() == "hello"
            sent = 0
            while not handler.shell.paused:  # the TLS layer has a buffer of its own below ours
                handler.shell.write([b"x" * 65536])
                sent += 1
            for _ in range(sent):
                assert len(await client.recv()) == 65536
            await handler.is_writable.wait()
            await client.send("x" * 100_000)
            await client.wait_closed()
            assert client.close_code == 1009
        await handler.is_closed.wait()


async def test_tls_write_deadline(authority: trustme.CA) -> None:
    tls, trusting = contexts(authority)
    async with serving(Flooding, tls=tls, limits=ShellLimits(write_deadline_s=0.2)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusting)
        writer.write(HANDSHAKE)
        writer.transport.pause_reading()
        handler = await server.handler()
        await handler.is_closed.wait()
        writer.transport.abort()
        del reader


def test_the_seam_is_what_handlers_are() -> None:
    handler: type[Handler] = Echo
    assert {name for name in vars(Handler) if not name.startswith("_")} <= set(dir(handler))
    assert "__dict__" not in dir(WebSocketShell), "every attribute has a slot"
