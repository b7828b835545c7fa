"""The deployment under test: where it is, how to reach it, and the bytes with which connections to it begin."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import TypeVar, cast
from urllib.parse import quote, urlsplit

from benchmarks.load.plan import Plan
from protocol.client.addresses import base_url, websocket_url
from protocol.codec import JSON, MSGPACK, format_cursor

AGENT = "convobase-load"
SMALL_BUFFER_BYTES = 4096
P = TypeVar("P", bound=asyncio.Protocol)


class Target:
    """Names are looked up once and connections go to all addresses in turn, as a balanced name wants it. Proxies of
    the environment aren't used."""

    def __init__(self, plan: Plan) -> None:
        self.base = base_url(plan.url)
        self.codec = MSGPACK if plan.transport == "msgpack" else JSON
        socket_url, http_url = urlsplit(websocket_url(plan.url)), urlsplit(self.base)
        self.host = http_url.hostname or ""
        secure = http_url.scheme == "https"
        self.port = http_url.port or (443 if secure else 80)
        self.tls = tls_context(plan) if secure else None
        self._plan = plan
        self._upgrade = socket_url.path + (f"?{socket_url.query}" if socket_url.query else "")
        self._path = http_url.path
        self._host_header = http_url.netloc.rpartition("@")[2]
        self._addresses = itertools.cycle([self.host])

    async def resolve(self) -> list[str]:
        """Raises `OSError` when the name isn't known."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
        if self.host == "localhost" and len(addresses) > 1:
            addresses = [addresses[0]]  # one server, which need not listen on both
        self._addresses = itertools.cycle(addresses)
        return addresses

    async def connect(self, make: Callable[[], P], *, small_buffer: bool = False) -> P:
        """Opens a TCP (and TLS) connection. `small_buffer`: the kernel hides little of a slow reader from the peer.

        Raises `OSError`, `ssl.SSLError` among them. Cancelling closes what was begun.
        """
        loop, address = asyncio.get_running_loop(), next(self._addresses)
        name = self.host if self.tls else None
        if not small_buffer:
            _, made = await loop.create_connection(make, address, self.port, ssl=self.tls, server_hostname=name)
            return made
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            await loop.sock_connect(sock, (address, self.port))
            _, made = await loop.create_connection(make, sock=sock, ssl=self.tls, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        return made

    def token(self, number: int) -> str | None:
        """Of connection `number`."""
        tokens = self._plan.tokens
        return tokens[number % len(tokens)] if tokens else None

    def authorization(self, number: int) -> dict[str, str]:
        token = self.token(number)
        return {"Authorization": f"Bearer {token}"} if token and not self._plan.token_frame else {}

    def upgrade(self, number: int) -> tuple[bytes, str]:
        """The WebSocket handshake of connection `number`, and its key."""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": self.codec.name,
        }
        return self._head("GET", self._upgrade, {**lines, **self.authorization(number)}), key

    def post(self, number: int, path: str, body: bytes) -> bytes:
        lines = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        return self._head("POST", self._path + path, {**lines, **self.authorization(number)}) + body

    def attach(self, number: int, conversation_id: str, seq: int, epoch: int) -> bytes:
        """`GET /api/chat/stream` from a cursor on."""
        cursor = format_cursor(seq, epoch)
        path = f"{self._path}/api/chat/stream?conversation_id={quote(conversation_id)}&after={cursor}"
        return self._head("GET", path, self.authorization(number))

    def _head(self, method: str, path: str, lines: Mapping[str, str]) -> bytes:
        told = {"Host": self._host_header, "User-Agent": AGENT, **lines}
        text = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode("latin-1")


def tls_context(plan: Plan) -> ssl.SSLContext:
    """Raises `OSError` when `plan.ca` can't be read."""
    context = ssl.create_default_context(cafile=plan.ca)
    if plan.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def as_transport(transport: asyncio.BaseTransport) -> asyncio.Transport:
    return cast("asyncio.Transport", transport)
