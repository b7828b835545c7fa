"""A wire: one connection to a Redis server that both follows channels and carries commands, all of them pipelined.

redis-py makes the connection (addresses, TLS, credentials), and then this protocol takes over its transport: what the
server pushes is handed on in the very loop turn that read it, with no stream, queue or task in between. That is the
hot path of readers on other nodes: 0.3 to 10 µs of CPU a message, where redis-py's PubSub takes 5 to 46 (many or one
a read), and its cluster client asks one server after the other.

    sent       SSUBSCRIBE a b     SPUBLISH c    PING
    expected   a, b confirmed  →  a reply    →  a reply      in this order, with messages between them

Replies come in the order of the commands. A subscription has no reply of its own but one push for each channel, and an
error in place of the first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol, TypeAlias

from hiredis import ProtocolError, PushNotification, Reader, pack_command
from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_errors import explained
from gateway.logs.redis_lane import Part, give_up

GREET_S = 2.0
BACKLOG_BYTES = 8 << 20
"""What may wait to be sent before commands are refused: the server, or the way to it, is stuck."""

Reply: TypeAlias = Any
"""What the server said; an exception when it refused, or when the connection was lost before it said anything."""
Answered: TypeAlias = Callable[[Reply], None]

_MORE = object()


class Ears(Protocol):
    """Who listens. All calls come on the event loop, and must not raise."""

    def message(self, channel: bytes, payload: bytes) -> None: ...

    def unsubscribed(self, channel: bytes) -> None:
        """By the server, not by us: the channel's slot is served elsewhere now."""
        ...

    def refused(self, problem: exceptions.ResponseError) -> None:
        """Some command was answered with this. Whoever sent it hears of it, too."""
        ...


class _Kind(Enum):
    SUBSCRIBE = b"ssubscribe"
    UNSUBSCRIBE = b"sunsubscribe"


class _Change:
    """A command that changes subscriptions, until the server confirmed all its channels."""

    __slots__ = ("answered", "kind", "waiting")

    def __init__(self, kind: _Kind, channels: Sequence[bytes], answered: Answered) -> None:
        self.kind = kind
        self.waiting = set(channels)
        self.answered = answered


class Wire(asyncio.Protocol):
    """See above. All methods but `open` and `close` are synchronous; those that send raise `LogUnavailable` when the
    connection is gone or stuck. Every `answered` is called exactly once, and must not raise."""

    def __init__(self, connection: AbstractConnection, server: str, ears: Ears) -> None:
        self.gone = asyncio.Event()
        self.heard = False
        """Set by whatever comes from the server. Who wants to know whether it still speaks clears it."""
        self._server = server
        self._ears = ears
        # Holds the writer, which would close the transport if it were collected.
        self._connection = connection
        writer = connection._writer  # noqa: SLF001 - redis-py has no public way to its transport
        if writer is None:
            raise LogUnavailable(f"the connection to Redis at {server} was lost")
        self._transport: asyncio.WriteTransport = writer.transport
        self._reader = Reader(replyError=exceptions.ResponseError, notEnoughData=_MORE)
        self._expected: deque[Answered | _Change] = deque()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, connection: AbstractConnection, server: str, ears: Ears) -> Wire:
        """Takes over a connection of redis-py that is connected and has nothing under way. Raises `LogUnavailable`.
        Safe to cancel; the connection is closed then."""
        try:
            wire = cls(connection, server, ears)
            async with asyncio.timeout(GREET_S):
                # RESP3: other commands may be sent while subscribed, and messages are told from replies.
                reply = await wire.ask(b"HELLO", b"3")
        except BaseException as problem:
            await give_up(connection)
            if isinstance(problem, TimeoutError):
                raise explained(problem, server) from None
            raise
        if isinstance(reply, Exception):
            await wire.close()
            raise explained(reply, server)
        return wire

    async def close(self) -> None:
        """Idempotent; what is still expected is answered with `LogUnavailable`."""
        self.abort()
        await give_up(self._connection)
        self._end()

    def abort(self) -> None:
        """Cuts the connection at once."""
        self._transport.abort()

    # ------------------------------------------------------------ sending

    def send(self, answered: Answered, *words: Part) -> None:
        """Sends a command that has one reply."""
        self._write(words)
        self._expected.append(answered)

    def ask(self, *words: Part) -> asyncio.Future[Reply]:
        """As `send`, for whoever waits. The future has no exception: what was refused is its result."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answered(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        self.send(answered, *words)
        return future

    def subscribe(self, channels: Sequence[bytes], answered: Answered) -> None:
        """Follows `channels`, in a cluster all of one slot. The reply is None when all are confirmed."""
        self._write((b"SSUBSCRIBE", *channels))
        self._expected.append(_Change(_Kind.SUBSCRIBE, channels, answered))

    def unsubscribe(self, channels: Sequence[bytes], answered: Answered) -> None:
        """Follows them no more; as `subscribe`."""
        self._write((b"SUNSUBSCRIBE", *channels))
        self._expected.append(_Change(_Kind.UNSUBSCRIBE, channels, answered))

    def _write(self, words: tuple[Any, ...]) -> None:
        if self.gone.is_set() or self._transport.is_closing():
            raise LogUnavailable(f"the connection to Redis at {self._server} was lost")
        packed: bytes = pack_command(words)
        if self._unsent_bytes + self._transport.get_write_buffer_size() + len(packed) > BACKLOG_BYTES:
            raise LogUnavailable(f"Redis at {self._server} doesn't keep up")
        if not self._unsent:
            # Everything that this loop turn brings goes out in one write.
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(packed)
        self._unsent_bytes += len(packed)

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        if not self._transport.is_closing():
            self._transport.write(b"".join(unsent))

    # ------------------------------------------------------------ what comes

    def data_received(self, data: bytes) -> None:
        self.heard = True
        reader, ears = self._reader, self._ears
        reader.feed(data)
        try:
            while (item := reader.gets()) is not _MORE:
                if type(item) is not PushNotification:
                    self._replied(item)
                elif item[0] == b"smessage":
                    ears.message(item[1], item[2])
                else:
                    self._pushed(item)
        except ProtocolError:
            self.abort()

    def _replied(self, reply: Reply) -> None:
        if isinstance(reply, exceptions.ResponseError):
            self._ears.refused(reply)
        if self._expected:
            expected = self._expected.popleft()
            (expected.answered if isinstance(expected, _Change) else expected)(reply)

    def _pushed(self, push: list[Any]) -> None:
        """A confirmation is the next expected's; pushes of other kinds concern nobody here."""
        kind = push[0]
        if kind not in (_Kind.SUBSCRIBE.value, _Kind.UNSUBSCRIBE.value):
            return
        channel = push[1]
        change = self._expected[0] if self._expected else None
        if isinstance(change, _Change) and change.kind.value == kind and channel in change.waiting:
            change.waiting.discard(channel)
            if not change.waiting:
                self._expected.popleft()
                change.answered(None)
        elif kind == _Kind.UNSUBSCRIBE.value and channel is not None:
            self._ears.unsubscribed(channel)

    def connection_lost(self, problem: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if self.gone.is_set():
            return
        self.gone.set()
        while self._expected:
            expected = self._expected.popleft()
            lost = LogUnavailable(f"the connection to Redis at {self._server} was lost")
            (expected.answered if isinstance(expected, _Change) else expected)(lost)
