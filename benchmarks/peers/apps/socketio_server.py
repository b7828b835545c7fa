"""python-socketio's `AsyncServer` on uvicorn, WebSocket only, a typed stream of the openai SDK.

As its page on the server shows it (python-socketio.readthedocs.io/en/latest/server.html). Handlers of events run as
tasks of their own by default, so the conversations of a connection interleave. An event's one argument is the object
that the other peers send as a frame.
"""

from __future__ import annotations

from typing import Any

import socketio
from openai import AsyncOpenAI

sio = socketio.AsyncServer(async_mode="asgi", transports=["websocket"])
app = socketio.ASGIApp(sio)
client = AsyncOpenAI()


@sio.event
async def chat_message(sid: str, asked: dict[str, Any]) -> None:
    conversation_id = asked["conversation_id"]
    stream = await client.chat.completions.create(
        model="bench", messages=[{"role": "user", "content": asked["message"]}], stream=True
    )
    async for chunk in stream:
        if chunk.choices and (content := chunk.choices[0].delta.content):
            token = {"type": "token", "conversation_id": conversation_id, "content": content}
            await sio.emit("token", token, to=sid)
    await sio.emit("done", {"type": "done", "conversation_id": conversation_id}, to=sid)
