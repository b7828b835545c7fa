"""An event stream over real sockets, and over servers that have no short way."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway.edge import reader as readers
from gateway.edge.http_guard import CHUNKS
from gateway.edge.sse import Ended, EventStream, after_turn, when_idle
from gateway.logs.feed import Feed
from gateway.logs.log import Position
from protocol.merge import SLICE_BYTES
from protocol.sse import EventParser
from tests.support.faults import FaultLog, ask, begun, end, say
from tests.support.node import KEY, feeds_of
from tests.support.serving import Server, serving

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture
async def log() -> FaultLog:
    return FaultLog()


@pytest.fixture
async def feed(log: FaultLog, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Feed]:
    """With a turn that has begun. No test may leave a cursor or a task."""
    monkeypatch.setattr(readers, "LOG_RETRY_S", 0.005)
    async with begun(log, KEY) as feed:
        yield feed
        await until(lambda: feed.cursors == () and not names())


def names() -> list[str]:
    return [name for task in asyncio.all_tasks() if "sse" in (name := task.get_name())]


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


def stream(feed: Feed, ended: Ended | None = None, **options: Any) -> EventStream:
    return EventStream(
        feeds_of(feed), feed, Position(0, 0), ended or after_turn("t1"), **{"heartbeat_s": 60, **options}
    )


class Spy:
    """An ASGI app that counts the ways by which parts of the body go."""

    def __init__(self, made: EventStream, *, short_way: bool = True) -> None:
        self.made = made
        self.short_way = short_way
        self.refused = self.short = self.long = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        chunks = scope.pop("extensions")[CHUNKS]["write"]

        def write(body: bytes) -> bool:
            taken: bool = chunks(body)
            self.short += taken
            self.refused += not taken
            return taken

        async def count(message: Any) -> None:
            self.long += message["type"] == "http.response.body" and bool(message["body"])
            await send(message)

        if self.short_way:
            scope["extensions"] = {CHUNKS: {"write": write}}
        await self.made(scope, receive, count)


def dechunked(answer: bytes) -> tuple[bytes, bool]:
    """The body of an answer, and whether it has an end."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            return body, True
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body, False


def frames_of(body: bytes, upto: int | None) -> list[dict[str, Any]]:
    """Those of logged entries are in order, without gap or duplicate, and end at entry `upto`."""
    frames = [orjson.loads(event.data) for event in EventParser(2 * SLICE_BYTES).feed(body)]
    at = 0
    for frame in frames:
        if frame["type"] != "deleted":
            assert frame.get("first_seq", frame["seq"]) == at + 1
            at = frame["seq"]
    assert upto in (None, at)
    return frames


def kinds(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["type"] for frame in frames]


