"""A real uvicorn server on a free port of this loop, with the WebSocket shell and the HTTP guard in it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from gateway.edge.handshake import Accept, Decision
from gateway.edge.http_guard import guarded_http
from gateway.edge.keepalive import Keepalive
from gateway.edge.websocket import ShellLimits, WebSocketShell, shell_factory

TICK_S = 0.02
"""Of the keepalive in tests: deadlines there are fractions of a second."""


class Echo:
    """Sends back what it gets, in the subprotocol's opcode, and remembers what was called."""

    def __init__(self, shell: WebSocketShell) -> None:
        self.shell = shell
        self.calls: list[str] = []
        self.messages: list[tuple[bytes, bool]] = []
        self.is_open = asyncio.Event()
        self.is_closed = asyncio.Event()
        self.is_writable = asyncio.Event()
        self.path = ""

    def opened(self) -> None:
        self.calls.append("opened")
        self.path = self.shell.request.path
        self.is_open.set()

    def received(self, data: bytes, binary: bool) -> None:
        self.messages.append((data, binary))
        self.shell.write([data])

    def writable(self) -> None:
        self.calls.append("writable")
        self.is_writable.set()

    def closed(self) -> None:
        self.calls.append("closed")
        self.is_closed.set()


class Server:
    """What is being served. `handlers` in order of their connections."""

    def __init__(self, uvicorn_server: uvicorn.Server, port: int, keepalive: Keepalive) -> None:
        self.uvicorn = uvicorn_server
        self.port = port
        self.keepalive = keepalive
        self.handlers: list[Any] = []
        self.arrived = asyncio.Event()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/chat"

    @property
    def connections(self) -> set[Any]:
        return self.uvicorn.server_state.connections

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def handler(self, number: int = 0) -> Any:
        while len(self.handlers) <= number:
            self.arrived.clear()
            await self.arrived.wait()
        return self.handlers[number]


@asynccontextmanager
async def serving(
    handler: Callable[[WebSocketShell], Any] = Echo,
    *,
    limits: ShellLimits | None = None,
    decide: Callable[..., Decision] | None = None,
    app: Any = None,
    handshake_timeout_s: float = 10.0,
    write_deadline_s: float = 10.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    keepalive = Keepalive(TICK_S)

    def keep(shell: WebSocketShell) -> Any:
        made = handler(shell)
        server.handlers.append(made)
        server.arrived.set()
        return made

    config = uvicorn.Config(
        app or no_app,
        http=guarded_http(handshake_timeout_s, write_deadline_s=write_deadline_s),
        ws=shell_factory(
            accept=decide or (lambda request, peer: Accept(keep)), limits=limits or ShellLimits(), keepalive=keepalive
        ),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        ssl_context_factory=(lambda config, default: tls) if tls else None,
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Server(config), listener.getsockname()[1], keepalive)
        serve = asyncio.create_task(server.uvicorn._serve([listener]))
        while not server.uvicorn.started:
            await asyncio.sleep(0.005)
        try:
            yield server
        finally:
            server.uvicorn.should_exit = True
            await asyncio.wait_for(serve, 15)


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers every request with 200, after it was read whole."""
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
