from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import orjson
import pytest

from gateway.edge import http_guard
from gateway.edge.http_guard import CHUNKS, MAX_PIPELINED, error_body, guarded_http
from protocol.codes import ErrorCode
from tests.support.serving import Server, serving

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def answers(server: Server, *pieces: bytes, pause_s: float = 0.0) -> list[tuple[int, bytes]]:
    """Status and body of everything that comes back until the server ends the stream."""
    reader, writer = await server.connect()
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return split(await reader.read())
    finally:
        writer.close()


def split(stream: bytes) -> list[tuple[int, bytes]]:
    found = []
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        size = int(length[1])
        found.append((int(head.split(b" ")[1]), rest[:size]))
        stream = rest[size:]
    return found


def code_of(body: bytes) -> tuple[str, bool]:
    error = orjson.loads(body)["error"]
    assert error["message"].endswith(".")
    return error["code"], error["retryable"]


def test_error_body() -> None:
    assert orjson.loads(error_body(ErrorCode.OVERLOADED, "Later.")) == {
        "error": {"code": "OVERLOADED", "message": "Later.", "retryable": True}
    }


def test_guarded_http_makes_a_class_with_its_limits() -> None:
    made = guarded_http(3.0, 500)
    assert (made.handshake_timeout_s, made.max_header_bytes) == (3.0, 500)


async def test_requests_pass() -> None:
    async with serving() as server:
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await answers(server, GET + POST + b"0123456789", last) == [(200, b"ok")] * 3


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="nothing"),
        pytest.param([GET[:-2]], id="half a head"),
        pytest.param([bytes([byte]) for byte in GET[:-2]], id="a head that dribbles"),
        pytest.param([POST + b"01234"], id="half a body"),
        pytest.param([POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked") + b"5\r\n01"], id="chunk"),
    ],
)
async def test_a_half_sent_request_is_answered_with_408(pieces: list[bytes]) -> None:
    async with serving(handshake_timeout_s=0.2) as server:
        ((status, body),) = await answers(server, *pieces, pause_s=0.005)
        assert (status, code_of(body)) == (408, ("BAD_FRAME", True))


@pytest.mark.parametrize("more", [GET[:10], b"\r\n"], ids=["half a head", "a blank line"])
async def test_a_further_request_has_the_same_time(more: bytes) -> None:
    async with serving(handshake_timeout_s=0.2) as server:
        first, (status, _) = await answers(server, GET, more, pause_s=0.05)
        assert (first, status) == ((200, b"ok"), 408)


async def test_a_slow_body_that_moves_is_served() -> None:
    async with serving(handshake_timeout_s=0.3) as server:
        head = POST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await answers(server, head, *[b"x"] * 10, pause_s=0.05) == [(200, b"ok")]


async def test_the_time_is_the_clients_only() -> None:
    """A request that is whole may take as long as it likes, and so may what is pipelined behind it."""
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving(app=app, handshake_timeout_s=0.6) as server:
        reader, writer = await server.connect()
        writer.write(GET + GET[:10])
        await asyncio.sleep(0.9)
        go.set()
        await reader.readuntil(b"ok")
        writer.write(GET[10:])
        await reader.readuntil(b"ok")
        writer.close()


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(GET[:-2] + b"X: " + b"x" * 17000 + b"\r\n\r\n", id="in one read"),
        pytest.param(GET[:-2] + b"X: " + b"x" * 17000, id="without an end"),
        pytest.param(b"GET /" + b"x" * 17000, id="the path"),
        pytest.param(GET[:-2] + b"X: y\r\n" * 3000 + b"\r\n", id="many"),
        pytest.param(GET[:-2] + b"X: " + b"x" * 2**20, id="more than is read at once"),
        pytest.param(
            GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\nX: " + b"x" * 17000 + b"\r\n\r\n", id="upgrade"
        ),
    ],
)
async def test_a_large_head_is_refused_with_431(stream: bytes) -> None:
    async with serving() as server:
        ((status, body),) = await answers(server, stream)
        assert (status, code_of(body)) == (431, ("FRAME_TOO_LARGE", False))