@asynccontextmanager
async def connected(server: Server, request: bytes = GET) -> AsyncIterator[socket.socket]:
    """A client that takes nothing unless it is asked to, and has little room in between."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        await loop.sock_sendall(sock, request)
        yield sock


async def rest(sock: socket.socket) -> bytes:
    answer, loop = b"", asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while piece := await loop.sock_recv(sock, 1 << 16):
            answer += piece
    return answer


async def attached(feed: Feed) -> None:
    """The stream is level, and its task waits."""
    await until(lambda: feed.cursors and feed.cursors[0].level)  # type: ignore[attr-defined]  # a cursor
    await asyncio.sleep(0.002)


async def fill(feed: Feed, spy: Spy) -> None:
    """Says more than the client takes, until the stream waits for it."""
    async with asyncio.timeout(10):
        while not spy.long:
            say(feed, "x" * 5000)
            await feed.when_committed(feed.seq)


async def test_text_goes_the_short_way_one_piece_a_loop_turn(feed: Feed) -> None:
    spy = Spy(stream(feed, ref="r", own_seq=1))
    async with serving(app=spy) as server, connected(server) as sock:
        await attached(feed)
        for text in "abcdef":
            say(feed, text)
            await asyncio.sleep(0.002)
        end(feed)
        body, whole = dechunked(await rest(sock))
    frames = frames_of(body, 8)
    assert kinds(frames) == ["message", *["token"] * 6, "done"]
    assert [frame.get("ref") for frame in frames] == ["r", *[None] * 7]
    assert whole
    assert (spy.short, spy.refused, spy.long) == (8, 0, 0)


async def test_a_stream_that_isnt_taken_waits_and_goes_on_with_large_slices(feed: Feed) -> None:
    spy = Spy(stream(feed))
    async with serving(app=spy) as server, connected(server) as sock:
        await attached(feed)
        await fill(feed, spy)
        assert (spy.refused, spy.long) == (2, 1), "by the pump, which woke the task, and by the task"
        written = spy.short
        for _ in range(100):
            say(feed, *["y" * 100] * 100)
            await feed.when_committed(feed.seq)
        assert (spy.short, spy.long) == (written, 1)
        assert feed.tail_bytes < 300_000
        end(feed)
        await feed.when_committed(feed.seq)
        frames = frames_of(dechunked(await rest(sock))[0], feed.seq)
    assert "".join(frame["content"] for frame in frames if frame["type"] == "token").endswith("x" + "y" * 1_000_000)
    assert kinds(frames[-2:]) == ["token", "done"]
    assert max(len(orjson.dumps(frame)) for frame in frames) <= SLICE_BYTES
    assert sum("y" in frame["content"] for frame in frames if frame["type"] == "token") < 30


async def test_once_it_is_taken_again_text_goes_the_short_way_again(feed: Feed) -> None:
    spy = Spy(stream(feed))
    async with serving(app=spy) as server, connected(server) as sock:
        await attached(feed)
        await fill(feed, spy)
        reading = asyncio.create_task(rest(sock))
        await attached(feed)
        before = spy.short, spy.long
        say(feed, "z")
        await attached(feed)
        assert (spy.short, spy.long) == (before[0] + 1, before[1])
        end(feed)
        frames_of(dechunked(await reading)[0], feed.seq)


@pytest.mark.parametrize("when", ["level", "pump due", "paused", "log is read", "log is down"])
async def test_a_client_that_hangs_up_leaves_nothing(feed: Feed, log: FaultLog, when: str) -> None:
    spy = Spy(stream(feed))
    if when.startswith("log"):
        feed._drop(1)
        log.read_s, log.down = 5.0, when == "log is down"
    async with serving(app=spy) as server, connected(server) as sock:
        if when.startswith("log"):
            await until(lambda: log.reads)
        else:
            await attached(feed)
        if when == "paused":
            await fill(feed, spy)
            say(feed, "more")
        sock.close()
        if when == "pump due":
            say(feed, "more")
        log.read_s = 0.0
        if when == "log is read":
            await asyncio.sleep(0.01)
            [reading] = [task for task in asyncio.all_tasks() if "run_asgi" in repr(task.get_coro())]
            reading.cancel()  # rather than wait for it
            await asyncio.wait([reading])
        await until(lambda: feed.cursors == ())
        say(feed, "nobody hears this")
    assert names() == []


async def test_a_bug_in_the_pump_cuts_the_stream_and_is_logged(
    feed: Feed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unhandled: list[Any] = []
    async with serving(app=Spy(stream(feed))) as server, connected(server) as sock:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        await attached(feed)
        monkeypatch.setattr("gateway.edge.sse.JSON", None)
        say(feed, "a")
        body, whole = dechunked(await rest(sock))
        assert (kinds(frames_of(body, 1)), whole) == (["message"], False)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert unhandled == []
    caplog.clear()


@pytest.mark.parametrize("how", ["deleted", "handed over"])
async def test_the_end_of_a_feed_comes_behind_its_text(feed: Feed, how: str) -> None:
    async with serving(app=Spy(stream(feed))) as server, connected(server) as sock:
        await attached(feed)
        say(feed, "a")
        if how == "deleted":
            feed.deleted = True
            feed._wake()
        else:
            feed.hand_over()
        body, whole = dechunked(await rest(sock))
    assert whole
    assert kinds(frames_of(body, 2)) == ["message", "token", *["deleted"] * (how == "deleted")]


async def test_an_attached_stream_ends_when_nothing_is_left_to_tell(feed: Feed) -> None:
    async with serving(app=Spy(stream(feed, when_idle))) as server, connected(server) as sock:
        await attached(feed)
        ask(feed, turn_id="t2")
        for turn_id in ("t1", "t2"):
            say(feed, "a", turn_id=turn_id)
            await asyncio.sleep(0.002)
            end(feed, turn_id)
            await feed.when_committed(feed.seq)
        body, whole = dechunked(await rest(sock))
    assert whole
    assert kinds(frames_of(body, 6)) == ["message", "message", "token", "done", "token", "done"]


@pytest.mark.parametrize(
    ("request_", "short_way"),
    [(GET, False), (GET.replace(b"HTTP/1.1", b"HTTP/1.0"), True)],
    ids=["another server", "HTTP/1.0"],
)
async def test_without_the_short_way_it_is_the_same(feed: Feed, request_: bytes, short_way: bool) -> None:
    spy = Spy(stream(feed), short_way=short_way)
    async with serving(app=spy) as server, connected(server, request_) as sock:
        await attached(feed)
        for text in "abc":
            say(feed, text)
            await asyncio.sleep(0.002)
        end(feed)
        frames = frames_of(dechunked(await rest(sock))[0], 5)
    assert kinds(frames) == ["message", "token", "token", "token", "done"]
    assert short_way or spy.long == 5


async def test_head_has_no_body(feed: Feed) -> None:
    spy = Spy(stream(feed))
    async with serving(app=spy) as server, connected(server, GET.replace(b"GET", b"HEAD")) as sock:
        await attached(feed)
        say(feed, "a")
        await asyncio.sleep(0.002)
        end(feed)
        answer = await rest(sock)
    assert answer.endswith(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1
    assert spy.short == 0


async def test_heartbeats_come_in_silence_only(feed: Feed) -> None:
    spy = Spy(stream(feed, heartbeat_s=0.3))
    async with serving(app=spy) as server, connected(server) as sock:
        await attached(feed)
        for _ in range(15):
            say(feed, "a")
            await asyncio.sleep(0.03)
        assert spy.short == 16
        await until(lambda: spy.short == 18)
        end(feed)
        body, _ = dechunked(await rest(sock))
    assert body.count(b"\n\n:\n\n:\n\n") == 1
    assert body.count(b"\n:") == 2
