"""The servers that take part: how each is started, and how the load client speaks to it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.native import build
from benchmarks.processes import family, pinned
from benchmarks.show.gateway_process import running_gateway

Arguments = tuple[str, ...]
"""Words for the load client."""
GATEWAY_WS: Arguments = ("--mode", "ws", "--path", "/chat")
GATEWAY_SSE: Arguments = ("--mode", "sse", "--path", "/api/chat/stream")
SETTINGS: Mapping[str, Any] = MappingProxyType({
    "LOG_URL": "sqlite:bench.db",
    "LOG_LEVEL": "warning",
    "MODEL": "bench",
    "MAX_CONNECTIONS": 20000,
    "MAX_STREAMS": 20000,
})  # fmt: skip
"""Of every gateway here. Metrics are always on."""


class UnavailableError(Exception):
    """This machine lacks what an entrant needs; the message says what to do."""


class Running(NamedTuple):
    """A server that listens."""

    port: int
    pids: Callable[[], list[int]]


class Entrant(NamedTuple):
    name: str
    what: str
    start: Callable[[str, int], AbstractAsyncContextManager[Running]]
    """From the `OPENAI_BASE_URL` of the upstream and the core to run on."""
    ws: Arguments = ()
    """How it is spoken to over WebSocket; nothing: it doesn't speak it."""
    sse: Arguments = ()
    readers: bool = False
    """Further connections may follow a conversation."""


def gateway(name: str, what: str, **settings: Any) -> Entrant:
    @asynccontextmanager
    async def start(upstream: str, core: int) -> AsyncIterator[Running]:
        async with running_gateway(upstream=upstream, core=core, **{**SETTINGS, **settings}) as process:
            yield Running(process.port, lambda: list(family(process.pid)))

    return Entrant(name, what, start, GATEWAY_WS, GATEWAY_SSE, readers=True)


def relay(name: str, what: str, *words: str) -> Entrant:
    @asynccontextmanager
    async def start(upstream: str, core: int) -> AsyncIterator[Running]:
        program = await asyncio.to_thread(build, "relay")
        upstream_port = upstream.split(":")[2].split("/", maxsplit=1)[0]
        process = await asyncio.create_subprocess_exec(
            *pinned(core), program, "0", upstream_port, *words, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            port = int(await process.stdout.readline())
            yield Running(port, lambda: [process.pid])
        finally:
            process.kill()
            await process.wait()

    return Entrant(name, what, start, GATEWAY_WS)


OFF = {"BATCH_CHARS": 0}
OURS = (
    gateway("gateway", "sqlite:, batching off", **OFF),
    gateway("gateway-batched", "sqlite:, default batching"),
    gateway("gateway-memory", "memory:, batching off", **OFF, LOG_URL="memory:"),
    gateway("gateway-memory-batched", "memory:, default batching", LOG_URL="memory:"),
    relay("relay", "the floor in C: one send a token frame"),
    relay("relay-merge", "the floor in C: one send for all that one recv brought", "merge"),
    relay("relay-batch", "the floor in C, batched as the gateway does by default", "batch"),
)


def known() -> dict[str, Entrant]:
    """All entrants by name, the gateway's own first."""
    return {entrant.name: entrant for entrant in OURS}


async def listening(port: int, timeout_s: float) -> bool:
    """Whether somebody takes connections there before the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(probe, ("127.0.0.1", port))
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return True
    return False
