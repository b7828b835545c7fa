"""Commands come in here, whatever the transport and whichever node the client is on.

They are carried out where the conversation's owner is: by this node's pool, or, a request away, by another's. A node
that is asked by another one and isn't the owner says so and asks nobody else, so that nothing goes in circles: who
asked finds out again whose it is. All commands are idempotent but a `cancel` that names no turn, so a request whose
answer got lost can be repeated, also at another node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

import msgspec
import structlog
from msgspec import UNSET, Struct, UnsetType, structs

from gateway.logs.feed import Feed
from gateway.logs.feeds import Elsewhere
from gateway.logs.journal import Journal
from gateway.logs.log import Key, LogUnavailable, Position
from gateway.logs.nodes import NodeGone, RequestFailed
from gateway.sessions.pool import SessionPool
from gateway.sessions.refusals import Stopping, log_unreadable
from gateway.sessions.session import Acknowledged, Outcome, new_id
from protocol.codes import ErrorCode, Refusal
from protocol.fold import TurnFold
from protocol.frames import ChatMessage

ROUTE_WITHIN_S = 12.0
"""How long a command looks for an owner that serves it: longer than it takes to find a node lost and to take over."""
REQUEST_TIMEOUT_S = 5.0
ERASE_TIMEOUT_S = 11.0
"""A deletion waits for readers and for the log."""
ASK_AGAIN_S = 0.25
HAND_ON_AT_ONCE = 16
HAND_ON_S = 5.0
"""How long a node that has drained waits until others have taken what it left."""

T = TypeVar("T")

log_lines = structlog.get_logger(__name__)


class Submit(Struct, tag="submit"):
    frame: ChatMessage


class Stop(Struct, tag="stop"):
    turn_id: str | None


class Answer(Struct, tag="answer"):
    call_id: str
    result: Any
    error: str | UnsetType = UNSET


class Erase(Struct, tag="erase"):
    pass


class TakeOver(Struct, tag="take_over"):
    """The conversation is nobody's, and has open turns."""


class Request(Struct, array_like=True):
    owner: str
    """Of the conversation: its tenant and subject."""
    conversation_id: str
    command: Submit | Stop | Answer | Erase | TakeOver


class Submitted(Struct, tag="submitted"):
    """As `Acknowledged`."""

    turn_id: str
    seq: int
    epoch: int
    duplicate: bool


class Stopped(Struct, tag="stopped"):
    outcome: Literal["stopped", "already_done", "not_found"]
    turn_id: str | None


class Done(Struct, tag="done"):
    pass


class Refused(Struct, tag="refused"):
    code: str
    message: str
    retryable: bool
    retry_after_s: float | None


class NotMine(Struct, tag="not_mine"):
    owner: str | None = None
    """The node to ask instead, if that is known."""


Reply = Submitted | Stopped | Done | Refused | NotMine
_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_reply: Callable[[bytes], Reply] = msgspec.msgpack.Decoder(Reply).decode


