"""One address, as a person types it, for both kinds of endpoint."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

_TO_WS = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_TO_HTTP = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def websocket_url(url: str) -> str:
    """The realtime endpoint: `http://host:8080`, `ws://host:8080` and `ws://host:8080/chat` are the same.

    Raises `ValueError` for what isn't an http, https, ws or wss address.
    """
    return _convert(url, _TO_WS, "/chat")


def base_url(url: str) -> str:
    """What HTTP paths are put behind; no slash at its end. Raises `ValueError` as `websocket_url` does."""
    return _convert(url, _TO_HTTP, "")


def _convert(url: str, schemes: dict[str, str], ending: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = schemes.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"{url!r} isn't the address of a gateway; it looks like http://127.0.0.1:8080")
    path = parts.path.rstrip("/").removesuffix("/chat") + ending
    return urlunsplit((scheme, parts.netloc, path, parts.query if ending else "", ""))
