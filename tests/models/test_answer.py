"""Answers of an HTTP/1.1 server, whole and byte by byte: the same for who reads."""

import asyncio
import gzip
import math
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest

from gateway.models.answer import HEAD_BYTES, INFLATED_BYTES, UNREAD_BYTES, Answer, Broken, Unanswered

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Wire:
    """What the answer asks of its connection."""

    def __init__(self) -> None:
        self.held: list[float] = []
        self.kept: list[bool] = []

    def go_on(self, hold_s: float) -> None:
        self.held.append(hold_s)

    def ended(self, *, keep: bool) -> None:
        self.kept.append(keep)


Cut = Callable[[bytes], list[bytes]]


def at_once(data: bytes) -> list[bytes]:
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in data]


cuts = pytest.mark.parametrize("cut", [at_once, byte_by_byte])


async def body_of(answer: Answer) -> bytes:
    body = bytearray()

    def take(data: bytes, _: float) -> float:
        body.extend(data)
        return 0.0

    await answer.head()
    while await answer.read(take):
        pass
    return bytes(body)


def feed(answer: Answer, wire: Wire, data: bytes, cut: Cut, *, ends: bool = False) -> None:
    for piece in cut(data):
        if wire.kept:
            break
        answer.received(piece, 0.0)
    if ends and not wire.kept:
        answer.lost(None)


