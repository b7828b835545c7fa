"""A lane: round trips to one Redis server over connections of its own, each carrying all that was asked for meanwhile.

    asked      a b . . c d e . . . . f
    sent       [a] . . [b c d e] . . [f]          with one connection; then also answered in this order

So a thousand readers that come back at once cost a few large round trips, not a thousand small ones, and whoever is
cancelled while he waits costs no connection, as a task of the lane reads the answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, NamedTuple, TypeAlias

import structlog
from hiredis import pack_command
from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_errors import explained, state_of

ROUND_TRIP_BYTES = 1 << 20
ROUND_TRIP_COMMANDS = 256
"""Bounds of one round trip, but for a single request that is larger."""

Part: TypeAlias = bytes | str | int
Reply: TypeAlias = Any
"""What the server said, or the `ResponseError` that it answered with."""

log_lines = structlog.get_logger(__name__)

_ASKING = pack_command((b"ASKING",))
_MOVED_AWAY = {"READONLY", "LOADING", "MASTERDOWN"}
"""A connection that hears one of these is given up: the primary may be another server now."""


class Script:
    """A Lua script: sent by its hash, and whole when the server doesn't know it (any more)."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.sha = sha1(self.source, usedforsecurity=False).hexdigest().encode()


class Command(NamedTuple):
    """One command of a request. `script` with `parts` = number of keys, keys, arguments; or a plain command."""

    parts: Sequence[Part]
    script: Script | None = None
    asking: bool = False
    """The slot is being handed over: this server serves it to whoever asks for it."""

    def packed(self, *, whole: bool = False) -> bytes:
        if self.script is None:
            words: tuple[Part, ...] = tuple(self.parts)
        elif whole:
            words = (b"EVAL", self.script.source, *self.parts)
        else:
            words = (b"EVALSHA", self.script.sha, *self.parts)
        packed: bytes = pack_command(words)  # type: ignore[arg-type]  # its stub names a tuple of one
        return _ASKING + packed if self.asking else packed


class _Request(NamedTuple):
    commands: Sequence[Command]
    packed: bytes
    answered: asyncio.Future[list[Reply]]


