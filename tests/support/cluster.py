"""Several gateway processes over one real Valkey, and a load balancer before them that knows nothing."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.process import GatewayProcess
from tests.support.valkey import Valkey
from tests.support.wire import WITHIN_S, Frame

TAKEN_OVER_S = 12.0
"""A node is found lost within 3 to 4 seconds; on a machine that does other things too it may be later."""


class Cluster:
    """Nodes that share a log. Each cluster has a prefix of its own, so that many can share a server."""

    def __init__(self, server: Valkey, folder: Path, **settings: object) -> None:
        self.server = server
        self.nodes: list[GatewayProcess] = []
        self._folder = folder
        self._numbers = itertools.count()
        self._settings = {"log_url": f"{server.url}?prefix=t{secrets.token_hex(4)}", **settings}

    async def add(self, count: int = 1, **settings: object) -> list[GatewayProcess]:
        """Starts more nodes, side by side."""
        made = []
        for _ in range(count):
            folder = self._folder / f"node-{next(self._numbers)}"
            folder.mkdir(parents=True)
            made.append(GatewayProcess(folder, **{**self._settings, **settings}))
            self.nodes.append(made[-1])
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in made))
        return made

    async def stop(self) -> None:
        """As their operator does; what was killed before is no matter. Raises what went wrong with any of them."""
        await asyncio.gather(*(asyncio.to_thread(node.stop) for node in self.nodes if alive(node)))

    def kill(self) -> None:
        for node in self.nodes:
            if alive(node):
                assert node.process is not None
                node.process.kill()
                node.process.wait()


def alive(node: GatewayProcess) -> bool:
    return node.process is not None and node.process.poll() is None


@asynccontextmanager
async def cluster(server: Valkey, folder: Path, count: int, **settings: object) -> AsyncIterator[Cluster]:
    """Nodes of one test."""
    made = Cluster(server, folder, **settings)
    try:
        await made.add(count)
        yield made
    except BaseException:
        made.kill()
        raise
    await made.stop()


# ---------------------------------------------------------------- a load balancer


class Balancer:
    """Passes each connection on to the next node that takes it: nothing is sticky, and nothing is known."""

    def __init__(self, nodes: Callable[[], list[GatewayProcess]]) -> None:
        self.port = 0
        self._nodes = nodes
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if (found := await self._reached()) is not None:
                await asyncio.gather(_pass_on(reader, found[1]), _pass_on(found[0], writer))
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _reached(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        nodes = self._nodes()
        first = next(self._turn)
        for offset in range(len(nodes)):
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", nodes[(first + offset) % len(nodes)].port)
        return None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def balancer(nodes: Callable[[], list[GatewayProcess]]) -> AsyncIterator[Balancer]:
    made = Balancer(nodes)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
        await server.wait_closed()


# ---------------------------------------------------------------- what is asked of nodes


async def fold(node: GatewayProcess, conversation: str) -> Frame:
    """`GET /api/conversations/{id}`; its error if there is one."""
    async with (
        aiohttp.ClientSession(node.base) as http,
        http.get(f"/api/conversations/{conversation}") as answer,
    ):
        found: Frame = await answer.json()
        return found


async def until(what: Callable[[], Awaitable[Any]], within_s: float = WITHIN_S) -> Any:
    """The first true answer of `what`, which is asked again and again."""
    async with asyncio.timeout(within_s):
        while not (answer := await what()):
            await asyncio.sleep(0.05)
        return answer
