"""Our own HTTP/1.1 under the openai SDK, without the layers between its socket reader and us.

The SDK stands on httpx2, whose transports are a supported seam. This one hands the `Answer` itself through
(`EXTENSION` in the extensions of the httpx2 response), so that a stream is read with nothing in between. There is
no limit to connections, as the gateway bounds its streams itself; every cause of a failure stays in the chain.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohappyeyeballs
import httpx2

from gateway.models.answer import Answer, Unanswered
from gateway.models.http1 import Connection
from gateway.models.moderation import Moderation
from gateway.models.pacing import Pacer
from gateway.models.proxies import Proxy, proxy_for, tunnel

EXTENSION = "answer"
MAX_PAGE_BYTES = 65_536
"""Of a body that is no stream: an error page. The rest of a longer one is cut off."""

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn, Node and llama.cpp close an idle connection: ours is never the one in closing."""
ADDRESSES_S = 10.0
"""For which a host's addresses are remembered: a thousand streams at once ask for them once."""
NEXT_ADDRESS_S = 0.25
"""After which the next address of a host is tried, too (RFC 8305)."""

_PORTS = {"http": 80, "https": 443}
_UNSAFE = re.compile(rb"[\r\n\0]")


class Page(httpx2.AsyncByteStream):
    """The body of an answer that the SDK itself reads: an error, or a redirect."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = bytearray()

        def take(data: bytes, _: float) -> float:
            body.extend(data)
            return math.inf if len(body) >= MAX_PAGE_BYTES else 0.0

        try:
            await self._answer.read(take)
        except OSError as error:
            raise httpx2.ReadError("the answer broke off") from error
        yield bytes(body[:MAX_PAGE_BYTES])

    async def aclose(self) -> None:
        self._answer.close()


class Origin(NamedTuple):
    """Connections to the same one can stand for each other."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None


class Connections:
    """Those of one event loop: busy ones, and idle ones for the next request. `http1.Pool` for them."""

    def __init__(self) -> None:
        self.closed = False
        self._tls: ssl.SSLContext | None = None
        self._loop = asyncio.get_running_loop()
        self._pacer = Pacer()
        self._moderation = Moderation()
        self._all: dict[Connection, Origin] = {}
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        """Least recently used first, each with the timer that closes it."""
        self._addresses: dict[tuple[str, int], asyncio.Task[list[Any]]] = {}

    def kept(self, origin: Origin) -> Connection | None:
        """The idle connection that was used last: the others may then grow old."""
        for connection in reversed(self._idle):
            if self._all[connection] == origin and not connection.closing:
                self._idle.pop(connection).cancel()
                return connection
        return None

    def idle(self, connection: Connection) -> None:
        self._idle[connection] = self._loop.call_later(KEEPALIVE_S, connection.abort)

    def gone(self, connection: Connection) -> None:
        self._all.pop(connection, None)
        if (timer := self._idle.pop(connection, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """For good: what is being connected won't be."""
        self.closed = True
        for connection in list(self._all):
            connection.abort()

    async def connect(self, origin: Origin) -> Connection:
        """A new one. Raises `OSError`, of which `TimeoutError` and `ssl.SSLError` are some. Safe to cancel."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            via = origin.proxy or origin
            sock = await aiohappyeyeballs.start_connection(
                await self._addresses_of(via.host, via.port), happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1
            )
            try:
                tls: dict[str, Any] = {}
                if origin.scheme == "https":
                    if origin.proxy is not None:
                        await tunnel(sock, origin.proxy, origin.host, origin.port)
                    self._tls = self._tls or httpx2.create_ssl_context()
                    tls = {"ssl": self._tls, "server_hostname": origin.host}
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self, self._pacer, self._moderation), sock=sock, **tls
                )
            except BaseException:
                sock.close()
                raise
        self._all[connection] = origin
        if self.closed:
            connection.abort()
            raise ConnectionAbortedError("the transport was closed")
        return connection

    async def _addresses_of(self, host: str, port: int) -> list[Any]:
        looking = self._addresses.get((host, port))
        if looking is None:
            looking = self._addresses[host, port] = asyncio.create_task(self._look_up(host, port))
            looking.add_done_callback(_retrieve)
        return await asyncio.shield(looking)

    async def _look_up(self, host: str, port: int) -> list[Any]:
        keep_s = 0.0
        try:
            found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            keep_s = ADDRESSES_S
            return found
        finally:
            self._loop.call_later(keep_s, self._addresses.pop, (host, port), None)


class Transport(httpx2.AsyncBaseTransport):
    """Bound to the running loop by its first request. Cancelling a request closes its connection."""

    def __init__(self) -> None:
        self._connections: Connections | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        try:
            answer = await self._ask(request, body)
        except TimeoutError as error:
            raise httpx2.ConnectTimeout("no connection in time", request=request) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
            raise httpx2.ConnectError("no answer", request=request) from error
        return httpx2.Response(
            answer.status,
            headers=answer.headers,
            stream=Page(answer),
            request=request,
            extensions={"http_version": b"HTTP/1.1", EXTENSION: answer},
        )

    async def _ask(self, request: httpx2.Request, body: bytes) -> Answer:
        if self._connections is None:
            self._connections = Connections()
        url = request.url
        if url.scheme not in _PORTS:
            raise httpx2.UnsupportedProtocol("neither http nor https", request=request)
        host = url.raw_host.decode("ascii")
        origin = Origin(url.scheme, host, url.port or _PORTS[url.scheme], proxy_for(url.scheme, host))
        data = _head(request, origin) + body
        while True:
            kept = self._connections.kept(origin)
            answer = (kept or await self._connections.connect(origin)).ask(data)
            try:
                await answer.head()
            except Unanswered:
                # A kept connection that the server closed just as we chose it: it never saw the request. Each such
                # failure takes one connection from the pool, so this ends.
                if kept is None or self._connections.closed:
                    raise
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    async def aclose(self) -> None:
        if self._connections is not None:
            self._connections.close()


def _head(request: httpx2.Request, origin: Origin) -> bytes:
    target = request.url.raw_path
    headers = list(request.headers.raw)
    if origin.proxy is not None and origin.scheme == "http":
        target = b"http://" + request.url.netloc + target
        if origin.proxy.authorization:
            headers.append((b"Proxy-Authorization", origin.proxy.authorization))
    if _UNSAFE.search(b"".join([name + value for name, value in headers])):
        # A line break in a key from a file, say. A server would take what follows it for another header.
        raise httpx2.LocalProtocolError("a header has a line break in it", request=request)
    lines = b"".join([b"%s: %s\r\n" % header for header in headers])
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (request.method.encode("ascii"), target, lines)


def _retrieve(looking: asyncio.Task[list[Any]]) -> None:
    """If all who waited are gone, nobody else hears of its exception."""
    if not looking.cancelled():
        looking.exception()
