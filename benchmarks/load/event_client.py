"""One conversation over server-sent events: each message is a `POST`, and after a cut its answer goes on with a `GET`
from the last cursor (SPEC.md section 3.4)."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import aiohttp

from benchmarks.load import tally as count
from benchmarks.load.conversation import Conversation, Outcome
from benchmarks.load.http_stream import HttpStream
from benchmarks.load.scene import Scene, State
from benchmarks.load.slow import SlowReader
from benchmarks.load.tally import plus
from benchmarks.load.unreachable import error_code, retry_after_ms, unreachable_reason
from benchmarks.load.websocket import NO_CLOSE_FRAME, Answer
from protocol.client.state import Backoff
from protocol.codec import JSON, BadFrame, format_cursor
from protocol.frames import (
    AnyServerFrame,
    ChatMessage,
    Deleted,
    Done,
    Error,
    Goaway,
    LoggedFrame,
    Snapshot,
    Token,
)

ANSWER_AGAIN_S = 1.0
_PATH = "/api/chat/stream"


class EventClient:
    """Number `number` of its process. It has a connection while it is answered, and keeps it for the next message."""

    def __init__(self, scene: Scene, number: int, *, slow: bool) -> None:
        self.online = False
        self.state = State.IDLE
        self._scene = scene
        self.number = number
        self._slow = SlowReader(scene.plan) if slow else None
        self._conversation: Conversation | None = None
        self._backoff = Backoff(scene.chance.random)
        self._stream: HttpStream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._calls: dict[str, asyncio.Task[None]] = {}
        """By `call_id`: what answers it."""
        self._timer: asyncio.TimerHandle | None = None
        self._attaching = False
        """The request is a `GET`."""
        self._first = True
        """No event of this answer has come yet."""
        self._cursor = b""
        """The `id` of the last event."""
        self._over: Outcome | None = None
        """How the turn has ended, until the HTTP answer has too."""

    # ------------------------------------------------------------ its life

    def start(self) -> None:
        """There is nothing to connect before somebody speaks."""
        self.online = True
        self._scene.dispatcher.back(self)

    def cut(self, after_s: float) -> None:
        if self.state is State.OPEN and self._stream is not None:
            self._scene.tally.counts.cuts += 1
            self._stream.abandon()
            self._lost()
            self._go_on_in(after_s)

    def stop(self) -> None:
        self.state, self.online = State.STOPPED, False
        for task in (self._connecting, *self._calls.values()):
            if task is not None:
                task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._slow is not None:
            self._slow.lost()
        if self._stream is not None:
            self._stream.abandon()

    def free(self) -> None:
        if self._slow is not None:
            self._slow.free()

    @property
    def stopped_reading(self) -> bool:
        return self._slow is not None and self._slow.stopped

    def check(self, now: float) -> None:
        """An answer that doesn't go on is ended by the dispatcher."""

    # ------------------------------------------------------------ its conversation

    def adopt(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def leave(self, conversation: Conversation) -> None:
        self._conversation = None
        if self._stream is not None and self._stream.busy:
            self._stream.abandon()
            self._stream = None
        if self.state is not State.STOPPED:
            self.state = State.IDLE

    def ask(self, conversation: Conversation) -> None:
        self._request()

    def _request(self) -> None:
        """Asks for what is due: the answer to a message, or the rest of one."""
        self._timer = None
        if self._conversation is None or self._conversation.asked is None:
            return
        if self._stream is not None and self._stream.usable:
            self._send(self._stream, self._conversation)
            return
        self.state = State.CONNECTING
        self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="connect")

    async def _connect(self) -> None:
        scene, began = self._scene, time.monotonic()
        stream = HttpStream(self)
        try:
            async with asyncio.timeout(scene.plan.connect_within_s):
                await scene.target.connect(lambda: stream, small_buffer=self._slow is not None)
        except (OSError, TimeoutError) as problem:
            plus(scene.tally.counts.unreachable, unreachable_reason(problem))
            stream.abandon()
            self._go_on_in(self._backoff.delay_s(time.monotonic()))
            return
        except asyncio.CancelledError:
            stream.abandon()
            raise
        scene.tally.counts.connects += 1
        if self._slow is None:
            scene.tally.watches.connect.add(time.monotonic() - began)
        elif stream.transport is not None:
            self._slow.attach(stream.transport)
        self._stream = stream
        if self._conversation is None or self._conversation.asked is None:
            self.state = State.IDLE
        else:
            self._send(stream, self._conversation)

    def _send(self, stream: HttpStream, conversation: Conversation) -> None:
        asked, target = conversation.asked, self._scene.target
        assert asked is not None
        self.state, self._first = State.OPEN, True
        self._attaching = asked.acknowledged
        if self._attaching:
            self._check_cursor(conversation)
            self._scene.tally.counts.resumes += 1
            stream.request(target.attach(self.number, conversation.id, conversation.seq, conversation.epoch))
            return
        message = ChatMessage(
            message=asked.text,
            conversation_id=conversation.id,
            message_id=asked.message_id,
            **self._scene.plan.fields,
        )
        stream.request(target.post(self.number, _PATH, JSON.encode(message)))

    def _check_cursor(self, conversation: Conversation) -> None:
        told = format_cursor(conversation.seq, conversation.epoch)
        if self._cursor and self._cursor.decode("latin-1") != told:
            words = f"conversation {conversation.id}: entry {told} came with the id {self._cursor!r}"
            self._scene.tally.counts.violation(count.ORDER, words)

    def _go_on_in(self, seconds: float) -> None:
        """Tries again, with a new connection."""
        if self.state is State.STOPPED:
            return
        self.state = State.WAITING
        conversation = self._conversation
        if conversation is not None and conversation.asked is not None and not conversation.asked.acknowledged:
            self._scene.tally.counts.resent += 1
        self._timer = asyncio.get_running_loop().call_later(seconds, self._request)

    def _lost(self) -> None:
        self._stream = None
        if self._slow is not None:
            self._slow.lost()
        if self._conversation is not None:
            self._conversation.cut(time.monotonic())

    # ------------------------------------------------------------ what the connection says

    def read(self, size_bytes: int, now: float) -> None:
        self._scene.tally.counts.bytes += size_bytes
        if self._slow is not None:
            self._slow.took(size_bytes)

    def event(self, cursor: bytes, data: bytes, now: float) -> None:
        conversation = self._conversation
        if conversation is None:
            return
        try:
            frame = JSON.decode_server(data)
        except BadFrame as problem:
            self._scene.tally.counts.violation(count.UNREADABLE, problem.message)
            return
        if cursor:
            self._cursor = cursor
        if type(frame) is Token:
            conversation.token(frame, now)
            if self._slow is not None:
                self._slow.token()
        elif frame is not None:
            self._told(conversation, frame, now)
        if self._first:
            self._first = False
            conversation.attached(now)

    def _told(self, conversation: Conversation, frame: AnyServerFrame, now: float) -> None:
        match frame:
            case Goaway():
                self._scene.tally.counts.goaways += 1
            case Snapshot():
                self._follow(conversation, conversation.snapshot(frame, now))
            case Deleted():
                self._follow(conversation, conversation.gone())
            case Error(turn_id=""):
                self._follow(conversation, conversation.refused(frame.error.code))
            case LoggedFrame() | Error():
                self._follow(conversation, conversation.entry(frame, now))
                if self._slow is not None and isinstance(frame, (Done, Error)):
                    self._slow.answered()
            case _:
                pass

    def _answer(self, conversation: Conversation) -> None:
        for call_id in conversation.asked.calls if conversation.asked else ():
            if call_id not in self._calls:
                task = asyncio.get_running_loop().create_task(self._answer_call(conversation, call_id), name="answer")
                self._calls[call_id] = task
                task.add_done_callback(partial(self._answered, call_id))

    def _answered(self, call_id: str, task: asyncio.Task[None]) -> None:
        del self._calls[call_id]

    async def _answer_call(self, conversation: Conversation, call_id: str) -> None:
        """Until it doesn't wait any more; the same answer again has no effect."""
        while conversation.asked is not None and call_id in conversation.asked.calls:
            try:
                await self._scene.rest.answer_call(self.number, conversation.id, call_id)
            except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                plus(self._scene.tally.counts.unreachable, unreachable_reason(problem))
            await asyncio.sleep(ANSWER_AGAIN_S)

    def _follow(self, conversation: Conversation, outcome: Outcome | None) -> None:
        match outcome:
            case Outcome.FREE | Outcome.REFUSED:
                self._backoff.progress()
                self._over = outcome  # the HTTP answer isn't: its last chunk is to come
            case Outcome.LOST:
                if self._stream is not None:
                    self._stream.abandon()
                self._lost()
                self._go_on_in(0.0)
            case Outcome.CALL:
                self._answer(conversation)
            case None:
                pass

    # ------------------------------------------------------------ the ends of answers and connections

    def answered(self, status: int, headers: dict[str, str], body: bytes) -> None:
        conversation = self._conversation
        if self._rest_of_turn() or conversation is None or conversation.asked is None:
            return
        if status == 200:
            conversation.cut(time.monotonic())  # the node drains
            self._go_on_in(self._backoff.delay_s(time.monotonic()))
        elif not self._attaching:
            self._over = conversation.refused(error_code(body) or f"HTTP {status}")
            self._rest_of_turn()
        elif status == 204:
            words = f"conversation {conversation.id}: no turn is open, but the end of ours never came"
            self._scene.tally.counts.violation(count.LOST_END, words)
            self._scene.dispatcher.lose(conversation)
        elif status == 404:
            conversation.vanished()
            self._go_on_in(0.0)
        else:
            plus(self._scene.tally.counts.unreachable, f"HTTP {status} {error_code(body)}".rstrip())
            asked_ms = retry_after_ms(Answer(status, headers, body))
            self._go_on_in(self._backoff.delay_s(time.monotonic(), asked_ms=asked_ms))

    def _rest_of_turn(self) -> bool:
        """Frees the conversation when its turn is over."""
        over, self._over = self._over, None
        if over is None or self._conversation is None:
            return False
        self.state = State.IDLE
        self._scene.dispatcher.free(self._conversation, refused=over is Outcome.REFUSED)
        return True

    def closed(self, reason: str) -> None:
        stream, self._stream = self._stream, None
        if self.state is State.STOPPED or stream is None or self._rest_of_turn():
            return
        if stream.busy:
            plus(self._scene.tally.counts.closes, str(NO_CLOSE_FRAME))
            self._lost()
            self._go_on_in(self._backoff.delay_s(time.monotonic()))
