"""Direct answers and refusals, the same for every transport."""

from __future__ import annotations

from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.log import LogUnavailable, Position
from gateway.sessions.pool import log_unreadable
from protocol.codes import ErrorCode, Refusal
from protocol.frames import Error, ErrorBody, Message, Snapshot


def refused(refusal: Refusal, ref: str | None = None, conversation_id: str | None = None) -> Error:
    """The `error` frame of a refused frame: it has no `turn_id`, and the connection stays open."""
    return Error(error=error_body(refusal), ref=ref, conversation_id=conversation_id or "")


def error_body(refusal: Refusal) -> ErrorBody:
    return ErrorBody(refusal.code.name, refusal.message, refusal.retryable)


async def starting_at(feed: Feed, cursor: Position) -> tuple[Position, Snapshot | None]:
    """Where a reader with `cursor` goes on: there, or, if the log doesn't have that entry, behind a snapshot.
    Raises `Refusal` (`OVERLOADED`)."""
    try:
        if await feed.is_valid(cursor):
            return cursor, None
        snapshot = await feed.snapshot()
    except LogUnavailable:
        raise log_unreadable() from None
    return Position(snapshot.seq, snapshot.epoch), snapshot


async def moved(feeds: Feeds, old: Feed, cursor: Position) -> tuple[Feed, Position, Snapshot | None]:
    """Where a reader goes on whose feed was given up: another node owns the conversation now, or the log lost what the
    feed had. Raises `Refusal` (`OVERLOADED`): try again."""
    try:
        feed = await feeds.open(old.key)
    except LogUnavailable:
        raise log_unreadable() from None
    return feed, *await starting_at(feed, cursor)


async def message_entry(feed: Feed, seq: int) -> Message:
    """The `message` at entry `seq`, which is in the log. Raises `Refusal` (`OVERLOADED`)."""
    made = feed.slice_after(seq - 1)
    try:
        frames = made.frames if made is not None and made.frames else (await feed.read_after(seq - 1)).frames
    except LogUnavailable:
        raise log_unreadable() from None
    first = frames[0] if frames else None
    if not isinstance(first, Message) or first.seq != seq:
        raise Refusal(ErrorCode.NOT_FOUND, "This conversation was deleted.")
    return first
