"""OpenAI and every server that speaks its API: the SDK makes the request, its stream is read raw.

The request goes through the SDK's own `post`, documented for endpoints and parameters that it has no types for:
credentials, headers, redirects and status errors stay the SDK's, while no typed object is made per message or
per token. The bytes come straight from the socket (`transport`) into `chunks`.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import httpx2
import msgspec
import openai
import orjson

from gateway.models import failures, transport
from gateway.models.answer import Answer
from gateway.models.chunks import ChatStream
from gateway.models.model import Event, ModelError, ModelRequest, Sink

DEFAULT_BASE_URL = "https://api.openai.com/v1"
LINGER_S = 0.05
"""After `[DONE]`: for the end of the HTTP body, so that the connection is kept."""
MAX_MODELS = 256
"""Of which is remembered how they differ; a model name may come from a client."""
USAGE_S = 1.0
"""After the finish reason: for the usage and `[DONE]`. A server that sends neither and doesn't close is left."""


def open_sdk(api_key: str | None, base_url: str) -> openai.AsyncOpenAI:
    """The SDK on `transport`, without time-outs or attempts of its own."""
    return openai.AsyncOpenAI(
        api_key=api_key or "none",
        base_url=base_url,
        max_retries=0,
        timeout=None,
        default_headers={"Accept-Encoding": "identity"},
        http_client=httpx2.AsyncClient(transport=transport.Transport(), timeout=None, follow_redirects=True),
    )


async def post_raw(sdk: openai.AsyncOpenAI, path: str, body: dict[str, Any]) -> Answer:
    """The head of an answer whose body is read raw. Raises what the SDK raises."""
    answer = await sdk.post(
        path,
        cast_to=httpx2.Response,
        content=orjson.dumps(body),
        stream=True,
        stream_cls=openai.AsyncStream[bytes],
    )
    response: Answer = answer.extensions[transport.EXTENSION]  # type: ignore[attr-defined]
    return response


class OpenAICompatible:
    """One upstream. `api_key` None is for servers that ask for none; `base_url` None is OpenAI itself.

    Nothing is read from the network or bound to a loop before the first `answer`. Up to the connect time-out of
    `transport` no time-out is known here, and nothing is tried again: both are the turn engine's.
    """

    def __init__(self, *, api_key: str | None, base_url: str | None) -> None:
        base_url = base_url or DEFAULT_BASE_URL
        self._upstream = failures.upstream_at(base_url, api_key)
        self._usage_told = True
        """False once the server refused `stream_options`."""
        self._newer_limit: set[str] = set()
        """Models that want `max_completion_tokens`, as OpenAI's reasoning models do; others often know only the
        older name."""
        self._sdk = open_sdk(api_key, base_url)

    async def answer(self, request: ModelRequest, sink: Sink) -> None:
        """See `Model.answer`."""
        try:
            response = await self._request(request)
        except ModelError:
            raise
        except Exception as error:
            raise failures.unexpected() from error
        try:
            stream = await self._read(response, sink)
            if not stream.closed and (events := await _after_finish(response, stream)):
                sink.take(events, asyncio.get_running_loop().time())
            await _drain(response)
        finally:
            response.close()

    async def close(self) -> None:
        await self._sdk.close()

    async def _read(self, response: Answer, sink: Sink) -> ChatStream:
        """Up to the model's own end."""
        stream = ChatStream(self._upstream)

        def take(data: bytes, since: float) -> float:
            events = stream.feed(data)
            hold_s = sink.take(events, since) if events else 0.0
            return math.inf if stream.finished or stream.failure is not None else hold_s

        try:
            while await response.read(take):
                if stream.finished or stream.failure is not None:
                    break
                await sink.room()
            else:
                if events := stream.end():
                    sink.take(events, asyncio.get_running_loop().time())
        except OSError as error:
            raise failures.broken(self._upstream) from error
        if stream.failure is not None:
            raise stream.failure
        return stream

    async def _request(self, request: ModelRequest) -> Answer:
        """The answer's head. Asks again at once, and only then, when the server doesn't know a parameter of ours."""
        while True:
            body = self._body(request)
            try:
                return await post_raw(self._sdk, "/chat/completions", body)
            except openai.APIStatusError as error:
                if not self._adapted(error, request, body):
                    raise failures.from_status(
                        error.status_code, error.response.headers, error.body, self._upstream, now_s=time.time()
                    ) from error
            except (openai.APIConnectionError, httpx2.TransportError) as error:
                raise failures.from_exception(error, self._upstream) from error

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"model": request.model, "messages": list(request.messages), "stream": True}
        if self._usage_told:
            body["stream_options"] = {"include_usage": True}
        if request.tools:
            body["tools"] = msgspec.to_builtins(request.tools)
        if request.max_tokens is not None:
            name = "max_completion_tokens" if request.model in self._newer_limit else "max_tokens"
            body[name] = request.max_tokens
        return body

    def _adapted(self, error: openai.APIStatusError, request: ModelRequest, body: dict[str, Any]) -> bool:
        """Whether the refusal is of a parameter that can be given up or renamed, which is then remembered."""
        if error.status_code not in (400, 422):
            return False
        text = str(error.body)
        if "stream_options" in body and ("stream_options" in text or "include_usage" in text):
            self._usage_told = False
            return True
        if "max_tokens" in body and "max_completion_tokens" in text and len(self._newer_limit) < MAX_MODELS:
            self._newer_limit.add(request.model)
            return True
        return False


async def _after_finish(response: Answer, stream: ChatStream) -> list[Event]:
    """The usage, if it comes. The answer is whole already, so nothing that goes wrong here matters."""
    events: list[Event] = []

    def take(data: bytes, _: float) -> float:
        events.extend(stream.feed(data))
        return math.inf if stream.closed else 0.0

    try:
        async with asyncio.timeout(USAGE_S):
            await response.read(take)
    except OSError:  # TimeoutError is one
        pass
    return events + stream.end()


async def _drain(response: Answer) -> None:
    """Waits a little for the end of an answer of which everything is known, so that its connection can be used again:
    the last bytes of a chunked body often come in a read of their own."""
    try:
        async with asyncio.timeout(LINGER_S):
            await response.read(lambda *_: 0.0)
    except OSError:
        pass
