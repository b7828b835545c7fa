"""An OpenAI-compatible upstream inside of the show itself: a function says what to answer, every request is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import orjson
from aiohttp import web

PIECE_CHARS = 7
"""Of a call's arguments at a time, those of several calls in turn."""


class Call(NamedTuple):
    name: str
    args: dict[str, Any]


Answer = Sequence[str | Call]
"""Pieces of text, and the calls that the answer ends with."""
Forward = Callable[[web.Request, dict[str, Any]], Any]
"""May answer a request in place of the script: an awaitable of a response, or None."""


class SmallUpstream:
    """`url` is its `OPENAI_BASE_URL`; `requests` are the bodies of what it was asked, oldest first."""

    def __init__(self, script: Callable[[dict[str, Any]], Answer], gap_s: float, forward: Forward | None) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self._script = script
        self._gap_s = gap_s
        self._forward = forward

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self._forward is not None and (made := await self._forward(request, body)) is not None:
            response: web.StreamResponse = made
            return response
        self.requests.append(body)
        answer = self._script(body)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for delta in [*_texts(answer), *_fragments(answer)]:
            await stream.write(_event({"index": 0, "delta": delta, "finish_reason": None}))
            await asyncio.sleep(self._gap_s)
        calls = any(isinstance(part, Call) for part in answer)
        await stream.write(_event({"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}))
        await stream.write(b"data: [DONE]\n\n")
        return stream


def _texts(answer: Answer) -> list[dict[str, Any]]:
    return [{"content": part} for part in answer if isinstance(part, str)]


def _fragments(answer: Answer) -> list[dict[str, Any]]:
    """Name first, then the arguments in pieces, interleaved by index, as real models send parallel calls."""
    calls = [part for part in answer if isinstance(part, Call)]
    texts = [orjson.dumps(call.args).decode() for call in calls]
    made = [
        {"index": index, "id": f"up_{index}", "type": "function", "function": {"name": call.name, "arguments": ""}}
        for index, call in enumerate(calls)
    ]
    for at in range(0, max(map(len, texts), default=0), PIECE_CHARS):
        made += [
            {"index": index, "function": {"arguments": piece}}
            for index, text in enumerate(texts)
            if (piece := text[at : at + PIECE_CHARS])
        ]
    return [{"tool_calls": [fragment]} for fragment in made]


def _event(choice: dict[str, Any]) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "scripted", "choices": [choice]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


@asynccontextmanager
async def small_upstream(
    script: Callable[[dict[str, Any]], Answer], *, gap_s: float = 0.0, forward: Forward | None = None
) -> AsyncIterator[SmallUpstream]:
    """`script` gets the body of a request; `gap_s` is waited after each piece."""
    upstream = SmallUpstream(script, gap_s, forward)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", upstream.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield upstream
    finally:
        await runner.cleanup()


def results_in(body: dict[str, Any]) -> list[Any]:
    """What the request says of calls that were answered, in its order. A text stands there as it is."""
    contents = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    return [orjson.loads(content) if content.startswith("{") else content for content in contents]
