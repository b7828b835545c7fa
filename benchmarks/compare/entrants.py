"""The servers that take part: how each is started, and how the load client speaks to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.compare.cores import Cores
from benchmarks.native import build
from benchmarks.native.run import running_upstream
from benchmarks.peers.catalog import PEERS, Dialect, Peer
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.process import running_peer
from benchmarks.processes import family, kill, pinned
from benchmarks.show.gateway_process import running_gateway
from benchmarks.show.valkey_process import running_valkey

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
    "DRAIN_S": 0,
})  # fmt: skip
"""Of every gateway here. Metrics are always on."""


class UnavailableError(Exception):
    """This machine lacks what an entrant needs; the message says what to do."""


class Running(NamedTuple):
    """A server that listens."""

    port: int
    pids: Callable[[], list[int]]
    store_pid: int | None = None
    """Of the store that it keeps its log in, when that is a process of its own. It shares the load's core."""


class Entrant(NamedTuple):
    name: str
    what: str
    start: Callable[[str, int], AbstractAsyncContextManager[Running]]
    """From the `OPENAI_BASE_URL` of the upstream and the core to run on."""
    ws: Arguments = ()
    """How it is spoken to over WebSocket; nothing: it doesn't speak it."""
    sse: Arguments = ()
    resume: Arguments = ()
    """What more is to be said when conversations are resumed."""
    keeps: bool = False
    """It keeps conversations when nobody reads them."""


def gateway(name: str, what: str, **settings: Any) -> Entrant:
    @asynccontextmanager
    async def start(upstream: str, core: int) -> AsyncIterator[Running]:
        async with running_gateway(upstream=upstream, core=core, **{**SETTINGS, **settings}) as process:
            yield Running(process.port, lambda: list(family(process.pid)))

    return Entrant(name, what, start, GATEWAY_WS, GATEWAY_SSE, keeps=True)


def gateway_on_redis(name: str, what: str, **settings: Any) -> Entrant:
    """With a Valkey of its own, which keeps its data in memory."""

    @asynccontextmanager
    async def start(upstream: str, core: int) -> AsyncIterator[Running]:
        beside = Cores.found().load
        async with running_valkey(prefix=pinned(beside)) as valkey:
            log = {**SETTINGS, "LOG_URL": valkey.url, **settings}
            async with running_gateway(upstream=upstream, core=core, **log) as process:
                yield Running(process.port, lambda: list(family(process.pid)), valkey.pid)

    return Entrant(name, what, start, GATEWAY_WS, GATEWAY_SSE, keeps=True)


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
            await kill(process)

    return Entrant(name, what, start, GATEWAY_WS)


def peer(listed: Peer) -> Entrant:
    @asynccontextmanager
    async def start(upstream: str, core: int) -> AsyncIterator[Running]:
        try:
            async with running_peer(listed.name, upstream, prefix=pinned(core)) as process:
                yield Running(process.port, process.pids)
        except Unavailable as missing:
            raise UnavailableError(str(missing)) from missing

    ways: dict[Dialect, Arguments] = {
        Dialect.WEBSOCKET: ("--mode", "ws", "--path", "/chat"),
        Dialect.SOCKETIO: ("--mode", "sio"),
        Dialect.SSE: ("--mode", "sse", "--path", "/chat/stream"),
        Dialect.OPENAI: ("--mode", "openai", "--header", f"Authorization: Bearer {listed.key}"),
        Dialect.AI_SDK: ("--mode", "aisdk", "--path", "/api/chat"),
    }
    spoken = [ways[dialect] for dialect in listed.dialects]
    sockets = [way for way in spoken if way[1] in {"ws", "sio"}]
    events = [way for way in spoken if way not in sockets]
    return Entrant(
        listed.name, listed.what, start, sockets[0] if sockets else (), events[0] if events else (),
        resume=("--resume", "/api/chat/%s/stream") if Dialect.AI_SDK in listed.dialects else (),
    )  # fmt: skip


def upstream_itself() -> Entrant:
    """The generator, as if it were a server: for the scenario that measures the tools."""

    @asynccontextmanager
    async def start(_: str, core: int) -> AsyncIterator[Running]:
        async with running_upstream(core) as generator:
            yield Running(generator.port, lambda: [generator.pid])

    return Entrant("upstream", "the generator itself", start, sse=("--mode", "openai"))


OFF = {"BATCH_CHARS": 0}
OURS = (
    gateway("gateway", "sqlite:, batching off", **OFF),
    gateway("gateway-batched", "sqlite:, default batching"),
    gateway("gateway-memory", "memory:, batching off", **OFF, LOG_URL="memory:"),
    gateway("gateway-memory-batched", "memory:, default batching", LOG_URL="memory:"),
    gateway("gateway-evicting", "sqlite:, conversations leave the pool after 1 s", SESSION_IDLE_S=1),
    gateway_on_redis("gateway-redis", "redis:, batching off", **OFF),
    gateway_on_redis("gateway-redis-batched", "redis:, default batching"),
    gateway_on_redis("gateway-redis-2-workers", "redis:, batching off, two workers", **OFF, WORKERS=2),
    relay("relay", "the floor in C: one send a token frame"),
    relay("relay-merge", "the floor in C: one send for all that one recv brought", "merge"),
    relay("relay-batch", "the floor in C, batched as the gateway does by default", "batch"),
    upstream_itself(),
)
ENTRANTS = {entrant.name: entrant for entrant in (*OURS, *map(peer, PEERS.values()))}
