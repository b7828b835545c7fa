"""aiohttp on both sides: its server towards the clients, its client towards the upstream, on uvloop, with orjson.

As aiohttp's pages on WebSockets and streaming responses show it (docs.aiohttp.org/en/stable/web_quickstart.html and
web_advanced.html). One session for all requests, without its limit of 100 connections, which would queue streams
(docs.aiohttp.org/en/stable/client_advanced.html, "Limiting connection pool size").
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import aiohttp
import orjson
import uvloop
from aiohttp import web

COMPLETIONS = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
SESSION = web.AppKey("session", aiohttp.ClientSession)


async def tokens(session: aiohttp.ClientSession, message: str) -> AsyncIterator[str]:
    body = {"model": "bench", "messages": [{"role": "user", "content": message}], "stream": True}
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    async with session.post(COMPLETIONS, json=body, headers=headers) as response:
        response.raise_for_status()
        rest = b""
        async for data in response.content.iter_any():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                choices = orjson.loads(line[6:])["choices"]
                if choices and (content := choices[0]["delta"].get("content")):
                    yield content


async def chat(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    running: set[asyncio.Task[None]] = set()
    async for frame in socket:
        asked = orjson.loads(frame.data)
        task = asyncio.create_task(answer(request.app[SESSION], socket, asked["conversation_id"], asked["message"]))
        running.add(task)
        task.add_done_callback(running.discard)
    for task in running:
        task.cancel()
    return socket


async def answer(
    session: aiohttp.ClientSession, socket: web.WebSocketResponse, conversation_id: str, message: str
) -> None:
    async for content in tokens(session, message):
        token = {"type": "token", "conversation_id": conversation_id, "content": content}
        await socket.send_str(orjson.dumps(token).decode())
    await socket.send_str(orjson.dumps({"type": "done", "conversation_id": conversation_id}).decode())


async def chat_stream(request: web.Request) -> web.StreamResponse:
    asked = orjson.loads(await request.read())
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for content in tokens(request.app[SESSION], asked["message"]):
        token = {"type": "token", "conversation_id": asked["conversation_id"], "content": content}
        await response.write(b"data: " + orjson.dumps(token) + b"\n\n")
    done = {"type": "done", "conversation_id": asked["conversation_id"]}
    await response.write(b"data: " + orjson.dumps(done) + b"\n\n")
    return response


async def session_of(app: web.Application) -> AsyncIterator[None]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        app[SESSION] = session
        yield


def main() -> None:
    app = web.Application()
    app.cleanup_ctx.append(session_of)
    app.router.add_get("/chat", chat)
    app.router.add_post("/chat/stream", chat_stream)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), loop=uvloop.new_event_loop(), access_log=None, print=None)


if __name__ == "__main__":
    main()
