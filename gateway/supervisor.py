"""Keeps several workers running as one gateway: on one port, over one log, each a process of its own.

Every worker listens itself (`SO_REUSEPORT`). One socket that all inherit would be simpler, but whoever is awake first
takes from it: of 1,000 connections the busiest of 4 workers got 349 to 369 that way, and 268 this way. WebSocket
connections stay for hours, so an uneven start stays too.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

import structlog

from gateway.orders import DRAIN, READY, STOP, Order, why
from gateway.server import address, signals_call
from gateway.settings import Settings

GRACE_S: Final = 15.0
"""After `DRAIN_S`, or after an order to stop at once: a worker that is still there is killed."""
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
STEADY_S: Final = 60.0
"""A worker that served for so long and then dies is started again as if it were the first time."""
_MAX_SOCKET_PATH: Final = 80
"""Of a folder; a Unix socket's whole path may have 107 bytes (104 on a Mac)."""

log_lines = structlog.get_logger(__name__)

Command = Callable[[int, int], list[str]]
"""What starts worker `index` (from 1), which finds its end of the socket pair at file descriptor `fd`."""


class StartFailed(Exception):
    """The gateway can't start, for this reason, in words for people."""


class Phase(IntEnum):
    """Only ever goes up.

    STARTING  not all workers have been ready yet: one that ends before it is ends the start
    SERVING   a worker that ends is started again
    DRAINING  workers end when their turns have
    STOPPING  workers end at once
    """

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    STOPPING = 3


class Worker:
    """One process, from its start to its end."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.problem: str | None = None
        """Why it couldn't start, in its own words."""

    @classmethod
    async def start(cls, command: Command, index: int, order: bytes) -> Self:
        """Raises `OSError`."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command(index, theirs.fileno()),
                    stdin=asyncio.subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                    # Ctrl-C is for the supervisor, which passes it on.
                    process_group=0,
                )
            except BaseException:
                writer.close()
                raise
        assert process.stdin is not None
        process.stdin.write(order)
        process.stdin.close()
        return cls(process, reader, writer)

    async def ready(self) -> bool:
        """Waits until it says so; False: it never will."""
        try:
            said = await self._reader.readline()
        except ConnectionError:
            said = b""
        self.problem = why(said)
        return said == READY

    def tell(self, words: bytes) -> None:
        self._writer.write(words)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> int:
        """Waits for it. Its exit code."""
        code = await self._process.wait()
        self._writer.close()
        with suppress(OSError):  # what it was told last didn't reach it
            await self._writer.wait_closed()
        return code


class _End(NamedTuple):
    code: int | None
    """None: it never was."""
    problem: str | None
    served_s: float | None
    """None: it never said that it was ready."""


class Supervisor:
    """Keeps `count` workers running until it is stopped. `run` once."""

    def __init__(
        self,
        count: int,
        command: Command,
        order: Callable[[int], bytes],
        *,
        on_ready: Callable[[], object],
        drain_s: float,
        grace_s: float = GRACE_S,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        self._count = count
        self._command = command
        self._order = order
        self._on_ready = on_ready
        self._drain_s = drain_s
        self._grace_s = grace_s
        self._first_backoff_s = first_backoff_s
        self._phase = Phase.STARTING
        self._said = b""
        """What a worker has to be told, all in all."""
        self._workers: dict[int, Worker] = {}
        self._ready: set[int] = set()
        self._problem: str | None = None
        self._stopped = asyncio.Event()
        self._clean = True

    async def run(self) -> bool:
        """Until the last worker has ended; False: not all in peace. Raises `StartFailed`."""
        async with asyncio.TaskGroup() as keeping:
            for index in range(1, self._count + 1):
                keeping.create_task(self._keep(index))
        if self._problem is not None:
            raise StartFailed(self._problem)
        return self._clean

    def stop(self) -> None:
        """First call: workers drain. Second: they stop at once. Those that don't are killed in the end."""
        if self._phase < Phase.DRAINING:
            self._go_on(Phase.DRAINING, DRAIN, self._drain_s + self._grace_s)
        elif self._phase is Phase.DRAINING:
            self._go_on(Phase.STOPPING, STOP, self._grace_s)

    def _go_on(self, phase: Phase, word: bytes, kill_after_s: float) -> None:
        self._phase = phase
        self._said += word
        self._stopped.set()
        for worker in self._workers.values():
            worker.tell(word)
        asyncio.get_running_loop().call_later(kill_after_s, self._kill)

    def _kill(self) -> None:
        for index, worker in self._workers.items():
            log_lines.error("worker didn't stop in time and is killed", worker=index)
            worker.kill()

    async def _keep(self, index: int) -> None:
        """One worker after the other, with pauses that grow."""
        pause_s = self._first_backoff_s
        while self._phase < Phase.DRAINING:
            end = await self._live(index)
            if self._phase >= Phase.DRAINING:
                self._clean = self._clean and end.code == 0
                return
            if self._phase is Phase.STARTING and end.served_s is None:
                self._give_up(end.problem or f"worker {index} ended with exit code {end.code} before it was ready.")
                return
            if (end.served_s or 0) > STEADY_S:
                pause_s = self._first_backoff_s
            log_lines.warning("worker ended", worker=index, exit_code=end.code, reason=end.problem, again_in_s=pause_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause_s)
            pause_s = min(2 * pause_s, MAX_BACKOFF_S)

    async def _live(self, index: int) -> _End:
        """A worker's whole life."""
        now = asyncio.get_running_loop().time
        try:
            worker = await Worker.start(self._command, index, self._order(index))
        except OSError as problem:
            return _End(None, f"worker {index} can't be started: {problem}", None)
        self._workers[index] = worker
        try:
            worker.tell(self._said)
            ready = await worker.ready()
            began = now()
            if ready:
                self._is_ready(index)
            code = await worker.end()
            return _End(code, worker.problem, now() - began if ready else None)
        except BaseException:
            # A bug, or cancelled: no process outlives its keeper.
            worker.kill()
            await worker.end()
            raise
        finally:
            del self._workers[index]
            self._ready.discard(index)

    def _is_ready(self, index: int) -> None:
        if self._phase is Phase.SERVING:
            log_lines.info("worker serves again", worker=index)
        self._ready.add(index)
        if self._phase is Phase.STARTING and len(self._ready) == self._count:
            self._phase = Phase.SERVING
            self._on_ready()

    def _give_up(self, problem: str) -> None:
        self._problem = problem
        self.stop()
        self.stop()


