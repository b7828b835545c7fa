"""The load test's own reader of event streams: events however they are cut, and answers that are none."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from benchmarks.load.http_stream import HttpStream

EVENTS = [(b"1", b'{"a": "x: y"}'), (b"", b"{}"), (b"12.34", b'{"b": "data: \\n\\n"}')]
STREAM = b":\n\nid: 1\ndata: " + EVENTS[0][1] + b"\n\ndata: {}\n\n:\n\nid: 12.34\ndata: " + EVENTS[2][1] + b"\n\n"


class Wire:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


class Owner:
    def __init__(self) -> None:
        self.events: list[tuple[bytes, bytes]] = []
        self.answers: list[Any] = []
        self.ends: list[str] = []

    def event(self, cursor: bytes, data: bytes, now: float) -> None:
        self.events.append((cursor, data))

    def read(self, size_bytes: int, now: float) -> None: ...

    def answered(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.answers.append((status, headers, body))

    def closed(self, reason: str) -> None:
        self.ends.append(reason)


def asked() -> tuple[HttpStream, Owner, Wire]:
    owner, wire = Owner(), Wire()
    stream = HttpStream(owner)
    stream.connection_made(cast("asyncio.BaseTransport", wire))
    stream.request(b"GET / HTTP/1.1\r\n\r\n")
    return stream, owner, wire


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("read", [1, 3, 1000])
def test_events_however_they_are_cut(chunk: int, read: int) -> None:
    stream, owner, _ = asked()
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(STREAM, chunk)
    assert not stream.usable
    for _ in range(2):  # on the same connection
        for at in range(0, len(answer), read):
            stream.data_received(answer[at : at + read])
        assert stream.usable
    assert owner.events == EVENTS * 2
    assert [(status, body) for status, _, body in owner.answers] == [(200, b"")] * 2


def test_a_refusal() -> None:
    stream, owner, wire = asked()
    stream.data_received(b"HTTP/1.1 503 No\r\nRetry-After: 3\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
    assert owner.answers == [(503, {"retry-after": "3", "connection": "close", "content-length": "2"}, b"{}")]
    assert owner.events == []
    assert wire.closed


def test_what_isnt_http() -> None:
    stream, owner, wire = asked()
    stream.data_received(b"SSH-2.0-OpenSSH\r\n")
    assert wire.closed
    stream.connection_lost(None)
    assert owner.ends == ["the connection broke"]


def test_nobody_hears_of_an_abandoned_one() -> None:
    stream, owner, wire = asked()
    stream.abandon()
    stream.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(STREAM, 1000))
    stream.connection_lost(None)
    assert wire.closed
    assert (owner.events, owner.answers, owner.ends) == ([], [], [])
