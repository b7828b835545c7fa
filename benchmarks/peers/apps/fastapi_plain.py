"""What an engineer writes first: FastAPI on uvicorn, a typed stream of the openai SDK, `send_json` for every token.

As FastAPI's pages on WebSockets (fastapi.tiangolo.com/advanced/websockets) and on streaming responses
(fastapi.tiangolo.com/advanced/custom-response) show it, and the SDK's README under "Streaming responses". A task for
each message, so that the conversations of a connection interleave.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

app = FastAPI()
client = AsyncOpenAI()


class ChatMessage(BaseModel):
    conversation_id: str
    message: str


async def tokens(message: str) -> AsyncIterator[str]:
    stream = await client.chat.completions.create(
        model="bench", messages=[{"role": "user", "content": message}], stream=True
    )
    async for chunk in stream:
        if chunk.choices and (content := chunk.choices[0].delta.content):
            yield content


@app.websocket("/chat")
async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    running: set[asyncio.Task[None]] = set()
    try:
        while True:
            asked = ChatMessage.model_validate(await websocket.receive_json())
            task = asyncio.create_task(answer(websocket, asked))
            running.add(task)
            task.add_done_callback(running.discard)
    except WebSocketDisconnect:
        for task in running:
            task.cancel()


async def answer(websocket: WebSocket, asked: ChatMessage) -> None:
    async for content in tokens(asked.message):
        await websocket.send_json({"type": "token", "conversation_id": asked.conversation_id, "content": content})
    await websocket.send_json({"type": "done", "conversation_id": asked.conversation_id})


@app.post("/chat/stream")
async def chat_stream(asked: ChatMessage) -> StreamingResponse:
    return StreamingResponse(events(asked), media_type="text/event-stream")


async def events(asked: ChatMessage) -> AsyncIterator[str]:
    async for content in tokens(asked.message):
        token = {"type": "token", "conversation_id": asked.conversation_id, "content": content}
        yield f"data: {json.dumps(token)}\n\n"
    yield f"data: {json.dumps({'type': 'done', 'conversation_id': asked.conversation_id})}\n\n"
