"""The request-response side of the gateway: one function an endpoint, on aiohttp.

All raise `Unreachable`, `RequestError` and `Unauthorized`. A `session` of your own is used and left open; without one
each call makes its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import UNSET

from protocol.client.addresses import base_url
from protocol.client.errors import RequestError, Unauthorized, Unreachable
from protocol.client.tokens import TokenSource, current
from protocol.frames import ErrorBody, FoldedMessage, RunningTurn


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /api/conversations/{id}`: the exact fold of the log up to `seq` (SPEC.md section 10)."""

    conversation_id: str
    seq: int
    epoch: int = 0
    messages: list[FoldedMessage]
    turn: RunningTurn | None = None


class _Failure(msgspec.Struct):
    error: ErrorBody


async def request(
    method: str,
    url: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    params: Mapping[str, str] | None = None,
    token: TokenSource = None,
    session: aiohttp.ClientSession | None = None,
) -> bytes:
    """One request to the gateway at `url`; the body of a successful answer."""
    async with opened(session) as http:
        try:
            async with http.request(
                method,
                base_url(url) + path,
                data=None if body is None else msgspec.json.encode(body),
                params=params,
                headers=await headers(token),
            ) as response:
                content = await response.read()
                if response.status >= 400:
                    raise refusal(response.status, content, response.headers)
                return content
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"no gateway answers at {base_url(url)}: {error}") from error


async def chat(
    url: str, message: str, *, token: TokenSource = None, session: aiohttp.ClientSession | None = None, **fields: Any
) -> dict[str, Any]:
    """Asks and waits for the whole answer: `reply`, `conversation_id`, `turn_id`, `status`, `function_calls` …"""
    body = {"message": message, **fields}
    answer: dict[str, Any] = msgspec.json.decode(
        await request("POST", url, "/api/chat", body=body, token=token, session=session)
    )
    return answer


async def get_conversation(
    url: str, conversation_id: str, *, token: TokenSource = None, session: aiohttp.ClientSession | None = None
) -> Conversation:
    path = f"/api/conversations/{quote(conversation_id, safe='')}"
    return msgspec.json.decode(await request("GET", url, path, token=token, session=session), type=Conversation)


async def delete_conversation(
    url: str, conversation_id: str, *, token: TokenSource = None, session: aiohttp.ClientSession | None = None
) -> None:
    """Erases it, for good; fine when there is none."""
    await request("DELETE", url, f"/api/conversations/{quote(conversation_id, safe='')}", token=token, session=session)


async def cancel_turn(
    url: str,
    conversation_id: str,
    turn_id: str | None = None,
    *,
    token: TokenSource = None,
    session: aiohttp.ClientSession | None = None,
) -> dict[str, Any]:
    """`outcome` (`stopped`, `already_done` or `not_found`) and `turn_id`."""
    path = f"/api/conversations/{quote(conversation_id, safe='')}/cancel"
    body = {} if turn_id is None else {"turn_id": turn_id}
    answer: dict[str, Any] = msgspec.json.decode(
        await request("POST", url, path, body=body, token=token, session=session)
    )
    return answer


async def send_function_result(
    url: str,
    conversation_id: str,
    call_id: str,
    *,
    result: Any = UNSET,
    error: str | None = None,
    token: TokenSource = None,
    session: aiohttp.ClientSession | None = None,
) -> None:
    """Answers a function call with a `result` (any JSON) or an `error`."""
    if (result is UNSET) == (error is None):
        raise ValueError("give exactly one of `result` and `error`")
    path = f"/api/conversations/{quote(conversation_id, safe='')}/function_results"
    body = {"call_id": call_id, **({"result": result} if error is None else {"error": error})}
    await request("POST", url, path, body=body, token=token, session=session)


# ---------------------------------------------------------------------------------------------- shared with `sse`


@asynccontextmanager
async def opened(session: aiohttp.ClientSession | None) -> AsyncIterator[aiohttp.ClientSession]:
    if session is not None:
        yield session
        return
    # A turn may take as long as it takes; only silence while connecting is an error here.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)) as own:
        yield own


async def headers(token: TokenSource) -> dict[str, str]:
    bearer = await current(token)
    content = {"Content-Type": "application/json"}
    return {**content, "Authorization": f"Bearer {bearer}"} if bearer else content


def refusal(status: int, body: bytes, response_headers: Mapping[str, str]) -> RequestError:
    """The gateway's error as an exception; what isn't the gateway's (a proxy's page) is told by its status."""
    wait = response_headers.get("Retry-After", "")
    retry_after_s = float(wait) if wait.isdecimal() else None
    try:
        error = msgspec.json.decode(body, type=_Failure).error
    except msgspec.MsgspecError:
        code = "UPSTREAM_UNAVAILABLE" if status in (502, 503, 504) else "INTERNAL" if status >= 500 else "BAD_FRAME"
        error = ErrorBody(code, f"HTTP {status}, and no word from a gateway", status >= 500 or status == 429)
    if status == 401:
        return Unauthorized(error.message)
    return RequestError(error.code, error.message, error.retryable, retry_after_s=retry_after_s)