class Lane:
    """`connect` gives a connected connection, or raises. `timeout_s` bounds a round trip, connecting included; one
    that fails takes with it what waits behind it, so nobody waits much longer than twice that.

    With one connection requests are served in the order in which they were made, but for scripts that the server
    didn't know: their calls come, in order, after the other commands of their round trip. There is no bound on how many
    wait: each belongs to a caller that waits for it.
    """

    def __init__(
        self,
        server: str,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        connections: int,
        timeout_s: float,
    ) -> None:
        self.round_trips = 0
        self._server = server
        self._connect = connect
        self._connections = connections
        self._timeout_s = timeout_s
        self._waiting: deque[_Request] = deque()
        self._idle: list[AbstractConnection] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ask(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies to `commands`, a `ResponseError` for one that was refused. Raises `LogUnavailable`.

        Safe to cancel: the commands may have been executed or not.
        """
        if self._closed:
            raise LogUnavailable(f"the connection to Redis at {self._server} is closed")
        packed = b"".join([command.packed() for command in commands])
        answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(commands, packed, answered))
        if len(self._workers) < self._connections:
            self._workers.add(asyncio.create_task(self._run(), name="redis lane"))
        return await answered

    async def close(self) -> None:
        self._closed = True
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)
        self._fail(self._waiting, LogUnavailable(f"the connection to Redis at {self._server} was closed"))
        while self._idle:
            await give_up(self._idle.pop())

    # ------------------------------------------------------------ one connection's work

    async def _run(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        try:
            await self._work()
        finally:
            # In the very step that found nothing waiting: who asks before the loop calls a task done would wait
            # for a worker that works no more.
            self._workers.discard(worker)

    async def _work(self) -> None:
        while self._waiting:
            requests = self._take()
            try:
                async with asyncio.timeout(self._timeout_s):
                    replies = await self._round_trip([c for request in requests for c in request.commands], requests)
            except asyncio.CancelledError:
                self._fail(requests, LogUnavailable(f"the connection to Redis at {self._server} was closed"))
                raise
            except (LogUnavailable, OSError, TimeoutError, exceptions.RedisError) as problem:
                failed = explained(problem, self._server)
                self._fail(requests, failed)
                self._fail(self._waiting, failed)
                continue
            except Exception as bug:
                # Nobody may wait for ever for an answer that nobody will give.
                log_lines.exception("a round trip to Redis failed by a bug", server=self._server)
                self._fail(requests, LogUnavailable(f"a request to Redis at {self._server} failed: {bug!r}"))
                continue
            for request in requests:
                own, replies = replies[: len(request.commands)], replies[len(request.commands) :]
                if not request.answered.done():
                    request.answered.set_result(own)

    def _take(self) -> list[_Request]:
        first = self._waiting.popleft()
        requests, size_bytes, count = [first], len(first.packed), len(first.commands)
        while self._waiting:
            size_bytes += len(self._waiting[0].packed)
            count += len(self._waiting[0].commands)
            if size_bytes > ROUND_TRIP_BYTES or count > ROUND_TRIP_COMMANDS:
                break
            requests.append(self._waiting.popleft())
        return requests

    def _fail(self, requests: Sequence[_Request] | deque[_Request], problem: LogUnavailable) -> None:
        for request in requests:
            if not request.answered.done():
                # One each: an exception that is raised in several tasks would gather all their tracebacks.
                request.answered.set_exception(type(problem)(*problem.args))
        if requests is self._waiting:
            self._waiting.clear()

    async def _round_trip(self, commands: list[Command], requests: Sequence[_Request]) -> list[Reply]:
        connection = await self._connected()
        try:
            replies = await _exchange(connection, commands, b"".join([request.packed for request in requests]))
        except BaseException:
            await give_up(connection)
            raise
        self.round_trips += 1
        if any(isinstance(reply, Exception) and state_of(reply) in _MOVED_AWAY for reply in replies):
            await give_up(connection)
        else:
            self._idle.append(connection)
        return replies

    async def _connected(self) -> AbstractConnection:
        """An idle connection that the server hasn't closed meanwhile, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            with suppress(OSError, exceptions.RedisError):
                if connection.is_connected and not await connection.can_read():
                    return connection
            await give_up(connection)
        return await self._connect()


async def give_up(connection: AbstractConnection) -> None:
    """Closes a connection without waiting for the other side."""
    with suppress(OSError, exceptions.RedisError):
        await connection.disconnect(nowait=True)


async def _exchange(connection: AbstractConnection, commands: Sequence[Command], packed: bytes) -> list[Reply]:
    await _send(connection, packed)
    replies = [await _reply(connection, command) for command in commands]
    unknown = [at for at, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
    if unknown:
        again = [commands[at] for at in unknown]
        await _send(connection, _with_sources(again))
        for at, command in zip(unknown, again, strict=True):
            replies[at] = await _reply(connection, command)
    return replies


async def _send(connection: AbstractConnection, packed: bytes) -> None:
    try:
        await connection.send_packed_command(packed)
    except RuntimeError as problem:
        # uvloop's word for a transport that is closed, where asyncio's own would write into the void.
        raise exceptions.ConnectionError(str(problem)) from None


def _with_sources(commands: Sequence[Command]) -> bytes:
    """The first call of each script brings its source; in the order in which they came."""
    sent: set[Script | None] = set()
    packed = []
    for command in commands:
        packed.append(command.packed(whole=command.script not in sent))
        sent.add(command.script)
    return b"".join(packed)


async def _reply(connection: AbstractConnection, command: Command) -> Reply:
    if command.asking:
        await connection.read_response()
    try:
        return await connection.read_response()
    except exceptions.ResponseError as refused:
        return refused