@cuts
@pytest.mark.parametrize(
    ("data", "ends", "body", "keep"),
    [
        pytest.param(CHUNKED + b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n", False, b"abc", True, id="chunked"),
        pytest.param(CHUNKED + b"1\r\na\r\n0\r\nx-trailer: 1\r\n\r\n", False, b"a", True, id="trailers"),
        pytest.param(OK + b"content-length: 3\r\n\r\nabc", False, b"abc", True, id="length"),
        pytest.param(OK + b"content-length: 0\r\n\r\n", False, b"", True, id="nothing"),
        pytest.param(OK + b"connection: close\r\ncontent-length: 1\r\n\r\na", False, b"a", False, id="close"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", False, b"a", False, id="HTTP/1.0"),
        pytest.param(OK + b"\r\nabc", True, b"abc", False, id="to the end of the connection"),
        pytest.param(
            OK + b"transfer-encoding: identity\r\n\r\nabc", True, b"abc", False, id="to the end, by its encoding"
        ),
        pytest.param(OK.replace(b"\r", b"") + b"content-length: 1\n\na", False, b"a", True, id="bare line feeds"),
        pytest.param(CHUNKED + b"1  \r\na\r\n0\r\n\r\n", False, b"a", True, id="padded chunk size"),
        pytest.param(b"HTTP/1.1 204 X\r\n\r\n", False, b"", True, id="no content"),
        pytest.param(
            b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK + b"content-length: 1\r\n\r\na", False, b"a", True, id="103"
        ),
        pytest.param(
            b"HTTP/1.1 103 Early\r\ncontent-encoding: gzip\r\nlink: x\r\n\r\n" + OK + b"content-length: 1\r\n\r\na",
            False,
            b"a",
            True,
            id="103, of an answer that then isn't compressed",
        ),
    ],
)
async def test_whole(cut: Cut, data: bytes, ends: bool, body: bytes, keep: bool) -> None:
    wire = Wire()
    answer = Answer(wire)
    reading = asyncio.create_task(body_of(answer))
    await asyncio.sleep(0)
    feed(answer, wire, data, cut, ends=ends)
    assert await reading == body
    assert wire.kept == [keep]
    assert all(name != b"link" for name, _ in answer.headers)


@cuts
@pytest.mark.parametrize("packed", [gzip.compress(b"hello", mtime=0), zlib.compress(b"hello")])
async def test_compressed_although_nobody_asked(cut: Cut, packed: bytes) -> None:
    wire = Wire()
    answer = Answer(wire)
    kind = b"gzip" if packed[:2] == b"\x1f\x8b" else b"deflate"
    feed(answer, wire, OK + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(packed)) + packed, cut)
    assert await body_of(answer) == b"hello"
    assert answer.headers == [(b"content-length", b"%d" % len(packed))]


@cuts
@pytest.mark.parametrize(
    ("data", "seen"),
    [
        pytest.param(b"garbage\r\n\r\n", None, id="no HTTP"),
        pytest.param(b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", None, id="another protocol"),
        pytest.param(OK + b"x: " + b"y" * HEAD_BYTES, None, id="an endless head"),
        pytest.param(CHUNKED + b"2\r\nab\r\nzz\r\n", b"ab", id="garbage between chunks"),
        pytest.param(CHUNKED + b"1\r\nab\r\n", b"a", id="a chunk too long"),
        pytest.param(CHUNKED + b"2\r\nab\r\n", b"ab", id="no last chunk"),
        pytest.param(OK + b"content-length: 3\r\n\r\nab", b"ab", id="too short"),
        pytest.param(OK + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc", b"", id="not gzip"),
    ],
)
async def test_broken(cut: Cut, data: bytes, seen: bytes | None) -> None:
    wire = Wire()
    answer = Answer(wire)
    body = bytearray()

    def take(data: bytes, _: float) -> float:
        body.extend(data)
        return 0.0

    async def read() -> None:
        await answer.head()
        await answer.read(take)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    for piece in cut(data):
        if wire.kept:
            break
        answer.received(piece, 0.0)
        await asyncio.sleep(0)
    if not wire.kept:
        answer.lost(None)
    with pytest.raises(Broken):
        await reading
    assert wire.kept == [False]
    if seen:
        assert body == seen


async def test_a_read_may_not_become_too_much() -> None:
    answer = Answer(Wire())
    answer.received(OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(bytes(2 << 20)), 0.0)
    with pytest.raises(Broken):
        await body_of(answer)


async def test_a_read_may_not_become_too_much_in_many_chunks() -> None:
    packed, wire = gzip.compress(bytes(100 << 20)), Wire()
    chunks = [packed[start : start + 900] for start in range(0, len(packed), 900)]
    body = b"".join([b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks])
    answer = Answer(wire)
    answer.received(OK + b"content-encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + body, 0.0)
    assert wire.kept == [False]
    size = 0

    def take(data: bytes, _: float) -> float:
        nonlocal size
        size += len(data)
        return 0.0

    with pytest.raises(Broken):
        await answer.read(take)
    assert size <= INFLATED_BYTES


async def test_many_reads_may_become_much() -> None:
    packed = gzip.compress(bytes(8 << 20))
    answer = Answer(Wire())
    answer.received(OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed), 0.0)
    read = asyncio.create_task(body_of(answer))
    await asyncio.sleep(0)
    for start in range(0, len(packed), 500):
        answer.received(packed[start : start + 500], 0.0)
    assert await read == bytes(8 << 20)


async def test_what_follows_a_compressed_body_is_bounded() -> None:
    wire = Wire()
    answer = Answer(wire)
    answer.received(OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"hello"), 0.0)
    read = asyncio.create_task(body_of(answer))
    for _ in range(HEAD_BYTES // 4096 + 1):
        assert not wire.kept
        await asyncio.sleep(0)
        answer.received(b"x" * 4096, 0.0)
    assert wire.kept == [False]
    with pytest.raises(Broken):
        await read


async def test_trailers_are_bounded() -> None:
    wire = Wire()
    answer = Answer(wire)
    answer.received(CHUNKED + b"0\r\nx-trailer: ", 0.0)
    for _ in range(HEAD_BYTES // 4096):
        assert not wire.kept
        answer.received(b"x" * 4096, 0.0)
    assert wire.kept == [False]


async def test_no_limit_to_chunks_that_come_in_pieces() -> None:
    wire = Wire()
    answer = Answer(wire)
    answer.received(CHUNKED, 0.0)
    read = asyncio.create_task(body_of(answer))
    await asyncio.sleep(0)
    for _ in range(HEAD_BYTES // 3 + 1):
        answer.received(b"1\r\n", 0.0)
        answer.received(b"a\r\n", 0.0)
    answer.received(b"0\r\n\r\n", 0.0)
    assert await read == b"a" * (HEAD_BYTES // 3 + 1)


@pytest.mark.parametrize("problem", [None, ConnectionResetError()])
async def test_no_byte_of_an_answer(problem: Exception | None) -> None:
    answer = Answer(Wire())
    answer.lost(problem)
    with pytest.raises(Unanswered) as caught:
        await answer.head()
    assert caught.value.__cause__ is problem


async def test_a_reset_isnt_the_end_of_a_body() -> None:
    answer = Answer(Wire())
    answer.received(OK + b"\r\nabc", 0.0)
    answer.lost(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await body_of(answer)


async def test_more_than_was_asked_for_ends_the_connection() -> None:
    wire = Wire()
    answer = Answer(wire)
    answer.received(OK + b"content-length: 1\r\n\r\na" + OK, 0.0)
    assert await body_of(answer) == b"a"
    assert wire.kept == [False]


async def test_a_second_answer_in_the_same_read_changes_nothing() -> None:
    wire = Wire()
    answer = Answer(wire)
    another = b"HTTP/1.1 500 X\r\nx: y\r\ncontent-length: 5\r\n\r\nhello"
    answer.received(OK + b"content-length: 1\r\n\r\na" + another, 0.0)
    assert await body_of(answer) == b"a"
    assert answer.status == 200
    assert wire.kept == [False]


async def test_what_nobody_takes_is_bounded() -> None:
    wire = Wire()
    answer = Answer(wire)
    assert answer.received(OK + b"\r\n", 0.0) == 0.0
    assert answer.received(b"x" * UNREAD_BYTES, 0.0) == 0.0
    assert answer.received(b"x", 0.0) == math.inf
    read = asyncio.create_task(body_of(answer))
    await asyncio.sleep(0)
    assert wire.held == [0.0]
    answer.lost(None)
    assert len(await read) == UNREAD_BYTES + 1


async def test_reading_in_steps() -> None:
    wire = Wire()
    answer = Answer(wire)
    answer.received(CHUNKED + b"1\r\na\r\n", 0.0)
    taken: list[bytes] = []

    def one(data: bytes, _: float) -> float:
        taken.append(data)
        return math.inf

    assert await answer.read(one)
    assert answer.received(b"1\r\nb\r\n", 0.0) == 0.0
    assert taken == [b"a"]  # the next waits for its reader
    assert await answer.read(one)
    answer.received(b"1\r\nc\r\n0\r\n\r\n", 0.0)
    assert not await answer.read(one)
    assert taken == [b"a", b"b", b"c"]


async def test_the_readers_own_failure_is_the_readers() -> None:
    wire = Wire()
    answer = Answer(wire)
    reading = asyncio.create_task(answer.read(lambda *_: 1 / 0))
    await asyncio.sleep(0)
    assert answer.received(OK + b"\r\nabc", 0.0) == math.inf
    with pytest.raises(ZeroDivisionError):
        await reading
    assert wire.kept == [False]


@pytest.mark.parametrize("reads_first", [True, False])
async def test_the_readers_own_failure_with_the_last_bytes(reads_first: bool) -> None:
    wire = Wire()
    answer = Answer(wire)
    data = OK + b"content-length: 1\r\n\r\na"
    if not reads_first:
        answer.received(data, 0.0)
    reading = asyncio.create_task(answer.read(lambda *_: 1 / 0))
    await asyncio.sleep(0)
    if reads_first:
        answer.received(data, 0.0)
    with pytest.raises(ZeroDivisionError):
        await reading
    assert wire.kept == [not reads_first]


async def test_closed_by_us() -> None:
    wire = Wire()
    answer = Answer(wire)
    answer.received(CHUNKED, 0.0)
    answer.close()
    answer.close()
    assert wire.kept == [False]
    with pytest.raises(Broken):
        await answer.read(lambda *_: 0.0)


async def test_the_same_however_it_is_cut() -> None:
    data = CHUNKED + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
    for at, then in pairwise(range(len(data))):
        wire = Wire()
        answer = Answer(wire)
        feed(answer, wire, data, lambda data, at=at, then=then: [data[:at], data[at:then], data[then:]])  # type: ignore[misc]
        assert await body_of(answer) == b"abcde"
        assert wire.kept == [True]