class Router:
    """All commands are safe to cancel: a decision that was made stands. They raise `Refusal`."""

    def __init__(self, pool: SessionPool, journal: Journal) -> None:
        self.journal = journal
        self._pool = pool
        self._nodes = journal.nodes

    @property
    def draining(self) -> bool:
        return self._pool.draining

    # ------------------------------------------------------------ commands

    async def submit(self, key: Key, frame: ChatMessage) -> tuple[Feed, Acknowledged]:
        """Appends a message. It is acknowledged when entry `seq` of the feed is committed."""

        async def here() -> tuple[Feed, Acknowledged]:
            session, done = await self._pool.submit(key, frame)
            return session.feed, done

        if frame.message_id is None and self.journal.feeds.shared:  # it may have to be asked twice
            frame = structs.replace(frame, message_id=new_id("m"))
        found = await self._routed(key, here, Submit(frame))
        if isinstance(found, Submitted):
            done = Acknowledged(*structs.astuple(found))
            return await self._feed_with(key, Position(done.seq, done.epoch)), done
        assert isinstance(found, tuple)
        return found

    async def _feed_with(self, key: Key, entry: Position) -> Feed:
        """This node's feed of a conversation of which another one has just said that it has this entry."""
        feed = await self.feed(key)
        try:
            if await feed.is_valid(entry):
                return feed
        except LogUnavailable:
            raise log_unreadable() from None
        text = "This conversation was deleted, or lost the message, as soon as it had it. Resend."
        raise Refusal(ErrorCode.OVERLOADED, text, retry_after_s=1)

    async def cancel(self, key: Key, turn_id: str | None) -> Outcome:
        """Ends a turn; told when it is in the log."""
        found = await self._routed(key, lambda: self._pool.cancel(key, turn_id), Stop(turn_id))
        return Outcome(found.outcome, found.turn_id, 0) if isinstance(found, Stopped) else _the(Outcome, found)

    async def answer(self, key: Key, call_id: str, result: Any, error: str | UnsetType) -> None:
        """A client's result for a call; told when it is in the log."""
        await self._routed(
            key, lambda: self._pool.answer(key, call_id, result, error), Answer(call_id, _or_none(result), error)
        )

    async def delete(self, key: Key) -> None:
        """Ends and erases a conversation; idempotent."""
        await self._routed(key, lambda: self._pool.delete(key), Erase(), timeout_s=ERASE_TIMEOUT_S)

    # ------------------------------------------------------------ reading

    async def feed(self, key: Key) -> Feed:
        """This node's feed of a conversation, whoever owns it, whether or not it exists."""
        try:
            return await self.journal.feeds.open(key)
        except LogUnavailable:
            raise log_unreadable() from None

    async def attach(self, key: Key) -> tuple[Feed, TurnFold | None]:
        """The feed of a conversation that exists, and the turn in progress."""
        feed = await self.feed(key)
        if feed.seq == 0:
            raise Refusal(ErrorCode.NOT_FOUND, "There is no such conversation.")
        if (session := self._pool.known(key)) is not None:
            return session.feed, session.fold.current()
        if not feed.open_turns:
            return feed, None
        try:
            return feed, (await feed.fold()).current()
        except LogUnavailable:
            raise log_unreadable() from None

    # ------------------------------------------------------------ where the owner is

    async def _routed(
        self,
        key: Key,
        here: Callable[[], Awaitable[T]],
        command: Submit | Stop | Answer | Erase,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> T | Reply:
        """What `here` returns if the conversation is ours, else the owner's reply."""
        loop = asyncio.get_running_loop()
        until = loop.time() + ROUTE_WITHIN_S
        reply: Reply
        said: str | None = None
        """Whose it is, by the last node that was asked."""
        while True:
            try:
                return await here()
            except Elsewhere as elsewhere:
                reply = await self._asked(elsewhere.node_id, key, command, timeout_s)
            except Stopping:  # whoever is still connected here needn't feel it
                if not (others := self._nodes.others()):
                    raise
                node_id = said if said in others else random.choice(others)
                reply = await self._asked(node_id, key, command, timeout_s)
            except LogUnavailable:  # what was appended for it never came into the log
                if not self.journal.feeds.shared:
                    raise
                reply = NotMine()
            if isinstance(reply, Refused):
                raise Refusal(
                    ErrorCode[reply.code],
                    reply.message,
                    retryable=reply.retryable,
                    retry_after_s=reply.retry_after_s,
                )
            if not isinstance(reply, NotMine):
                return reply
            said = reply.owner
            if loop.time() >= until:
                raise Refusal(
                    ErrorCode.OVERLOADED,
                    "The node that serves this conversation doesn't answer. Try again soon.",
                    retry_after_s=2,
                )
            await asyncio.sleep(ASK_AGAIN_S * random.uniform(0.5, 1.5))

    async def _asked(self, node_id: str, key: Key, command: Submit | Stop | Answer | Erase, timeout_s: float) -> Reply:
        """The reply of another node; `NotMine` when none is to be had and the command may be repeated."""
        payload = _encode(Request(key.owner, key.conversation_id, command))
        try:
            return _decode_reply(await self._nodes.request(node_id, payload, timeout_s))
        except NodeGone:
            return NotMine()
        except (TimeoutError, LogUnavailable):
            if isinstance(command, Stop) and command.turn_id is None:
                text = "The node that serves this conversation doesn't answer. Look whether the turn has stopped."
                raise Refusal(ErrorCode.OVERLOADED, text, retry_after_s=2) from None
            return NotMine()
        except RequestFailed:
            raise Refusal(ErrorCode.INTERNAL, "The gateway failed on this request. Please try again.") from None
        except ValueError:
            raise Refusal(ErrorCode.FRAME_TOO_LARGE, "This can't be handed on to the conversation's node.") from None

    # ------------------------------------------------------------ other nodes' requests

    async def serve(self, payload: bytes) -> bytes:
        """A request of another node, in and out as bytes."""
        request = _decode_request(payload)
        key = Key(request.owner, request.conversation_id)
        try:
            reply: Reply = await self._carried_out(key, request.command)
        except Elsewhere as elsewhere:
            reply = NotMine(elsewhere.node_id)
        except (LogUnavailable, Stopping):
            reply = NotMine()
        except Refusal as refusal:
            reply = Refused(refusal.code.name, refusal.message, refusal.retryable, refusal.retry_after_s)
        return _encode(reply)

    async def _carried_out(self, key: Key, command: Submit | Stop | Answer | Erase | TakeOver) -> Reply:
        if self.draining and self._pool.known(key) is None:
            return NotMine()
        match command:
            case Submit(frame=frame):
                session, done = await self._pool.submit(key, frame)
                await session.feed.when_committed(done.seq)
                return Submitted(*done)
            case Stop(turn_id=turn_id):
                outcome = await self._pool.cancel(key, turn_id)
                return Stopped(outcome.outcome, outcome.turn_id)
            case Answer(call_id=call_id, result=result, error=error):
                await self._pool.answer(key, call_id, UNSET if error is not UNSET else result, error)
            case Erase():
                await self._pool.delete(key)
            case TakeOver():
                await self._pool.existing(key)
        return Done()

    # ------------------------------------------------------------ the end

    async def drain(self, within_s: float) -> None:
        """As the pool's; other nodes are told of the turns that are theirs to go on with. What they can't be told in
        time they find when this node leaves."""
        gate, telling = asyncio.Semaphore(HAND_ON_AT_ONCE), set[asyncio.Task[None]]()

        def left(key: Key) -> None:
            task = asyncio.create_task(self._hand_on(key, gate), name="hand on")
            telling.add(task)
            task.add_done_callback(telling.discard)

        try:
            await self._pool.drain(within_s, left)
            if telling:
                await asyncio.wait(telling, timeout=HAND_ON_S)
        finally:
            if telling:
                for task in telling:
                    task.cancel()
                await asyncio.wait(telling)

    async def _hand_on(self, key: Key, gate: asyncio.Semaphore) -> None:
        payload = _encode(Request(key.owner, key.conversation_id, TakeOver()))
        async with gate:
            if others := self._nodes.others():
                log_lines.info("handing a turn over", conversation_id=key.conversation_id)
                with suppress(NodeGone, RequestFailed, TimeoutError, LogUnavailable):
                    await self._nodes.request(random.choice(others), payload, REQUEST_TIMEOUT_S)


def _the(kind: type[T], found: object) -> T:
    assert isinstance(found, kind)
    return found


def _or_none(result: Any) -> Any:
    return None if result is UNSET else result
