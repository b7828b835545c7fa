"""One attempt to connect, and what the end of a connection means."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from protocol.client.errors import ConnectionFailed, Unauthorized, Unreachable
from protocol.codec import Codec
from protocol.codes import CloseCode

MAX_MESSAGE_BYTES = 16 << 20
"""Frames are at most 64 KiB, but a `snapshot` holds a whole conversation."""

FATAL = frozenset({CloseCode.PROTOCOL_ERROR, CloseCode.UNSUPPORTED_DATA, CloseCode.INVALID_TEXT, CloseCode.TOO_BIG})
"""One side did wrong, and would do so again (SPEC.md section 9). After any other code a client comes back."""


@dataclass(frozen=True, slots=True)
class Lost:
    """How a connection ended, or why there is none. `code` 1006: without a close frame."""

    code: int
    reason: str
    asked_ms: int | None = None
    """When the gateway said that we should come back."""

    @property
    def fatal(self) -> bool:
        return self.code in FATAL

    @property
    def unauthorized(self) -> bool:
        return self.code == CloseCode.UNAUTHORIZED

    @property
    def crowded(self) -> bool:
        return self.code == CloseCode.OVER_CONNECTION_LIMIT


def closed(end: ConnectionClosed, asked_ms: int | None) -> Lost:
    close = end.rcvd or end.sent
    if close is None:
        return Lost(1006, "the connection broke", asked_ms)
    return Lost(close.code, close.reason or f"the connection was closed with code {close.code}", asked_ms)


async def connect(url: str, codec: Codec, token: str | None, timeout_s: float) -> ClientConnection:
    """Raises `Unauthorized`, `ConnectionFailed` (the address is no gateway's, or refuses us for good) and
    `Unreachable` (try again)."""
    headers = {"Authorization": f"Bearer {token}"} if token else None
    try:
        ws = await open_websocket(
            url,
            subprotocols=[Subprotocol(codec.name)],
            additional_headers=headers,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            open_timeout=timeout_s,
            close_timeout=2,
            proxy=_proxy(url),
        )
    except InvalidStatus as error:
        raise _refusal(error) from error
    except (OSError, TimeoutError, EOFError, InvalidHandshake, ConnectionClosed) as error:
        raise Unreachable(f"no gateway answers at {url}: {error}") from error
    except WebSocketException as error:
        raise ConnectionFailed(1002, str(error)) from error
    if codec.binary and ws.subprotocol != codec.name:
        await ws.close(1002, "subprotocol")
        raise ConnectionFailed(1002, f"the gateway at {url} doesn't speak {codec.name}")
    return ws


def _refusal(error: InvalidStatus) -> Exception:
    response = error.response
    body = bytes(response.body or b"").decode("utf-8", "replace")[:200]
    match response.status_code:
        case 401:
            return Unauthorized()
        case 408 | 425 | 429 | 500 | 502 | 503 | 504 as status:
            wait = response.headers.get("Retry-After", "")
            asked_ms = int(wait) * 1000 if wait.isdecimal() else None
            return Unreachable(f"the gateway answers HTTP {status}: {body}", asked_ms=asked_ms)
        case status:
            return ConnectionFailed(1002, f"the address answers HTTP {status}, not a WebSocket: {body}")


def _proxy(url: str) -> Literal[True] | None:
    """The environment's proxy, except for this machine."""
    host = urlsplit(url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return None if local else True
