"""aiohttp under the openai SDK, without the layers between its socket reader and us.

The SDK stands on httpx2, whose transports are a supported seam. This one differs from the SDK's own
`DefaultAioHttpClient` in four ways: it hands the aiohttp response through (`aiohttp_response` in the extensions of
the httpx2 response), so that a stream is read with no generator in between; no connection limit, as the gateway
bounds its streams itself; every cause of a failure stays in the chain; error pages are read up to a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import httpx2
from yarl import URL

EXTENSION = "aiohttp_response"
MAX_PAGE_BYTES = 65_536
"""Of a body that is no stream: an error page. The rest of a longer one is cut off."""

BROKEN = (aiohttp.ClientError, OSError)
"""What reading a body raises when its connection fails."""

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn, Node and llama.cpp close an idle connection: ours is never the one in closing."""


class Page(httpx2.AsyncByteStream):
    """The body of an answer that the SDK itself reads: an error, or a redirect."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left_bytes = MAX_PAGE_BYTES
        try:
            while left_bytes > 0 and (data := await self._response.content.readany()):
                yield data[:left_bytes]
                left_bytes -= len(data)
        except BROKEN as error:
            raise httpx2.ReadError("the answer broke off") from error

    async def aclose(self) -> None:
        self._response.close()


class _Told:
    """Whether a request went over a connection that was kept from an earlier one."""

    reused = False


def _tells_reuse() -> aiohttp.TraceConfig:
    async def reused(_session: object, context: Any, _params: object) -> None:
        context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(reused)
    return config


class Transport(httpx2.AsyncBaseTransport):
    """One session, made at the first request in the running loop. Cancelling a request closes its connection."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str | None] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        # httpx2 has put userinfo into the Authorization header; aiohttp would refuse to be told twice.
        url = URL(str(request.url), encoded=True).with_user(None)
        body = await request.aread()
        try:
            response = await self._send(request, url, body)
        except TimeoutError as error:
            raise httpx2.ConnectTimeout("no connection in time", request=request) from error
        except BROKEN as error:
            raise httpx2.ConnectError("no answer", request=request) from error
        return httpx2.Response(
            response.status,
            # aiohttp has undone a Content-Encoding.
            headers=[(k, v) for k, v in response.raw_headers if k.lower() != b"content-encoding"],
            stream=Page(response),
            request=request,
            extensions={"http_version": b"HTTP/1.1", EXTENSION: response},
        )

    async def _send(self, request: httpx2.Request, url: URL, body: bytes) -> aiohttp.ClientResponse:
        while True:
            told = _Told()
            try:
                return await self._open().request(
                    request.method,
                    url,
                    headers=request.headers.multi_items(),
                    data=body or None,
                    allow_redirects=False,
                    proxy=self._proxy(url),
                    trace_request_ctx=told,
                )
            except aiohttp.ClientConnectionError:
                # A kept connection that the server closed just as we chose it: it never saw the request. Each
                # such failure takes one connection from the pool, so this ends.
                if not told.reused:
                    raise

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=httpx2.create_ssl_context()),
                trace_configs=[_tells_reuse()],
                cookie_jar=aiohttp.DummyCookieJar(),
                # No other time-out: how long a model may think is the turn engine's to say.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            )
        return self._session

    def _proxy(self, url: URL) -> str | None:
        """HTTPS_PROXY and its siblings, looked up once per host; loopback is never behind a proxy."""
        host = url.host or ""
        if host not in self._proxies:
            direct = host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host)
            found = urllib.request.getproxies()
            self._proxies[host] = None if direct else found.get(url.scheme) or found.get("all")
        return self._proxies[host]

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


@contextlib.contextmanager
def noticing_loss(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Within it a read of the body fails when the connection is gone.

    aiohttp 3.14 closes the connection on garbage between the chunks of a body but does not tell the reader of that
    body, who would wait forever.
    """

    def lost(_closed: object = None) -> None:
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ClientPayloadError("the connection was lost"))

    protocol = response.connection.protocol if response.connection is not None else None
    if protocol is None:
        # The body is here to its end already.
        yield
        return
    closed = protocol.closed
    if closed is None:
        lost()
        yield
        return
    # The connection outlives this answer: one `_retrieve` stays, so that its later failure is no unread exception.
    closed.remove_done_callback(_retrieve)
    closed.add_done_callback(_retrieve)
    closed.add_done_callback(lost)
    try:
        yield
    finally:
        closed.remove_done_callback(lost)


def _retrieve(closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()


async def drain(response: aiohttp.ClientResponse, linger_s: float) -> None:
    """Waits up to `linger_s` for the end of an answer of which everything is known, so that its connection can be
    used again: the last bytes of a chunked body often come in a read of their own."""
    try:
        async with asyncio.timeout(linger_s):
            while await response.content.readany():
                pass
    except BROKEN:  # TimeoutError is an OSError
        pass