def worker_command(index: int, fd: int) -> list[str]:
    """The same program by the same interpreter. A folder `gateway` where it happens to be started isn't that."""
    here = Path(__file__).parents[1] == Path.cwd()
    return [sys.executable, *([] if here else ["-P"]), "-m", "gateway.worker", str(index), str(fd)]


def supervise(settings: Settings, reserved: socket.socket, command: Command = worker_command) -> bool:
    """Runs `WORKERS` workers at the address of `reserved` until SIGTERM or SIGINT; False: not all ended in peace.
    Raises `StartFailed`."""
    serving = settings.serving
    with _folder() as folder:
        port = reserved.getsockname()[1]
        # The same port for all, and for those that are started again.
        told = settings._replace(serving=serving.model_copy(update={"port": port}))
        where = address(settings, reserved)

        def ready() -> None:
            model, log = settings.model.model, settings.log.url
            log_lines.info("ready", address=where, model=model, log=log, workers=serving.workers)

        return asyncio.run(
            _supervise(
                Supervisor(
                    serving.workers,
                    command,
                    lambda index: pickle.dumps(Order(told, index, Path(folder))),
                    on_ready=ready,
                    drain_s=serving.drain_s,
                )
            )
        )


async def _supervise(supervisor: Supervisor) -> bool:
    with signals_call(supervisor.stop):
        clean = await supervisor.run()
    log_lines.info("stopped")
    return clean


def _folder() -> tempfile.TemporaryDirectory[str]:
    """That only this user may enter, where a Unix socket's path isn't too long."""
    usual = len(tempfile.gettempdir()) <= _MAX_SOCKET_PATH
    return tempfile.TemporaryDirectory(
        prefix=f"convobase-{os.getpid()}-",
        dir=None if usual else "/tmp",  # noqa: S108 # the folder's name is new and can't be guessed
        ignore_cleanup_errors=True,
    )
