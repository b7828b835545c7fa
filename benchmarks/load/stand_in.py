"""A stand-in for a gateway: it answers every message with made-up text, and has neither a model nor a log on disk.

    python -m benchmarks.load.stand_in [--port N] [--tokens N] [--rate R]

It keeps to the contract (cursors, resume, sending again), so that the load test can be tested and its own ceiling be
measured; `mangle` breaks the contract, so that the load test can be seen to notice. JSON and MessagePack on `/chat`,
and `POST` and `GET /api/chat/stream`.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httptools
import uvloop
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from benchmarks.load.made_up import House, Reader
from benchmarks.load.target import as_transport
from gateway.edge.messages import pack
from protocol.codec import CODECS, JSON, MSGPACK, Codec, decode_body, format_cursor, parse_cursor
from protocol.frames import (
    AnyServerFrame,
    ChatMessage,
    Done,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from protocol.sse import event


class Peer(Reader, asyncio.Protocol):
    """One connection: plain HTTP, until it asks for an upgrade."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        self.transport: asyncio.Transport | None = None
        self.codec: Codec = JSON
        self._http = httptools.HttpRequestParser(self)
        self._wire: ServerProtocol | None = None
        self._head = b""
        """Of an upgrade, as it came."""
        self._upgrade = False
        self._url = b""
        self._body = b""

    # ------------------------------------------------------------ sending

    def tell(self, frames: list[AnyServerFrame]) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._wire is not None:
            opcode = Opcode.BINARY if self.codec.binary else Opcode.TEXT
            self.transport.write(pack(opcode, [self.codec.encode(frame) for frame in frames]))
            return
        events = b"".join(self._event(frame) for frame in frames)
        self.transport.write(b"%x\r\n%s\r\n" % (len(events), events) if events else b"")
        if any(isinstance(frame, Done) for frame in frames):
            for log in tuple(self.logs):
                self.leave(log)
            self.transport.write(b"0\r\n\r\n")

    @staticmethod
    def _event(frame: AnyServerFrame) -> bytes:
        seq = getattr(frame, "seq", 0)
        return event(JSON.encode(frame), format_cursor(seq, 0) if seq else None)

    # ------------------------------------------------------------ the loop's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = as_transport(transport)
        self.house.peers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.house.peers.discard(self)
        for log in tuple(self.logs):
            self.leave(log)

    def data_received(self, data: bytes) -> None:
        if self._wire is None:
            self._head += data
            try:
                self._http.feed_data(data)
            except httptools.HttpParserUpgrade:
                if self.house.refuse is not None:
                    return
                self._wire = ServerProtocol(subprotocols=[Subprotocol(name) for name in CODECS])
                data = self._head
        if self._wire is None:
            return
        self._wire.receive_data(data)
        for frame in self._wire.events_received():
            if isinstance(frame, Request):
                self._open(self._wire, frame)
            elif isinstance(frame, Frame) and frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                self._command(self.codec.decode_client(bytes(frame.data)))
        self._flush(self._wire)

    def _flush(self, wire: ServerProtocol) -> None:
        for out in wire.data_to_send():
            if self.transport is not None and not self.transport.is_closing():
                self.transport.write(out) if out else self.transport.close()

    # ------------------------------------------------------------ HTTP

    def on_message_begin(self) -> None:
        self._upgrade, self._url, self._body = False, b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._upgrade = self._upgrade or name.lower() == b"upgrade"

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if not self._upgrade:
            self._head = b""
        if self.house.refuse is not None:
            self._answer(*self.house.refuse)
        elif self._upgrade:
            return
        elif self._http.get_method() == b"POST":
            self._begin()
            self.house.ask(self, decode_body(self._body, ChatMessage))
        else:
            self._attach()

    def _attach(self) -> None:
        given = parse_qs(urlsplit(self._url.decode()).query)
        log = self.house.logs.get(given.get("conversation_id", [""])[0])
        if log is None:
            self._answer(
                404, b'{"error": {"code": "NOT_FOUND", "message": "no such conversation", "retryable": false}}'
            )
            return
        missed = log.entries[parse_cursor(given["after"][0])[0] :]
        if not missed and not log.open:
            self._answer(204, b"")
            return
        self._begin()
        self.follow(log)
        if missed:
            self.tell(list(missed))

    def _begin(self) -> None:
        assert self.transport is not None
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head.encode())

    def _answer(self, status: int, body: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))

    # ------------------------------------------------------------ WebSocket

    def _open(self, wire: ServerProtocol, request: Request) -> None:
        wire.send_response(wire.accept(request))
        self._flush(wire)
        self.codec = MSGPACK if wire.subprotocol == MSGPACK.name else JSON
        limits = {"max_conversations_per_connection": 1000}
        self.tell([Welcome(connection_id="c", protocol=self.codec.name, heartbeat_s=20, limits=limits)])

    def _command(self, frame: Any) -> None:
        match frame:
            case ChatMessage():
                self.house.ask(self, frame)
            case Subscribe():
                log, after = self.house.log(frame.conversation_id), frame.after or 0
                head = Subscribed(
                    conversation_id=log.conversation_id, after=after, head=len(log.entries), epoch=0, ref=frame.ref
                )
                self.follow(log)
                self.tell([head, *self.house.mangle(list(log.entries[after:]))])
            case Unsubscribe():
                self.leave(self.house.log(frame.conversation_id))
                self.tell([Unsubscribed(conversation_id=frame.conversation_id, ref=frame.ref)])
            case Ping():
                self.tell([Pong(ref=frame.ref)])
            case _:
                pass


async def serve(port: int, house: House) -> asyncio.Server:
    """Listens on the loopback address."""
    return await asyncio.get_running_loop().create_server(lambda: Peer(house), "127.0.0.1", port, backlog=8192)


async def serve_forever(port: int, house: House) -> None:
    server = await serve(port, house)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for a gateway, for tests of the load test.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--tokens", type=int, default=20, help="in an answer")
    parser.add_argument("--rate", type=float, default=0.0, help="of them a second; 0: all at once")
    given = parser.parse_args()
    uvloop.run(serve_forever(given.port, House(given.tokens, given.rate)))


if __name__ == "__main__":
    main()
