"""One WebSocket connection of the run and the conversations on it: it connects, comes back after every cut, and goes
on where it was (SPEC.md sections 3.3, 5 and 9)."""

from __future__ import annotations

import asyncio
import time

from benchmarks.load import tally as count
from benchmarks.load.conversation import Conversation, Outcome
from benchmarks.load.scene import NOT_ANSWERED, Scene, State
from benchmarks.load.slow import SlowReader
from benchmarks.load.tally import plus
from benchmarks.load.unreachable import Unwelcome, refusal_reason, retry_after_ms, unreachable_reason
from benchmarks.load.websocket import Answer, WebSocket
from protocol.client.state import Backoff
from protocol.codec import BadFrame
from protocol.codes import CloseCode
from protocol.frames import (
    AnyServerFrame,
    Auth,
    ChatMessage,
    ClientFunctionResult,
    Deleted,
    Done,
    Error,
    Goaway,
    LoggedFrame,
    Snapshot,
    Subscribe,
    Subscribed,
    Token,
    Unsubscribe,
    Welcome,
)

SILENCE_S = 90.0
"""A connection that hasn't said anything for so long, not even a ping, is taken for dead."""


class SocketClient:
    """Number `number` of its process. `online` from its `welcome` to its end."""

    __slots__ = (
        "_asked_ms", "_backoff", "_connecting", "_conversations", "_decode", "_heard_at", "_scene", "_slow", "_socket",
        "_timer", "_welcomed", "number", "online", "state",
    )  # fmt: skip

    def __init__(self, scene: Scene, number: int, *, slow: bool) -> None:
        self.online = False
        self.state = State.WAITING
        self._scene = scene
        self.number = number
        self._slow = SlowReader(scene.plan) if slow else None
        self._conversations: dict[str, Conversation] = {}
        self._backoff = Backoff(scene.chance.random)
        self._socket: WebSocket | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._welcomed: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked_ms: int | None = None
        """When the gateway wants us back."""
        self._heard_at = 0.0
        self._decode = scene.target.codec.decode_server

    # ------------------------------------------------------------ its life

    def start(self) -> None:
        self.state = State.CONNECTING
        self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="connect")

    async def _connect(self) -> None:
        scene, began = self._scene, time.monotonic()
        request, key = scene.target.upgrade(self.number)
        self._welcomed = asyncio.get_running_loop().create_future()
        socket = self._socket = WebSocket(self, request, key, binary=scene.target.codec.binary)
        try:
            async with asyncio.timeout(scene.plan.connect_within_s):
                await scene.target.connect(lambda: socket, small_buffer=self._slow is not None)
                await self._welcomed
        except (OSError, TimeoutError) as problem:
            plus(scene.tally.counts.unreachable, unreachable_reason(problem))
            self._socket = None
            socket.abandon()
            self._asked_ms = problem.asked_ms if isinstance(problem, Unwelcome) else None
            self._come_back(crowded=isinstance(problem, Unwelcome) and problem.crowded)
            return
        except asyncio.CancelledError:
            socket.abandon()
            raise
        if self._slow is None:
            scene.tally.watches.connect.add(time.monotonic() - began)

    def _come_back(self, *, crowded: bool = False, after_s: float | None = None) -> None:
        if self.state is State.STOPPED:
            return
        self.state = State.WAITING
        delay_s = self._backoff.delay_s(time.monotonic(), asked_ms=self._asked_ms, crowded=crowded)
        self._asked_ms = None
        self._timer = asyncio.get_running_loop().call_later(delay_s if after_s is None else after_s, self.start)

    def cut(self, after_s: float) -> None:
        """A storm has come: the connection breaks, and is made again after so many seconds."""
        if self.online and self._socket is not None:
            self._scene.tally.counts.cuts += 1
            self._socket.abandon()
            self._socket = None
            self._lost()
            self._come_back(after_s=after_s)

    def stop(self) -> None:
        self.state, self.online = State.STOPPED, False
        if self._connecting is not None:
            self._connecting.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._slow is not None:
            self._slow.lost()
        if self._socket is not None:
            self._socket.close()

    def free(self) -> None:
        """The end is near: no slow reading any more."""
        if self._slow is not None:
            self._slow.free()

    @property
    def stopped_reading(self) -> bool:
        return self._slow is not None and self._slow.stopped

    def check(self, now: float) -> None:
        """Cuts a connection that nothing comes from."""
        if self.stopped_reading:
            self._heard_at = now
        elif self.online and now - self._heard_at > SILENCE_S:
            plus(self._scene.tally.counts.closes, "silent")
            self.cut(0.0)

    # ------------------------------------------------------------ its conversations

    def adopt(self, conversation: Conversation) -> None:
        self._conversations[conversation.id] = conversation

    def ask(self, conversation: Conversation) -> None:
        self._send(self._message(conversation))

    def leave(self, conversation: Conversation) -> None:
        del self._conversations[conversation.id]
        if self.online and conversation.turns:
            self._send(Unsubscribe(conversation_id=conversation.id))

    def _message(self, conversation: Conversation) -> ChatMessage:
        asked = conversation.asked
        assert asked is not None
        return ChatMessage(
            message=asked.text,
            conversation_id=conversation.id,
            message_id=asked.message_id,
            ref=f"m {conversation.id}",
            **self._scene.plan.fields,
        )

    def _send(self, *frames: Auth | ChatMessage | ClientFunctionResult | Subscribe | Unsubscribe) -> None:
        if self._socket is not None:
            self._socket.send([self._scene.target.codec.encode(frame) for frame in frames])

    # ------------------------------------------------------------ what the connection says

    def opened(self) -> None:
        if self._slow is not None and self._socket is not None and self._socket.transport is not None:
            self._slow.attach(self._socket.transport)
        token = self._scene.target.token(self.number)
        if token and self._scene.plan.token_frame:
            self._send(Auth(token=token))

    def read(self, size_bytes: int, now: float) -> None:
        self._scene.tally.counts.bytes += size_bytes
        self._heard_at = now
        if self._slow is not None:
            self._slow.took(size_bytes)

    def received(self, payload: bytes, now: float) -> None:
        try:
            frame = self._decode(payload)
        except BadFrame as problem:
            self._scene.tally.counts.violation(count.UNREADABLE, problem.message)
            return
        if type(frame) is Token:
            conversation = self._conversations.get(frame.conversation_id)
            if conversation is not None:
                conversation.token(frame, now)
                if self._slow is not None:
                    self._slow.token()
        elif frame is not None:
            self._take(frame, now)

    def _take(self, frame: AnyServerFrame, now: float) -> None:
        match frame:
            case Welcome():
                self._welcome(now)
            case Goaway():
                self._scene.tally.counts.goaways += 1
                self._asked_ms = frame.reconnect_after_ms
            case Error(turn_id=""):
                self._refused(frame)
            case LoggedFrame() | Error() | Snapshot() | Subscribed() | Deleted():
                conversation = self._conversations.get(frame.conversation_id)
                if conversation is not None:
                    self._told(conversation, frame, now)
            case _:
                pass

    def _told(self, conversation: Conversation, frame: AnyServerFrame, now: float) -> None:
        match frame:
            case Subscribed():
                conversation.subscribed(frame, now)
            case Snapshot():
                self._follow(conversation, conversation.snapshot(frame, now))
            case Deleted():
                self._follow(conversation, conversation.gone())
            case LoggedFrame() | Error():
                self._follow(conversation, conversation.entry(frame, now))
                if self._slow is not None and isinstance(frame, (Done, Error)):
                    self._slow.answered()
            case _:
                pass

    def _follow(self, conversation: Conversation, outcome: Outcome | None) -> None:
        match outcome:
            case Outcome.FREE | Outcome.REFUSED:
                self._backoff.progress()
                self._scene.dispatcher.free(conversation, refused=outcome is Outcome.REFUSED)
            case Outcome.LOST:
                self._send(self._message(conversation))
            case Outcome.CALL:
                self._send(*self._results(conversation))
            case None:
                pass

    @staticmethod
    def _results(conversation: Conversation) -> list[ClientFunctionResult]:
        """The answers to all calls that wait; the same one again has no effect."""
        return [
            ClientFunctionResult(
                conversation_id=conversation.id, call_id=call_id, error=NOT_ANSWERED, ref=f"f {conversation.id}"
            )
            for call_id in (conversation.asked.calls if conversation.asked else ())
        ]

    def _refused(self, frame: Error) -> None:
        kind, _, name = (frame.ref or "").partition(" ")
        conversation = self._conversations.get(name)
        if kind == "s" and conversation is not None:
            plus(self._scene.tally.counts.errors, frame.error.code)
            conversation.not_subscribed()
            if frame.error.retryable:
                asyncio.get_running_loop().call_later(1.0, self._subscribe_again, name)
        elif kind == "f" and conversation is not None:
            plus(self._scene.tally.counts.errors, frame.error.code)
            if frame.error.retryable:
                asyncio.get_running_loop().call_later(1.0, self._answer_again, name)
        elif conversation is None or conversation.asked is None:
            plus(self._scene.tally.counts.errors, frame.error.code)
        else:
            self._follow(conversation, conversation.refused(frame.error.code))

    # ------------------------------------------------------------ coming and going

    def _welcome(self, now: float) -> None:
        if self.online:
            return
        self.online, self.state, self._heard_at = True, State.OPEN, now
        self._backoff.connected(now)
        self._scene.tally.counts.connects += 1
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_result(None)
        frames: list[ChatMessage | ClientFunctionResult | Subscribe] = []
        for conversation in self._conversations.values():
            frames += self._going_on(conversation)
        if frames:
            self._send(*frames)
        self._scene.dispatcher.back(self)

    def _going_on(self, conversation: Conversation) -> list[ChatMessage | ClientFunctionResult | Subscribe]:
        """What takes a conversation up again on a new connection."""
        frames: list[ChatMessage | ClientFunctionResult | Subscribe] = []
        if conversation.seq:
            self._scene.tally.counts.resumes += 1
            frames.append(self._subscription(conversation))
        if conversation.asked is not None and not conversation.asked.acknowledged:
            self._scene.tally.counts.resent += 1
            frames.append(self._message(conversation))
        return frames + self._results(conversation)

    @staticmethod
    def _subscription(conversation: Conversation) -> Subscribe:
        conversation.opening = True
        return Subscribe(
            conversation_id=conversation.id,
            after=conversation.seq,
            epoch=conversation.epoch,
            ref=f"s {conversation.id}",
        )

    def _answer_again(self, name: str) -> None:
        conversation = self._conversations.get(name)
        if conversation is not None and self.online:
            self._send(*self._results(conversation))

    def _subscribe_again(self, name: str) -> None:
        conversation = self._conversations.get(name)
        if conversation is None or not self.online or not conversation.nowhere:
            return
        if conversation.asked is not None and not conversation.asked.acknowledged:
            return  # the message on its way brings a subscription
        conversation.nowhere = False
        self._send(self._subscription(conversation))

    def closed(self, code: int, reason: str, refusal: Answer | None) -> None:
        if self.state is State.STOPPED:
            return
        crowded = code == CloseCode.OVER_CONNECTION_LIMIT
        if self._welcomed is not None and not self._welcomed.done():
            why = f"closed with {code}" if refusal is None else refusal_reason(refusal)
            asked_ms = None if refusal is None else retry_after_ms(refusal)
            self._welcomed.set_exception(Unwelcome(why, asked_ms=asked_ms, crowded=crowded))
            return
        plus(self._scene.tally.counts.closes, str(code))
        self._socket = None
        self._lost()
        self._come_back(crowded=crowded)

    def _lost(self) -> None:
        self.online = False
        if self._slow is not None:
            self._slow.lost()
        now = time.monotonic()
        for conversation in self._conversations.values():
            if conversation.seq or conversation.asked is not None:
                conversation.cut(now)
