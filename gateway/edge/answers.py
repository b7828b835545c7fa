"""Direct answers and refusals, the same for every transport."""

from __future__ import annotations

import asyncio

from gateway.logs.cursor import Cursor
from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.log import LogUnavailable, Position
from gateway.sessions.refusals import log_unreadable
from protocol.codes import ErrorCode, Refusal
from protocol.frames import Error, ErrorBody, Message, Snapshot


def refused(refusal: Refusal, ref: str | None = None, conversation_id: str | None = None) -> Error:
    """The `error` frame of a refused frame: it has no `turn_id`, and the connection stays open."""
    return Error(error=error_body(refusal), ref=ref, conversation_id=conversation_id or "")


def error_body(refusal: Refusal) -> ErrorBody:
    return ErrorBody(refusal.code.name, refusal.message, refusal.retryable)


AHEAD_S = 0.1
"""How long a reader may know more than this node: tokens run ahead of the log, and come one hop later here."""


async def starting_at(feed: Feed, cursor: Position) -> tuple[Position, Snapshot | None]:
    """Where a reader with `cursor` goes on: there, or, if the log doesn't have that entry, behind a snapshot.
    Raises `Refusal` (`OVERLOADED`)."""
    try:
        await _on_their_way(feed, cursor)
        if await feed.is_valid(cursor):
            return cursor, None
        snapshot = await feed.snapshot()
    except LogUnavailable:
        raise log_unreadable() from None
    return Position(snapshot.seq, snapshot.epoch), snapshot


async def _on_their_way(feed: Feed, cursor: Position) -> None:
    """Tokens run ahead of the log (SPEC.md section 2.5), so a reader that comes quickly from the conversation's owner
    may know more than this node. That isn't worth a snapshot: what it knows is here in a moment."""
    if not (feed.follows and feed.open_turns and cursor.seq > feed.visible):
        return
    woken = asyncio.Event()
    waiting = Cursor(feed, feed.head(), woken.set)
    try:
        async with asyncio.timeout(AHEAD_S):
            while cursor.seq > feed.visible:
                await woken.wait()
                woken.clear()
    except TimeoutError:
        pass  # the log will never have it, or is far behind
    finally:
        waiting.close()


async def moved(feeds: Feeds, old: Feed, cursor: Position) -> tuple[Feed, Position, Snapshot | None]:
    """Where a reader goes on whose feed was given up: another node owns the conversation now, or the log lost what the
    feed had. Raises `Refusal` (`OVERLOADED`): try again."""
    try:
        feed = await feeds.open(old.key)
    except LogUnavailable:
        raise log_unreadable() from None
    return feed, *await starting_at(feed, cursor)


def gone(feed: Feed) -> Refusal:
    """Why what is waited for never comes through a feed that was given up."""
    if feed.deleted:
        return Refusal(ErrorCode.NOT_FOUND, "The conversation was deleted meanwhile.")
    return Refusal(ErrorCode.OVERLOADED, "This conversation moved to another node. Resend.", retry_after_s=1)


async def committed(feed: Feed, seq: int) -> None:
    """Returns when entry `seq` is in the log. Raises `Refusal` when it never will be. Safe to cancel."""
    try:
        await feed.when_committed(seq)
    except LogUnavailable:
        raise gone(feed) from None


async def message_entry(feed: Feed, seq: int) -> Message:
    """The `message` at entry `seq`, which is in the log. Raises `Refusal`."""
    made = feed.slice_after(seq - 1)
    try:
        frames = made.frames if made is not None and made.frames else (await feed.read_after(seq - 1)).frames
    except LogUnavailable:
        raise log_unreadable() from None
    first = frames[0] if frames else None
    if not isinstance(first, Message) or first.seq != seq:
        raise gone(feed)
    return first
