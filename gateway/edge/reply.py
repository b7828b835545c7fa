"""`POST /api/chat`: a cursor that waits for the end of its turn, and answers with the whole of it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from starlette.types import Receive

from gateway.edge.reader import Reader
from gateway.edge.sse import watch_disconnect
from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.log import ANY_EPOCH, Position
from gateway.logs.slices import Slice
from protocol.codes import ErrorCode, Refusal
from protocol.fold import TurnFold, call_as_json
from protocol.frames import Done, Error, Message, Snapshot, Usage

Status = Literal["completed", "cancelled", "function_call"]


GIVEN_AWAY = "This node gave the conversation away before the answer was whole. Send it again under its message_id."


class Gone(Exception):
    """The client hung up: nobody waits for the answer any more."""


async def reply_to(feeds: Feeds, feed: Feed, seq: int, receive: Receive, heartbeat_s: float) -> dict[str, Any]:
    """Waits until the turn whose `message` is entry `seq` has ended, or waits for the client's function results.

    Returns the body of the answer. Raises `Refusal` with the error of a failed turn, and `Gone`. Safe to cancel:
    the turn goes on.
    """
    turn: TurnFold | None = None

    def pass_on(made: Slice) -> bool:
        if turn is None:
            return False
        _apply(turn, made)
        return True

    with Reader(feeds, feed, Position(seq - 1, ANY_EPOCH), heartbeat_s, pass_on) as reader:
        watch = asyncio.create_task(watch_disconnect(receive, reader), name="chat disconnect")
        try:
            async for made in reader.slices():
                if isinstance(made, Snapshot):
                    raise Refusal(ErrorCode.OVERLOADED, GIVEN_AWAY, retry_after_s=1)
                turn = _apply(turn, made)
                if turn is not None and (status := _status(turn, level=not made.frames)) is not None:
                    return _answer(feed, turn, status)
        finally:
            watch.cancel()
            await asyncio.wait([watch])
    feed = reader.cursor.feed
    if feed.deleted:
        raise Refusal(ErrorCode.NOT_FOUND, "The conversation was deleted before the answer was complete.")
    if feed.handed_over:
        raise Refusal(ErrorCode.OVERLOADED, GIVEN_AWAY, retry_after_s=1)
    raise Gone


def _apply(turn: TurnFold | None, made: Slice) -> TurnFold | None:
    for frame in made.frames:
        if turn is None and isinstance(frame, Message):
            turn = TurnFold(frame)
        elif turn is not None and frame.turn_id == turn.turn_id:
            turn.apply(frame)
    return turn


def _status(turn: TurnFold, *, level: bool) -> Status | None:
    """None: there is more to wait for."""
    match turn.end:
        case Error(error=body):
            raise Refusal(ErrorCode[body.code], body.message, retryable=body.retryable)
        case Done(finish_reason="cancelled"):
            return "cancelled"
        case Done():
            return "completed"
        case None:
            waits = level and any(call.runs != "gateway" for call in turn.open_calls)
            return "function_call" if waits else None


def _answer(feed: Feed, turn: TurnFold, status: Status) -> dict[str, Any]:
    usage: Usage | None = turn.end.usage if isinstance(turn.end, Done) else None
    return {
        "reply": turn.content,
        "conversation_id": feed.key.conversation_id,
        "turn_id": turn.turn_id,
        "status": status,
        "function_calls": [call_as_json(call) for call in turn.calls.values()],
        "usage": usage,
    }
