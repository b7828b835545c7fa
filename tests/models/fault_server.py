"""A raw server for the faults that no well-behaved mock produces, and which sees when its client hangs up."""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Exchange:
    """One request on one connection."""

    def __init__(self, body: bytes, headers: bytes, writer: asyncio.StreamWriter, connection: int) -> None:
        self.body = body
        self.headers = headers
        self.connection = connection
        """Which connection it came over, counted from 0."""
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def events(self, *payloads: bytes) -> None:
        """`data:` lines in one HTTP chunk each."""
        for payload in payloads:
            line = b"data: " + payload + b"\n\n"
            self.write(b"%x\r\n%s\r\n" % (len(line), line))

    def end(self) -> None:
        self.write(b"0\r\n\r\n")

    def answer(self, status: int, body: bytes, headers: bytes = b"content-type: application/json\r\n") -> None:
        self.write(b"HTTP/1.1 %d X\r\n%scontent-length: %d\r\n\r\n%s" % (status, headers, len(body), body))

    def reset(self) -> None:
        """RST instead of FIN."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()

    def close_at_once(self) -> None:
        """FIN, through TLS without a word. Not before the loop has written all."""
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)


Play = Callable[[Exchange], Awaitable[None] | None]


class Upstream:
    """Answers every request with `play`; a play that returns without closing keeps the connection open."""

    def __init__(self) -> None:
        self.play: Play = lambda exchange: None
        self.exchanges: list[Exchange] = []
        self.asked = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.base_url = ""
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, self.connections = self.connections, self.connections + 1
        try:
            while True:
                headers = await reader.readuntil(b"\r\n\r\n")
                length = next(h for h in headers.lower().split(b"\r\n") if h.startswith(b"content-length:"))
                exchange = Exchange(await reader.readexactly(int(length[15:])), headers, writer, connection)
                self.exchanges.append(exchange)
                self.asked.set()
                if (later := self.play(exchange)) is not None:
                    await later
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()
