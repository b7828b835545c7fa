"""One connection that follows channels and carries commands: what belongs to what, whole and byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from redis import exceptions

from gateway.logs import redis_wire
from gateway.logs.log import LogUnavailable
from gateway.logs.redis_wire import Wire


class Transport:
    """Where the wire writes, and nothing comes from but what a test feeds."""

    def __init__(self) -> None:
        self.written = b""
        self.waiting_bytes = 0
        self.closing = False
        self.protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Hears:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def message(self, channel: bytes, payload: bytes) -> None:
        self.heard.append((channel, payload))

    def unsubscribed(self, channel: bytes) -> None:
        self.heard.append(("unsubscribed", channel))

    def refused(self, problem: exceptions.ResponseError) -> None:
        self.heard.append(("refused", str(problem)))


def push(*words: bytes | int) -> bytes:
    parts = [b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b">%d\r\n" % len(words) + b"".join(parts)


def message(channel: bytes, payload: bytes) -> bytes:
    return push(b"smessage", channel, payload)


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def ears() -> Hears:
    return Hears()


@pytest.fixture
async def wire(transport: Transport, ears: Hears) -> AsyncIterator[Wire]:
    async def disconnect(nowait: bool) -> None:
        transport.closing = True

    writer = SimpleNamespace(transport=transport)
    wire = Wire(SimpleNamespace(_writer=writer, disconnect=disconnect), "here", ears)  # type: ignore[arg-type]
    yield wire
    await wire.close()


Feed = Callable[[Wire, bytes], None]


def whole(wire: Wire, data: bytes) -> None:
    wire.data_received(data)


def byte_by_byte(wire: Wire, data: bytes) -> None:
    for at in range(len(data)):
        wire.data_received(data[at : at + 1])


feeds = pytest.mark.parametrize("feed", [whole, byte_by_byte])


@feeds
async def test_replies_confirmations_and_messages_find_whom_they_are_for(wire: Wire, ears: Hears, feed: Feed) -> None:
    answers: list[Any] = []
    wire.send(lambda reply: answers.append(("first", reply)), "PING")
    wire.subscribe([b"a", b"b"], lambda reply: answers.append(("subscribed", reply)))
    wire.send(lambda reply: answers.append(("second", reply)), b"SPUBLISH", b"a", b"hello")
    wire.unsubscribe([b"b"], lambda reply: answers.append(("unsubscribed", reply)))
    last = wire.ask("ROLE")
    feed(wire, message(b"z", b"0") + b"+PONG\r\n" + push(b"ssubscribe", b"a", 1) + message(b"a", b"1"))
    assert answers == [("first", b"PONG")]
    feed(wire, push(b"ssubscribe", b"b", 2) + message(b"b", b"2") + b":1\r\n" + push(b"sunsubscribe", b"b", 1))
    assert answers[1:] == [("subscribed", None), ("second", 1), ("unsubscribed", None)]
    feed(wire, push(b"invalidate", b"x") + b"*2\r\n$6\r\nmaster\r\n:0\r\n")
    assert await last == [b"master", 0]
    assert ears.heard == [(b"z", b"0"), (b"a", b"1"), (b"b", b"2")]


@feeds
async def test_a_refusal_stands_in_place_of_confirmations(wire: Wire, ears: Hears, feed: Feed) -> None:
    answers: list[Any] = []
    wire.subscribe([b"a", b"b"], answers.append)
    wire.subscribe([b"c"], answers.append)
    after = wire.ask("PING")
    feed(wire, b"-MOVED 5 there:6379\r\n" + push(b"ssubscribe", b"c", 1) + b"+PONG\r\n")
    assert [str(answer) for answer in answers] == ["MOVED 5 there:6379", "None"]
    assert await after == b"PONG"
    assert ears.heard == [("refused", "MOVED 5 there:6379")]


@feeds
async def test_what_the_server_ends_by_itself_is_told_from_what_we_ended(wire: Wire, ears: Hears, feed: Feed) -> None:
    answers: list[Any] = []
    feed(wire, push(b"sunsubscribe", b"a", 0))
    wire.unsubscribe([b"b"], answers.append)
    feed(wire, push(b"sunsubscribe", b"c", 0) + push(b"sunsubscribe", b"b", 0))
    assert ears.heard == [("unsubscribed", b"a"), ("unsubscribed", b"c")]
    assert answers == [None]


async def test_one_loop_turn_is_one_write(wire: Wire, transport: Transport) -> None:
    for _ in range(3):
        wire.ask("PING")
    assert transport.written == b""
    await asyncio.sleep(0)
    assert transport.written == b"*1\r\n$4\r\nPING\r\n" * 3


async def test_a_lost_connection_answers_everybody_once(wire: Wire, transport: Transport) -> None:
    answers: list[Any] = []
    reply = wire.ask("PING")
    wire.subscribe([b"a"], answers.append)
    wire.abort()
    assert isinstance(await reply, LogUnavailable)
    await wire.close()
    assert [type(answer) for answer in answers] == [LogUnavailable]
    with pytest.raises(LogUnavailable, match="was lost"):
        wire.ask("PING")
    assert wire.gone.is_set()


async def test_what_is_no_redis_ends_the_connection(wire: Wire, transport: Transport) -> None:
    reply = wire.ask("PING")
    wire.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert isinstance(await reply, LogUnavailable)
    assert transport.closing


async def test_nothing_piles_up_before_a_server_that_does_not_read(wire: Wire, transport: Transport) -> None:
    transport.waiting_bytes = redis_wire.BACKLOG_BYTES - 1000
    wire.send(lambda reply: None, b"x" * 500)
    with pytest.raises(LogUnavailable, match="keep up"):
        wire.send(lambda reply: None, b"x" * 500)


async def test_a_connection_that_was_lost_meanwhile_is_no_wire(ears: Hears) -> None:
    async def disconnect(nowait: bool) -> None: ...

    with pytest.raises(LogUnavailable, match="was lost"):
        await Wire.open(SimpleNamespace(_writer=None, disconnect=disconnect), "here", ears)  # type: ignore[arg-type]


@pytest.mark.parametrize("greeting", [b"-ERR unknown command 'HELLO'\r\n", b""])
async def test_a_server_that_speaks_no_resp3_or_nothing_at_all(
    greeting: bytes, transport: Transport, ears: Hears, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "GREET_S", 0.05)

    async def disconnect(nowait: bool) -> None: ...

    connection: Any = SimpleNamespace(_writer=SimpleNamespace(transport=transport), disconnect=disconnect)
    opening = asyncio.create_task(Wire.open(connection, "here", ears))
    await asyncio.sleep(0.01)
    transport.protocol.data_received(greeting)
    with pytest.raises(LogUnavailable, match="refuses a command" if greeting else "doesn't answer"):
        await opening
