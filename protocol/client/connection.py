"""One connection that mends itself: it connects, reads, writes, and connects again.

One task owns it; a second one, its child, writes what was posted, in order. What waits to be written is at most one
frame for each caller that waits for an answer and two for each conversation. All decisions about a conversation are
its channel's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from protocol.client.channel import Channel
from protocol.client.connecting import Lost, closed, connect
from protocol.client.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    RequestError,
    Unauthorized,
    Unreachable,
)
from protocol.client.state import Backoff
from protocol.client.tokens import TokenSource, current
from protocol.codec import BadFrame, Codec
from protocol.frames import (
    AnyClientFrame,
    AnyServerFrame,
    Deleted,
    Error,
    Goaway,
    LoggedFrame,
    Snapshot,
    Subscribed,
    Unsubscribed,
    Welcome,
)


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection stands."""

    again: bool
    """It stood before, was lost, and what was being read goes on."""


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The connection was lost, or another attempt failed; the next one comes in `delay_s`."""

    delay_s: float
    attempt: int
    reason: str


Event: TypeAlias = Connected | Reconnecting | Welcome | Goaway | Error
"""What `on_event` hears. An `Error` here is one that no request is waiting for."""


@dataclass(slots=True)
class _Request:
    frame: AnyClientFrame
    answer: asyncio.Future[AnyServerFrame]
    repeatable: bool
    """It may be sent again on the next connection when the answer didn't come on this one."""


