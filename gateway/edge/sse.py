"""Server-sent events: the same cursor with another framing (SPEC.md section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import structs
from starlette.types import Receive, Scope, Send

from gateway.edge.http_guard import CHUNKS
from gateway.edge.reader import Reader
from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.log import Position
from gateway.logs.slices import Slice
from protocol.codec import JSON, format_cursor
from protocol.frames import Deleted, Done, Entry, Error, Message, Snapshot
from protocol.sse import HEARTBEAT, event

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]

OPEN = ("queued", "running", "function_call")

Write = Callable[[bytes], Awaitable[None]]
WriteChunk = Callable[[bytes], bool]
"""Writes a part of the body past ASGI's layers; False: that isn't possible now, and nothing was written."""
Ended = Callable[[Feed, Slice | Snapshot], int | None]
"""How many frames of this slice are the stream's last ones; None: it goes on. An empty slice: the reader is level."""


def after_turn(turn_id: str) -> Ended:
    """The stream of one question: over with its own turn's terminal frame, also when the slice goes on, or with a
    snapshot that has no such turn open."""

    def ended(_: Feed, made: Slice | Snapshot) -> int | None:
        if isinstance(made, Snapshot):
            return None if any(line.turn_id == turn_id and line.status in OPEN for line in made.messages) else 0
        for count, frame in enumerate(made.frames, 1):
            if isinstance(frame, (Done, Error)) and frame.turn_id == turn_id:
                return count
        return None

    return ended


def when_idle(feed: Feed, made: Slice | Snapshot) -> int | None:
    """The stream of an attached reader: over when it is level and no turn is open."""
    if isinstance(made, Snapshot):
        return None
    return 0 if not made.frames and not feed.open_turns and feed.all_visible else None


class EventStream:
    """An ASGI response. `ref` is echoed in the `message` frame of `own_seq`."""

    def __init__(
        self,
        feeds: Feeds,
        feed: Feed,
        position: Position,
        ended: Ended,
        *,
        heartbeat_s: float,
        snapshot: Snapshot | None = None,
        ref: str | None = None,
        own_seq: int = 0,
    ) -> None:
        self._feeds = feeds
        self._feed = feed
        self._position = position
        self._ended = ended
        self._heartbeat_s = heartbeat_s
        self._snapshot = snapshot
        self._ref = ref
        self._own_seq = own_seq

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        write_chunk: WriteChunk = scope.get("extensions", {}).get(CHUNKS, {}).get("write", _no_short_way)

        def pass_on(made: Slice) -> bool:
            [token] = _events(made)
            return write_chunk(token)

        async def write(body: bytes) -> None:
            if not write_chunk(body):
                await send({"type": "http.response.body", "body": body, "more_body": True})

        with Reader(self._feeds, self._feed, self._position, self._heartbeat_s, pass_on) as reader:
            watch = asyncio.create_task(watch_disconnect(receive, reader), name="sse disconnect")
            try:
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                if self._snapshot is not None:
                    await write(_event(self._snapshot))
                await self._follow(reader, write)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                watch.cancel()
                await asyncio.wait([watch])

    async def _follow(self, reader: Reader, write: Write) -> None:
        beat = False
        async for made in reader.slices():
            feed = reader.cursor.feed
            last = self._ended(feed, made)
            if isinstance(made, Snapshot):
                await write(_event(made))
            elif made.frames:
                await write(b"".join(self._answered(made)[:last]))
            elif feed.deleted:
                gone = Deleted(conversation_id=feed.key.conversation_id)
                await write(event(JSON.encode(gone), None))
            elif beat:
                await write(HEARTBEAT)
            if last is not None:
                return
            beat = not isinstance(made, Snapshot) and not made.frames

    def _answered(self, made: Slice) -> list[bytes]:
        """The events of a slice, with `ref` where it belongs."""
        events = _events(made)
        if self._ref is not None:
            for at, frame in enumerate(made.frames):
                if isinstance(frame, Message) and frame.seq == self._own_seq:
                    mine = structs.replace(frame, ref=self._ref)
                    return [*events[:at], _event(mine), *events[at + 1 :]]
        return events


def _events(made: Slice) -> list[bytes]:
    """Made once for all readers of the slice."""
    events = made.encoded.get("sse")
    if events is None:
        events = made.encoded["sse"] = [_event(frame) for frame in made.frames]
    return events


def _event(frame: Entry | Snapshot) -> bytes:
    return event(JSON.encode(frame), format_cursor(frame.seq, frame.epoch))


def _no_short_way(_: bytes) -> bool:
    return False


async def watch_disconnect(receive: Receive, reader: Reader) -> None:
    """Ends `reader` when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.leave()
