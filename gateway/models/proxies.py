"""Which proxy a request goes through, and the way through it (RFC 9110 section 9.3.6)."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from base64 import b64encode
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

MAX_HEAD_BYTES = 16384


class Proxy(NamedTuple):
    host: str
    port: int
    authorization: bytes
    """The value of `Proxy-Authorization`; empty: none is sent."""


class ProxyRefused(ConnectionError):
    """It answered, but doesn't let us through."""


@lru_cache(256)
def proxy_for(scheme: str, host: str) -> Proxy | None:
    """`HTTPS_PROXY` and its siblings, looked up once per host; loopback is never behind a proxy.

    Raises `ProxyRefused` for a kind of proxy that isn't spoken to.
    """
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    found = urllib.request.getproxies()
    url = found.get(scheme) or found.get("all")
    if not url:
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or 80
    except ValueError:
        raise ProxyRefused("the proxy's URL is none") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ProxyRefused(f"a proxy of the kind {parts.scheme!r} can't be used")
    authorization = b""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = b"Basic " + b64encode(pair.encode())
    return Proxy(parts.hostname, port, authorization)


async def tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Asks the proxy at the other end of `sock` for a tunnel. Raises `ProxyRefused` and `OSError`. Safe to cancel;
    the socket is the caller's in any case."""
    loop = asyncio.get_running_loop()
    authority = b"%s:%d" % (f"[{host}]".encode() if ":" in host else host.encode(), port)
    request = b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n" % (authority, authority)
    if proxy.authorization:
        request += b"Proxy-Authorization: %s\r\n" % proxy.authorization
    await loop.sock_sendall(sock, request + b"\r\n")
    head = b""
    while b"\r\n\r\n" not in head:
        # Byte for byte past the head would be TLS; a server doesn't speak first there, so none is read too much.
        data = await loop.sock_recv(sock, 4096)
        head += data
        if not data or len(head) > MAX_HEAD_BYTES:
            raise ProxyRefused("the proxy didn't answer")
    status = head.split(b" ", 2)[1:2]
    if not head.startswith(b"HTTP/1.") or status[0][:1] != b"2":
        raise ProxyRefused(f"the proxy answered {status[0][:3].decode('latin-1') if status else 'nonsense'}")
