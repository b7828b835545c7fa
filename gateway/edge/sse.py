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
from protocol.frames import AnyServerFrame, Deleted, Done, Entry, Error, Message, Snapshot
from protocol.sse import HEARTBEAT, event

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]

OPEN = ("queued", "running", "function_call")

Write = Callable[[bytes], Awaitable[None]]
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
    return 0 if not made.frames and not feed.open_turns and feed.visible == feed.seq else None


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
        with Reader(self._feeds, self._feed, self._position) as reader:
            watch = asyncio.create_task(watch_disconnect(receive, reader), name="sse disconnect")
            try:
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                if self._snapshot is not None:
                    await _body(send, _event(self._snapshot, self._position))
                await self._follow(reader, _past_the_layers(scope, send))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                watch.cancel()
                await asyncio.wait([watch])

    async def _follow(self, reader: Reader, write: Write) -> None:
        beat = False
        async for made in reader.slices(self._heartbeat_s):
            feed = reader.cursor.feed
            last = self._ended(feed, made)
            if isinstance(made, Snapshot):
                await write(_event(made, Position(made.seq, made.epoch)))
            elif made.frames:
                await write(b"".join(self._encoded(made)[:last]))
            elif feed.deleted:
                gone = Deleted(conversation_id=feed.key.conversation_id)
                await write(event(JSON.encode(gone), None))
            elif beat:
                await write(HEARTBEAT)
            if last is not None:
                return
            beat = not isinstance(made, Snapshot) and not made.frames

    def _encoded(self, made: Slice) -> list[bytes]:
        if self._ref is not None and any(frame.seq == self._own_seq for frame in made.frames):
            return [_event(self._with_ref(frame), Position(frame.seq, frame.epoch)) for frame in made.frames]
        events = made.encoded.get("sse")
        if events is None:
            events = made.encoded["sse"] = [_event(frame, Position(frame.seq, frame.epoch)) for frame in made.frames]
        return events

    def _with_ref(self, frame: Entry) -> Entry:
        if isinstance(frame, Message) and frame.seq == self._own_seq:
            return structs.replace(frame, ref=self._ref)
        return frame


def _event(frame: AnyServerFrame, cursor: Position) -> bytes:
    return event(JSON.encode(frame), format_cursor(cursor.seq, cursor.epoch))


async def _body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _past_the_layers(scope: Scope, send: Send) -> Write:
    """Writes a part of the body, the short way when there is one."""
    write_chunk = scope.get("extensions", {}).get(CHUNKS, {}).get("write")

    async def write(body: bytes) -> None:
        if write_chunk is None or not write_chunk(body):
            await _body(send, body)

    return write


async def watch_disconnect(receive: Receive, reader: Reader) -> None:
    """Ends `reader` when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.leave()
