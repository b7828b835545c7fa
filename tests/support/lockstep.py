"""A client and an upstream in one thread, with plain sockets, in step: a chunk goes up, its token comes down.

Nothing else happens meanwhile, so that what a gateway does for a token can be counted.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

TIMEOUT_S = 20.0
KEY = b"AAECAwQFBgcICQoLDA0ODw=="
SHELL = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764000000,"model":"m","choices":'


def chunk(data: bytes) -> bytes:
    """Of HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str) -> bytes:
    """A chunk with one token in OpenAI's shape."""
    delta = orjson.dumps({"content": text}).decode()
    return chunk(f'data: {SHELL}[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null}}]}}\n\n'.encode())


class Reading:
    """A blocking socket, read piece by piece."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._data = bytearray()
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _more(self) -> None:
        data = self.socket.recv(1 << 18)
        assert data, "the gateway hung up"
        self._data += data

    def until(self, end: bytes) -> bytes:
        while (at := self._data.find(end)) < 0:
            self._more()
        return self._take(at + len(end))

    def exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            self._more()
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken


class Upstream:
    """Answers one request, when it is told to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._connection: Reading | None = None

    def begin(self) -> None:
        """Takes the request, and sends the head of its answer."""
        self._connection = Reading(self._listener.accept()[0])
        head = self._connection.until(b"\r\n\r\n").lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        assert b'"stream":true' in self._connection.exactly(length)
        self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    def send(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.socket.sendall(data)

    def close(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.socket.close()


class Client(ABC):
    """Asks one question, and reads frames."""

    def __init__(self, port: int) -> None:
        self._reading = Reading(socket.create_connection(("127.0.0.1", port)))

    @abstractmethod
    def ask(self) -> None: ...

    @abstractmethod
    def next_frame(self) -> dict[str, Any]: ...

    def frame(self, kind: str) -> dict[str, Any]:
        """The next of that type; others are passed over."""
        while (frame := self.next_frame())["type"] != kind:
            pass
        return frame

    def token(self) -> str:
        text: str = self.frame("token")["content"]
        return text

    def close(self) -> None:
        self._reading.socket.close()


class WebSocketClient(Client):
    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._reading.socket.sendall(
            b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
        )
        assert b" 101 " in self._reading.until(b"\r\n\r\n")

    def ask(self) -> None:
        frame = orjson.dumps({"type": "chat_message", "conversation_id": "c", "message": "go"})
        self._reading.socket.sendall(b"\x81" + bytes([0x80 | len(frame)]) + bytes(4) + frame)  # masked with zeros

    def next_frame(self) -> dict[str, Any]:
        length = self._reading.exactly(2)[1] & 127
        if length >= 126:
            length = int.from_bytes(self._reading.exactly(2 if length == 126 else 8), "big")
        frame: dict[str, Any] = orjson.loads(self._reading.exactly(length))
        return frame


class EventClient(Client):
    """The same over SSE."""

    def ask(self) -> None:
        body = b'{"conversation_id":"c","message":"go"}'
        self._reading.socket.sendall(
            b"POST /api/chat/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    def next_frame(self) -> dict[str, Any]:
        while not (line := self._reading.until(b"\n")).startswith(b"data:"):
            pass
        frame: dict[str, Any] = orjson.loads(line[5:])
        return frame


@contextmanager
def streaming(client: Client, upstream: Upstream) -> Iterator[None]:
    """A question is asked, and its first token has arrived; its answer ends with the block."""
    try:
        client.ask()
        upstream.begin()
        upstream.send(event("first"))
        assert client.token() == "first"
        yield
        upstream.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        client.frame("done")
    finally:
        client.close()
        upstream.close()


def one_by_one(client: Client, upstream: Upstream, count: int) -> None:
    """Each token alone: the next is sent when the one before has arrived."""
    for number in range(count):
        upstream.send(event(f"word{number % 10}"))
        assert client.token() == f"word{number % 10}"


def at_once(client: Client, upstream: Upstream, count: int) -> None:
    """All tokens in one write, as a gateway finds them that couldn't keep up."""
    upstream.send(event("words ") * count)
    text = 0
    while text < 6 * count:
        text += len(client.token())
