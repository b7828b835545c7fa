"""Readers that hide nothing: one TCP connection each, every frame handed on as it came, and cut at a chosen byte.

The gateway's own client mends a connection by itself, so it isn't used here. The WebSocket side is websockets'
sans-I/O protocol, the HTTP side h11.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self, cast
from urllib.parse import urlsplit

import h11
import orjson
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

OnFrame = Callable[[dict[str, Any], int], None]
"""Takes a frame and its size on the wire in bytes, without the framing."""


class Raw(asyncio.Protocol):
    """What both have in common: a budget of bytes, after which the connection is aborted, in mid-frame as it comes."""

    def __init__(self, on_frame: OnFrame, budget_bytes: int | None) -> None:
        self.on_frame = on_frame
        self.received_bytes = 0
        self._budget_bytes = budget_bytes
        self.closed = asyncio.Event()

    @property
    def was_cut(self) -> bool:
        """By us, at the chosen byte."""
        return self._budget_bytes == 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._budget_bytes is not None:
            data = data[: self._budget_bytes]
            self._budget_bytes -= len(data)
        self.received_bytes += len(data)
        self.feed(data)
        if self._budget_bytes == 0:
            self.transport.abort()

    def feed(self, data: bytes) -> None:
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def close(self) -> None:
        self.transport.abort()

    async def connect(self, url: str, receive_buffer_bytes: int | None = None) -> Self:
        parts = urlsplit(url)
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (parts.hostname, parts.port))
        await loop.create_connection(lambda: self, sock=sock)
        return self


class RawWebSocket(Raw):
    """Frames that are sent before the handshake is over wait for it."""

    def __init__(self, on_frame: OnFrame, budget_bytes: int | None = None) -> None:
        super().__init__(on_frame, budget_bytes)
        self.opened = asyncio.Event()
        self._waiting: list[bytes] = []

    async def connect(self, url: str, receive_buffer_bytes: int | None = None) -> Self:
        self._wire = ClientProtocol(parse_uri(f"ws{url.removeprefix('http')}/chat"), max_size=None)
        await super().connect(url, receive_buffer_bytes)
        self._wire.send_request(self._wire.connect())
        self._flush()
        return self

    def send(self, **frame: Any) -> None:
        data = orjson.dumps(frame)
        if self.opened.is_set():
            self._wire.send_text(data)
            self._flush()
        else:
            self._waiting.append(data)

    def feed(self, data: bytes) -> None:
        self._wire.receive_data(data)
        for event in self._wire.events_received():
            if not isinstance(event, Frame):
                self._open()
            elif event.opcode is Opcode.TEXT:
                self.on_frame(orjson.loads(event.data), len(event.data))
        self._flush()

    def _open(self) -> None:
        if self._wire.handshake_exc is not None:
            self.transport.abort()
            return
        self.opened.set()
        for data in self._waiting:
            self._wire.send_text(data)
        self._waiting.clear()

    def _flush(self) -> None:
        for data in self._wire.data_to_send():
            if data and not self.transport.is_closing():
                self.transport.write(data)


class RawEvents(Raw):
    """One HTTP request, its answer read as server-sent events. `status` is 0 before there is one."""

    def __init__(self, on_frame: OnFrame, budget_bytes: int | None = None) -> None:
        super().__init__(on_frame, budget_bytes)
        self.status = 0
        self.whole = False
        """The answer came to its own end."""
        self.last_id = ""
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self._pending = bytearray()

    async def request(self, url: str, target: str, body: dict[str, Any] | None = None, **headers: str) -> Self:
        """`POST` with a body, else `GET`. Header names with `_` for `-`."""
        await self.connect(url)
        content = b"" if body is None else orjson.dumps(body)
        lines = [("host", urlsplit(url).netloc), ("content-length", str(len(content)))]
        lines += [(name.replace("_", "-"), value) for name, value in headers.items()]
        request = h11.Request(method="GET" if body is None else "POST", target=target, headers=lines)
        data = self._http.send(request) or b""
        data += self._http.send(h11.Data(data=content)) or b""
        self.transport.write(data + (self._http.send(h11.EndOfMessage()) or b""))
        return self

    def feed(self, data: bytes) -> None:
        self._http.receive_data(data)
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                self.status = event.status_code
            elif isinstance(event, h11.Data):
                self._pending += event.data
                self._events()
            elif isinstance(event, h11.EndOfMessage):
                self.whole = True
                self.transport.close()
                return
            else:
                return

    def _events(self) -> None:
        *events, rest = bytes(self._pending).split(b"\n\n")
        self._pending = bytearray(rest)
        for event in events:
            data = None
            for line in event.split(b"\n"):
                if line.startswith(b"id:"):
                    self.last_id = line[3:].strip().decode()
                elif line.startswith(b"data:"):
                    data = line[5:]
            if data is not None and self.status == 200:
                self.on_frame(orjson.loads(data), len(data))
