"""One reader of each dialect: asks a peer one question and yields the pieces of text that it gets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import orjson

from benchmarks.peers.catalog import Dialect
from benchmarks.peers.process import RunningPeer


class WrongAnswer(Exception):
    """A peer sent what its dialect doesn't have, or ended before the end."""


async def websocket_answers(
    socket: aiohttp.ClientWebSocketResponse, dialect: Dialect, questions: dict[str, str]
) -> AsyncGenerator[tuple[str, str | None], None]:
    """Asks all questions, by their conversations' ids, on one connection.

    Yields in the order of arrival: a conversation's id, and a piece of its answer or, at its end, None.
    """
    if dialect is Dialect.SOCKETIO:
        await _enter_socketio(socket)
    for conversation_id, message in questions.items():
        asked = {"type": "chat_message", "conversation_id": conversation_id, "message": message}
        await socket.send_str(_written(dialect, asked))
    async for got in followed(socket, dialect, set(questions)):
        yield got


async def followed(
    socket: aiohttp.ClientWebSocketResponse, dialect: Dialect, conversation_ids: set[str]
) -> AsyncGenerator[tuple[str, str | None], None]:
    """What arrives, as above, until all these conversations have ended."""
    running = set(conversation_ids)
    while running:
        frame = await _next_frame(socket, dialect)
        if frame["type"] == "token":
            yield frame["conversation_id"], frame["content"]
        elif frame["type"] == "done":
            running.remove(frame["conversation_id"])
            yield frame["conversation_id"], None
        else:
            raise WrongAnswer(str(frame))


async def _enter_socketio(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Engine.IO's open packet, Socket.IO's connect packet and its answer."""
    if not (await socket.receive_str()).startswith("0{"):
        raise WrongAnswer("no open packet")
    await socket.send_str("40")
    if not (await socket.receive_str()).startswith("40{"):
        raise WrongAnswer("the namespace was refused")


def _written(dialect: Dialect, frame: dict[str, Any]) -> str:
    if dialect is Dialect.SOCKETIO:
        return f"42{orjson.dumps([frame['type'], frame]).decode()}"
    return orjson.dumps(frame).decode()


async def _next_frame(socket: aiohttp.ClientWebSocketResponse, dialect: Dialect) -> dict[str, Any]:
    while True:
        text = await socket.receive_str()
        if dialect is not Dialect.SOCKETIO:
            frame: dict[str, Any] = orjson.loads(text)
            return frame
        if text == "2":  # Engine.IO's heartbeat
            await socket.send_str("3")
        elif text.startswith("42"):
            name, frame = orjson.loads(text[2:])
            if name != frame["type"]:
                raise WrongAnswer(text)
            return frame


def websocket_url(running: RunningPeer, dialect: Dialect) -> str:
    path = "/socket.io/?EIO=4&transport=websocket" if dialect is Dialect.SOCKETIO else "/chat"
    return f"ws://127.0.0.1:{running.port}{path}"


async def stream_answer(
    session: aiohttp.ClientSession, running: RunningPeer, dialect: Dialect, conversation_id: str, message: str
) -> AsyncGenerator[str, None]:
    """The pieces of an answer over HTTP, up to its end."""
    path, body, headers = _request(running, dialect, conversation_id, message)
    async with session.post(f"http://127.0.0.1:{running.port}{path}", json=body, headers=headers) as response:
        async for piece in pieces_of(response, dialect):
            yield piece


async def pieces_of(response: aiohttp.ClientResponse, dialect: Dialect) -> AsyncGenerator[str, None]:
    if response.status != 200:
        raise WrongAnswer(f"{response.status}: {await response.text()}")
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            return
        event = orjson.loads(line[6:])
        if dialect is Dialect.SSE and event["type"] == "done":
            return
        if piece := _piece(dialect, event):
            yield piece
    raise WrongAnswer("the stream ended before its end was told")


def _request(
    running: RunningPeer, dialect: Dialect, conversation_id: str, message: str
) -> tuple[str, dict[str, Any], dict[str, str]]:
    if dialect is Dialect.OPENAI:
        messages = [{"role": "user", "content": message}]
        headers = {"Authorization": f"Bearer {running.peer.key}"}
        return "/v1/chat/completions", {"model": "bench", "messages": messages, "stream": True}, headers
    if dialect is Dialect.AI_SDK:
        ui_message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": message}]}
        return "/api/chat", {"id": conversation_id, "message": ui_message}, {}
    return "/chat/stream", {"conversation_id": conversation_id, "message": message}, {}


def _piece(dialect: Dialect, event: dict[str, Any]) -> str:
    """The text of an event, empty if it has none."""
    if dialect is Dialect.OPENAI:
        return (event["choices"] and event["choices"][0]["delta"].get("content")) or ""
    if dialect is Dialect.AI_SDK:
        if event["type"] == "error":
            raise WrongAnswer(event["errorText"])
        return event["delta"] if event["type"] == "text-delta" else ""
    return str(event["content"])
