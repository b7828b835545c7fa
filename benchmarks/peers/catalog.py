"""The table of peers: what each is started with, and how clients speak to it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
WEB, LITELLM, NODE = "web", "litellm", "node"
"""Environments: two of Python, by the name of their requirements file, and Node's packages."""


class Dialect(Enum):
    """How a client asks, and in what it is answered."""

    WEBSOCKET = "websocket"
    """`/chat`: `{"type":"chat_message","conversation_id","message"}`, answered by `token` frames and `done`."""
    SOCKETIO = "socketio"
    """`/socket.io/?EIO=4&transport=websocket`: the same objects as the one argument of the events of their type."""
    SSE = "sse"
    """`POST /chat/stream` of `{"conversation_id","message"}`, answered by `data: {"type":"token",…}` and `done`."""
    OPENAI = "openai"
    """`POST /v1/chat/completions`, with the key of `Peer.key`."""
    AI_SDK = "ai-sdk"
    """`POST /api/chat` of `{"id","message": a UIMessage}`, `GET /api/chat/ID/stream` to resume: UI message streams."""


class Peer(NamedTuple):
    name: str
    what: str
    environment: str
    command: Callable[[str, int], list[str]]
    """From the interpreter (the environment's Python, or node) and the port to the command line."""
    dialects: tuple[Dialect, ...]
    settings: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default, never changed
    """Environment variables beside `OPENAI_BASE_URL` and `OPENAI_API_KEY`."""
    redis: bool = False
    """Needs `REDIS_URL`."""
    fans_out: bool = False
    """`{"type":"subscribe","conversation_id"}` makes a socket one more reader of a conversation."""
    key: str = ""


def _uvicorn(app: str) -> Callable[[str, int], list[str]]:
    # uvicorn.dev/deployment: one worker is one process on one core. No line is logged for a request.
    return lambda python, port: [
        python, "-m", "uvicorn", f"{app}:app", "--app-dir", str(HERE / "apps"),
        "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log",
    ]  # fmt: skip


def _granian(app: str) -> Callable[[str, int], list[str]]:
    # The README's ASGI start. Its one worker is a process below the one that watches it. Granian serves as many
    # requests at a time as its backlog has places, by default 1,024, which would be a limit on connections here.
    return lambda python, port: [
        python, "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port),
        "--loop", "uvloop", "--backlog", "16384", "--log-level", "warning",
        "--working-dir", str(HERE / "apps"), f"{app}:app",
    ]  # fmt: skip


def _node(script: str) -> Callable[[str, int], list[str]]:
    return lambda node, port: [node, str(HERE / "node" / script), str(port)]


def _litellm(python: str, port: int) -> list[str]:
    command = str(Path(python).parent / "litellm")
    return [command, "--config", str(HERE / "apps" / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port),
            "--num_workers", "1"]  # fmt: skip


def _aiohttp(python: str, port: int) -> list[str]:
    return [python, str(HERE / "apps" / "aiohttp_server.py"), str(port)]


_BOTH = (Dialect.WEBSOCKET, Dialect.SSE)
_NODE = {"NODE_ENV": "production"}
_LITELLM_KEY = f"sk-{secrets.token_urlsafe(32)}"
"""The proxy refuses weak ones. A new one in every process that starts it."""
_LITELLM = {
    "LITELLM_MASTER_KEY": _LITELLM_KEY,
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    # Its price list comes from the network otherwise, which only delays the start.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}

PEERS = {
    peer.name: peer
    for peer in (
        Peer("fastapi", "FastAPI, uvicorn, typed AsyncOpenAI stream", WEB, _uvicorn("fastapi_plain"), _BOTH),
        Peer("fastapi-tuned", "the same, orjson, SDK raw over aiohttp", WEB, _uvicorn("fastapi_tuned"), _BOTH),
        Peer("granian", "fastapi on granian instead of uvicorn", WEB, _granian("fastapi_plain"), _BOTH),
        Peer("aiohttp", "aiohttp server and aiohttp upstream", WEB, _aiohttp, _BOTH),
        Peer("socketio", "python-socketio on uvicorn", WEB, _uvicorn("socketio_server"), (Dialect.SOCKETIO,)),
        Peer("node-ws", "Node ws and npm openai", NODE, _node("ws.js"), (Dialect.WEBSOCKET,), _NODE),
        Peer("node-fanout", "Node ws, one stream to all subscribers", NODE, _node("fanout.js"), (Dialect.WEBSOCKET,),
             _NODE, fans_out=True),
        Peer("node-socketio", "socket.io and npm openai", NODE, _node("socketio.js"), (Dialect.SOCKETIO,), _NODE),
        Peer("ai-sdk-resumable", "Vercel AI SDK, resumable-stream on Redis", NODE, _node("ai_sdk_resumable.js"),
             (Dialect.AI_SDK,), _NODE, redis=True),
        Peer("litellm", "LiteLLM proxy", LITELLM, _litellm, (Dialect.OPENAI,), _LITELLM, key=_LITELLM_KEY),
    )
}  # fmt: skip