class Connection:
    """What a `Client` talks through. It isn't connected before `open`."""

    def __init__(
        self,
        url: str,
        codec: Codec,
        token: TokenSource,
        on_event: Callable[[Event], None] | None,
        connect_timeout_s: float,
        rand: Callable[[], float],
    ) -> None:
        self.url = url
        self.codec = codec
        self.limits: dict[str, int] = {}
        self._token = token
        self._on_event = on_event
        self._connect_timeout_s = connect_timeout_s
        self._backoff = Backoff(rand)
        self._channels: dict[str, Channel] = {}
        self._requests: dict[str, _Request] = {}
        self._retries: set[asyncio.TimerHandle] = set()
        self._outbox: deque[bytes] = deque()
        self._posted = asyncio.Event()
        self._online = False
        self._refs = 0
        self._asked_ms: int | None = None
        self._unauthorized = 0
        self._failure: Exception | None = ClientClosed("this client isn't open: use `async with Client(url)`")
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        ws = await self._connect()
        self._failure = None
        self._task = asyncio.create_task(self._run(ws), name="convobase-client")

    async def close(self) -> None:
        self._stop(self._failure or ClientClosed("this client was closed"), clean=True)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    # ------------------------------------------------------------------------------------------ asking

    async def ask(self, frame: AnyClientFrame, *, repeatable: bool) -> AnyServerFrame:
        """The direct answer. Raises `RequestError`, `ConnectionLost` (if not `repeatable`), or why it gave up."""
        self.check(frame)
        request = _Request(frame, asyncio.get_running_loop().create_future(), repeatable)
        ref = self._post(frame)
        self._requests[ref] = request
        try:
            return await request.answer
        finally:
            self._requests.pop(ref, None)

    def check(self, frame: AnyClientFrame | None = None) -> None:
        """Raises what makes it useless to ask."""
        if self._failure is not None:
            raise self._failure
        limit_bytes = self.limits.get("max_frame_bytes")
        # Over the limit the gateway would have to close the connection, under all the other conversations too.
        if frame is not None and limit_bytes is not None and len(self.codec.encode(frame)) + 32 > limit_bytes:
            raise RequestError("FRAME_TOO_LARGE", f"a message may have at most {limit_bytes} bytes", False)

    def _post(self, frame: AnyClientFrame, ref: str | None = None) -> str:
        """Without a connection the frame isn't kept: who needs it posts it again on the next one."""
        if ref is None:
            self._refs += 1
            ref = str(self._refs)
        if self._online:
            self._outbox.append(self.codec.encode(msgspec.structs.replace(frame, ref=ref)))
            self._posted.set()
        return ref

    def channel(self, conversation_id: str) -> Channel:
        channel = self._channels.get(conversation_id)
        if channel is None:
            channel = self._channels[conversation_id] = Channel(conversation_id, self._post)
            channel.online = self._online
        return channel

    def find(self, conversation_id: str) -> Channel | None:
        return self._channels.get(conversation_id)

    def sweep(self, channel: Channel) -> None:
        if channel.over and self._channels.get(channel.conversation_id) is channel:
            del self._channels[channel.conversation_id]

    # ------------------------------------------------------------------------------------------ its life

    async def _run(self, ws: ClientConnection) -> None:
        again = False
        try:
            while True:
                lost = await self._serve(ws, again)
                ws, again = await self._reconnect(lost), True
        except asyncio.CancelledError:
            raise
        except Exception as failure:  # noqa: BLE001  # whoever waits has to hear of it, whatever it is
            self._stop(failure, clean=False)

    async def _serve(self, ws: ClientConnection, again: bool) -> Lost:
        """Reads one connection to its end."""
        writer = asyncio.create_task(self._write(ws), name="convobase-client-writer")
        try:
            self._online = True
            self._backoff.connected(asyncio.get_running_loop().time())
            for channel in list(self._channels.values()):
                self.sweep(channel)
                channel.connected()
            for ref, request in self._requests.items():
                self._post(request.frame, ref)
            self._emit(Connected(again))
            while True:
                self._receive(await ws.recv(decode=False))
        except ConnectionClosed as end:
            return closed(end, self._asked_ms)
        except BadFrame as error:
            await ws.close(1007, "unreadable frame")
            raise ConnectionFailed(1007, error.message) from error
        finally:
            self._cut()
            writer.cancel()
            await asyncio.wait([writer])
            await ws.close()

    async def _write(self, ws: ClientConnection) -> None:
        try:
            while True:
                await self._posted.wait()
                self._posted.clear()
                while self._outbox:
                    await ws.send(self._outbox.popleft(), text=not self.codec.binary)
        except ConnectionClosed:
            return  # the reading side sees it too, and mends it

    def _cut(self) -> None:
        self._online = False
        self._outbox.clear()
        self._posted.clear()
        for handle in self._retries:
            handle.cancel()
        self._retries.clear()
        for channel in list(self._channels.values()):
            channel.disconnected()
            self.sweep(channel)
        for request in self._requests.values():
            if not request.repeatable and not request.answer.done():
                request.answer.set_exception(ConnectionLost("the connection broke before the answer came"))

    async def _reconnect(self, lost: Lost) -> ClientConnection:
        """Tries until it stands. Raises what another attempt can't mend."""
        self._asked_ms = None
        loop = asyncio.get_running_loop()
        while True:
            if lost.unauthorized:
                self._unauthorized += 1
                # A fresh token that is refused as well won't get better by asking for a third one.
                if not callable(self._token) or self._unauthorized > 1:
                    raise Unauthorized(lost.reason)
            if lost.fatal:
                raise ConnectionFailed(lost.code, lost.reason)
            delay_s = self._backoff.delay_s(loop.time(), asked_ms=lost.asked_ms, crowded=lost.crowded)
            self._emit(Reconnecting(delay_s, self._backoff.attempt, lost.reason))
            await asyncio.sleep(delay_s)
            try:
                return await self._connect()
            except Unauthorized as error:
                lost = Lost(4401, error.message)
            except Unreachable as error:
                lost = Lost(1006, str(error), asked_ms=error.asked_ms)

    async def _connect(self) -> ClientConnection:
        return await connect(self.url, self.codec, await current(self._token), self._connect_timeout_s)

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _stop(self, failure: Exception, *, clean: bool) -> None:
        """No more frames come, for anybody: iterators end (`clean`) or raise, and requests raise."""
        self._failure = failure
        self._online = False
        for channel in self._channels.values():
            channel.online = False
            for turn in channel.sent.values():
                turn.end(None if clean and turn.acknowledged.is_set() else failure)
            if (subscription := channel.subscription) is not None:
                subscription.end(None if clean and subscription.ready.is_set() else failure)
        self._channels.clear()
        for request in self._requests.values():
            if not request.answer.done():
                request.answer.set_exception(failure)

    # ------------------------------------------------------------------------------------------ frames

    def _receive(self, data: bytes) -> None:
        frame = self.codec.decode_server(data)
        if isinstance(frame, LoggedFrame) or (isinstance(frame, Error) and frame.turn_id and frame.seq):
            channel = self._channels.get(frame.conversation_id)
            if channel is not None and channel.entry(frame, len(data)):
                self._unauthorized = 0
                self._backoff.progress()
        elif isinstance(frame, Error):
            channel = self._refused(frame)
        elif isinstance(frame, Snapshot | Subscribed | Unsubscribed | Deleted):
            channel = self._channels.get(frame.conversation_id)
            if channel is not None:
                _tell(channel, frame, len(data))
        else:
            self._other(frame)
            return
        if channel is not None:
            self.sweep(channel)

    def _refused(self, frame: Error) -> Channel | None:
        ref, body = frame.ref or "", frame.error
        error = RequestError(body.code, body.message, body.retryable)
        request = self._requests.get(ref)
        channel = next((each for each in self._channels.values() if each.asked(ref)), None)
        if request is not None:
            if not request.answer.done():
                request.answer.set_exception(error)
        elif channel is None:
            self._emit(frame)
        elif channel.refused(ref, error):
            self._retry_later(channel)
        return channel

    def _retry_later(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()

        def retry() -> None:
            self._retries.discard(handle)
            channel.retry()

        handle = loop.call_later(self._backoff.delay_s(loop.time()), retry)
        self._retries.add(handle)

    def _other(self, frame: AnyServerFrame | None) -> None:
        match frame:
            case None:
                return  # of a later version: ignored
            case Welcome():
                self.limits = frame.limits
                self._emit(frame)
            case Goaway():
                self._asked_ms = frame.reconnect_after_ms
                self._emit(frame)
            case _:
                request = self._requests.get(getattr(frame, "ref", None) or "")
                if request is not None and not request.answer.done():
                    request.answer.set_result(frame)


def _tell(channel: Channel, frame: Snapshot | Subscribed | Unsubscribed | Deleted, size_bytes: int) -> None:
    match frame:
        case Snapshot():
            channel.snapshot(frame, size_bytes)
        case Subscribed():
            channel.subscribed(frame)
        case Unsubscribed():
            channel.unsubscribed(frame)
        case Deleted():
            channel.deleted(frame, size_bytes)
