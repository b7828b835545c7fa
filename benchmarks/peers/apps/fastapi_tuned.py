"""The same FastAPI by an engineer who has profiled it: orjson, and the SDK read raw over its aiohttp transport.

The transport is the one of the SDK's README ("With aiohttp"), the raw stream its `.with_streaming_response`, which the
README documents beside the typed one. All events of one read are parsed together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI, DefaultAioHttpClient

app = FastAPI()
client = AsyncOpenAI(http_client=DefaultAioHttpClient())


async def tokens(message: str) -> AsyncIterator[str]:
    request = client.chat.completions.with_streaming_response.create(
        model="bench", messages=[{"role": "user", "content": message}], stream=True
    )
    async with request as response:
        rest = b""
        async for data in response.iter_bytes():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                choices = orjson.loads(line[6:])["choices"]
                if choices and (content := choices[0]["delta"].get("content")):
                    yield content


@app.websocket("/chat")
async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    running: set[asyncio.Task[None]] = set()
    try:
        while True:
            asked = orjson.loads(await websocket.receive_text())
            task = asyncio.create_task(answer(websocket, asked["conversation_id"], asked["message"]))
            running.add(task)
            task.add_done_callback(running.discard)
    except WebSocketDisconnect:
        for task in running:
            task.cancel()


async def answer(websocket: WebSocket, conversation_id: str, message: str) -> None:
    async for content in tokens(message):
        token = {"type": "token", "conversation_id": conversation_id, "content": content}
        await websocket.send_text(orjson.dumps(token).decode())
    await websocket.send_text(orjson.dumps({"type": "done", "conversation_id": conversation_id}).decode())


@app.post("/chat/stream")
async def chat_stream(request: Request) -> StreamingResponse:
    asked = orjson.loads(await request.body())
    return StreamingResponse(events(asked["conversation_id"], asked["message"]), media_type="text/event-stream")


async def events(conversation_id: str, message: str) -> AsyncIterator[bytes]:
    async for content in tokens(message):
        token = {"type": "token", "conversation_id": conversation_id, "content": content}
        yield b"data: " + orjson.dumps(token) + b"\n\n"
    yield b"data: " + orjson.dumps({"type": "done", "conversation_id": conversation_id}) + b"\n\n"