async def test_a_head_within_the_bound_may_come_after_a_large_body() -> None:
    body = b"x" * 100_000
    post = POST.replace(b"10", b"100000") + body
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(post + GET[:-2] + b"X: " + b"x" * 15000)
        await reader.readuntil(b"ok")
        writer.write(b"\r\n\r\n")
        await reader.readuntil(b"ok")
        writer.close()


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="TLS"),
        pytest.param(b"hello\r\n\r\n", id="words"),
        pytest.param(GET.replace(b"Host", b"Ho st"), id="a header name"),
        pytest.param(POST.replace(b"10", b"ten"), id="a length"),
        pytest.param(POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked") + b"zz\r\n", id="a chunk"),
    ],
)
async def test_what_is_not_http_is_answered_with_our_400(stream: bytes) -> None:
    async with serving() as server:
        ((status, body),) = await answers(server, stream)
        assert (status, code_of(body)) == (400, ("BAD_FRAME", False))


async def test_too_many_pipelined_requests_end_the_connection() -> None:
    asked = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    async with serving(app=app) as server:
        assert await answers(server, GET * (MAX_PIPELINED + 2)) == []
        assert asked <= 1
        for task in server.uvicorn.server_state.tasks:
            task.cancel()


async def test_an_upgrade_behind_a_running_request_is_refused() -> None:
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()  # the end of the connection

    async with serving(app=app) as server:
        assert await answers(server, GET + upgrade) == []
        assert server.handlers == []


async def test_a_refused_client_that_stays_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "LINGER_S", 0.1)
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(b"hello\r\n\r\n")
        await reader.read()
        assert len(server.connections) == 1
        while server.connections:
            writer.write(b"x")
            await asyncio.sleep(0.01)
        writer.close()


async def test_trailers_are_dropped() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        seen.extend(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    chunked = POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked\r\nConnection: close")
    async with serving(app=app) as server:
        assert await answers(server, chunked + b"1\r\nx\r\n0\r\nX-Late: 1\r\n\r\n") == [(200, b"")]
        assert b"x-late" not in seen


@pytest.mark.parametrize(("takes_something", "lasts"), [(False, False), (True, True)], ids=["stuck", "slow"])
async def test_only_a_client_that_takes_nothing_of_an_answer_is_aborted(takes_something: bool, lasts: bool) -> None:
    gone = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watch = asyncio.create_task(receive_until_gone(receive, gone))
        while not gone.is_set():
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        await watch

    async with serving(app=endless, write_deadline_s=0.4) as server:
        reader, writer = await server.connect()
        writer.write(GET)
        if takes_something:
            for _ in range(12):
                await reader.readexactly(400_000)
                await asyncio.sleep(0.1)
            assert gone.is_set() is not lasts
            writer.transport.abort()
        async with asyncio.timeout(10):
            await gone.wait()
        writer.transport.abort()


async def receive_until_gone(receive: Any, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def test_chunks_may_be_written_past_the_layers_while_the_client_takes_them() -> None:
    """What the short way refuses, the long way sends; the stream is one, in order."""
    short = long = 0
    later: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal short, long
        write = scope["extensions"][CHUNKS]["write"]
        assert not write(b"x")  # nothing has begun
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not write(b"")  # it would end the answer
        for number in range(300):
            body = b"%08d" % number * 8192
            if write(body):
                short += 1
            else:
                long += 1
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        later.append(write(b"x"))

    async with serving(app=app) as server:
        reader, writer = await server.connect()
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        for number in range(300):
            size = int(await reader.readline(), 16)
            assert await reader.readexactly(size + 2) == b"%08d" % number * 8192 + b"\r\n"
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.close()
    assert short > 0
    assert long > 0
    assert later == [False]
