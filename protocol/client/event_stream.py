"""Requests for an event stream, one after another: what a cut is, and how long to wait after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import aiohttp

from protocol.client.addresses import base_url
from protocol.client.errors import ConnectionFailed, RequestError, Unreachable
from protocol.client.rest import headers, opened, refusal
from protocol.client.state import Backoff
from protocol.client.tokens import TokenSource
from protocol.codec import JSON, BadFrame
from protocol.codes import CloseCode
from protocol.frames import AnyServerFrame, Goaway
from protocol.sse import EventParser, EventTooLarge

MAX_EVENT_BYTES = 16 << 20
SILENCE_S = 60.0
"""A stream without even a heartbeat for so long is taken for cut: three times the gateway's default."""
_PATH = "/api/chat/stream"
_CUT = (aiohttp.ClientError, OSError, TimeoutError)


class Ended(Exception):
    """The cursor is at the head and no turn is open."""


class EventStream:
    """One request after another for the same thing, with the pauses between them."""

    def __init__(
        self, url: str, token: TokenSource, session: aiohttp.ClientSession | None, rand: Callable[[], float]
    ) -> None:
        self._url = base_url(url) + _PATH
        self._token = token
        self._session = session
        self._backoff = Backoff(rand)
        self._asked_ms: int | None = None
        self._attempts = 0

    async def frames(
        self, method: str, *, body: bytes | None = None, params: dict[str, str] | None = None
    ) -> AsyncGenerator[AnyServerFrame]:
        """The frames of one request, to its end or cut; the next one is then worth trying.

        Raises `Unreachable` and `RequestError` when it isn't.
        """
        first, self._attempts = self._attempts == 0, self._attempts + 1
        if not first:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._backoff.delay_s(loop.time(), asked_ms=self._asked_ms))
            self._asked_ms = None
        try:
            async with (
                opened(self._session) as http,
                aclosing(self._request(http, method, body, params or {})) as frames,
            ):
                async for frame in frames:
                    if isinstance(frame, Goaway):
                        self._asked_ms = frame.reconnect_after_ms
                    yield frame
        except aiohttp.ClientConnectorError as error:
            if first:
                raise Unreachable(f"no gateway answers at {self._url}: {error}") from error
        except RequestError as error:
            if first or not error.retryable:
                raise
            if error.retry_after_s is not None:
                self._asked_ms = int(error.retry_after_s * 1000)
        except _CUT:
            return

    async def _request(
        self, http: aiohttp.ClientSession, method: str, body: bytes | None, params: dict[str, str]
    ) -> AsyncGenerator[AnyServerFrame]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_S)
        parser = EventParser(MAX_EVENT_BYTES)
        async with http.request(
            method, self._url, data=body, params=params, headers=await headers(self._token), timeout=timeout
        ) as response:
            if response.status == 204:
                raise Ended
            if response.status != 200:
                raise refusal(response.status, await response.read(), response.headers)
            async for data in response.content.iter_any():
                for frame in _decoded(parser, data):
                    yield frame

    def progress(self) -> None:
        self._backoff.progress()


def _decoded(parser: EventParser, data: bytes) -> list[AnyServerFrame]:
    try:
        frames = [JSON.decode_server(event.data.encode()) for event in parser.feed(data)]
    except BadFrame as error:
        raise ConnectionFailed(CloseCode.INVALID_TEXT, error.message) from error
    except EventTooLarge as error:
        raise ConnectionFailed(CloseCode.TOO_BIG, str(error)) from error
    return [frame for frame in frames if frame is not None]
