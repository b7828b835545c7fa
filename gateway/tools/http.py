"""Tools that are HTTP endpoints: a call becomes one request, its answer a JSON value.

The operator writes the address, the model only fills in parameters: those can't leave their place in it. Nothing is
tried again here, redirects stay on their host, cookies aren't kept, and no more is read than may be handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import orjson
from yarl import URL

from gateway.settings import HttpTool
from gateway.settings.tools import PLACEHOLDER
from gateway.tools.failure import ToolFailed, clipped

MAX_REDIRECTS = 3
_BODY_FACTOR = 4
"""JSON that is laid out for people is longer than its compact form, by which results are measured."""
_CHUNK_BYTES = 16_384
_ERROR_BODY_BYTES = 16_384
_CREDENTIALS_REFUSED = (401, 403, 407)
"""Their bodies tend to repeat the credentials."""
_ANSWERS = "application/json, text/*;q=0.9"


def http_session(concurrency: int) -> aiohttp.ClientSession:
    """One for all endpoints. To be made inside the event loop, and closed."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Each call has its own deadline.
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": "convobase-gateway", "Accept": _ANSWERS, "Accept-Encoding": "identity"},
    )


async def call_endpoint(session: aiohttp.ClientSession, tool: HttpTool, args: Mapping[str, Any], call_id: str) -> Any:
    """The endpoint's answer: decoded JSON, a text, or None when it is empty.

    `call_id` goes along as `Idempotency-Key`. Raises `ToolFailed`. Cancelling it closes the connection.
    """
    url, rest = filled_url(tool.url, args)
    body = None
    if tool.method == "GET":
        url = with_query(url, rest)
    else:
        body = orjson.dumps(rest)
    headers = {name: value.get_secret_value() for name, value in tool.headers.items()}
    headers.setdefault("Idempotency-Key", call_id)
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    try:
        return await _exchange(session, tool, url, headers, body)
    except aiohttp.ClientConnectorError:
        raise ToolFailed("the tool's server can't be reached") from None
    except aiohttp.ClientError:
        raise ToolFailed("the connection to the tool's server broke") from None


async def _exchange(
    session: aiohttp.ClientSession, tool: HttpTool, url: str, headers: Mapping[str, str], body: bytes | None
) -> Any:
    target = URL(url, encoded=True)
    for _ in range(MAX_REDIRECTS + 1):
        async with session.request(tool.method, target, data=body, headers=headers, allow_redirects=False) as response:
            following = _redirect(response, tool.method)
            if following is None:
                return await _read(response, tool.max_result_bytes)
        if following.origin() != target.origin():
            raise ToolFailed("the tool's server sends the call to another one, which isn't followed")
        target = following
    raise ToolFailed("the tool's server redirects without end")


def _redirect(response: aiohttp.ClientResponse, method: str) -> URL | None:
    # 301 to 303 turn other methods into a GET, which is another call than the one that was declared.
    followed = (301, 302, 303, 307, 308) if method == "GET" else (307, 308)
    location = response.headers.get("Location")
    if response.status not in followed or not location:
        return None
    try:
        target = response.url.join(URL(location))
        target.origin()
    except ValueError:
        raise ToolFailed("the tool's server redirects to an address that is none") from None
    return target


async def _read(response: aiohttp.ClientResponse, max_result_bytes: int) -> Any:
    if response.status >= 300:
        raise ToolFailed(await _failure(response))
    body = await _bounded(response, max_result_bytes * _BODY_FACTOR)
    if body is None:
        raise ToolFailed(f"the answer is larger than the {max_result_bytes} bytes that a result may have")
    if not body.strip():
        return None
    kind = response.content_type
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise ToolFailed("the tool's server answered with broken JSON") from None
    # What says nothing of its type is `application/octet-stream` to aiohttp.
    untyped = "Content-Type" not in response.headers
    if untyped or kind.startswith("text/") or kind in ("application/xml", "application/yaml"):
        return _text(body, response.charset)
    raise ToolFailed(f"the tool's server answered with {clipped(kind)}, which is neither JSON nor text")


async def _bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """The body; None when it is longer, without reading on."""
    if (response.content_length or 0) > max_bytes:
        return None
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def _text(body: bytes, charset: str | None) -> str:
    try:
        return body.decode(charset or "utf-8", errors="replace")
    except LookupError:
        return body.decode("utf-8", errors="replace")


async def _failure(response: aiohttp.ClientResponse) -> str:
    """With the server's own reason when it blames the call: a model can mend its arguments by it. What a broken
    server says is for its operators."""
    said = f"the tool's server answered {response.status}"
    if not 400 <= response.status < 500 or response.status in _CREDENTIALS_REFUSED:
        return said
    body = await _bounded(response, _ERROR_BODY_BYTES) if response.content_type.endswith("json") else None
    reason = _reason(body) if body else None
    return f"{said}: {clipped(reason)}" if reason else said


def _reason(body: bytes) -> str | None:
    try:
        found: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    # The usual places, RFC 9457's among them.
    for _ in range(2):
        if isinstance(found, dict):
            found = next((found[key] for key in ("error", "detail", "message", "title") if found.get(key)), None)
    return found if isinstance(found, str) else None


def filled_url(template: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The address with its placeholders filled in, and the arguments that are left. Raises `ToolFailed`."""
    used = set(PLACEHOLDER.findall(template))
    url = PLACEHOLDER.sub(lambda found: quote(_plain(found[1], args.get(found[1])), safe=""), template)
    if any(segment in (".", "..") for segment in urlsplit(url).path.split("/")):
        raise ToolFailed("an argument that is part of the address can't be . or ..")
    return url, {name: value for name, value in args.items() if name not in used}


def _plain(name: str, value: Any) -> str:
    if value is None or value == "":
        raise ToolFailed(f"`{name}` is missing")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ToolFailed(f"`{name}` has to be a text or a number")


def with_query(url: str, args: Mapping[str, Any]) -> str:
    """Lists become repeated names, objects JSON, and None is left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in args.items():
        items = value if isinstance(value, list) else [value]
        pairs += [
            (name, item if isinstance(item, str) else orjson.dumps(item).decode()) for item in items if item is not None
        ]
    if not pairs:
        return url
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(pairs)}"
