"""What one WebSocket connection sends: direct answers, and the frames of the conversations it follows.

Frames go out by cursors: whatever woke since the last loop turn is taken, encoded once per slice for all readers at
the same place, and written in one piece. A reader that is behind the memory of its feed is helped from the log by
one task per connection, a slice at a time, so that it costs the same memory however much it missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog
from msgspec import structs

from gateway.edge.answers import gone, refused
from gateway.edge.websocket import WebSocketShell
from gateway.logs.cursor import Cursor, new_group
from gateway.logs.feed import Feed
from gateway.logs.log import LogUnavailable, Position
from gateway.logs.slices import Slice
from protocol.codec import JSON, Codec
from protocol.codes import CloseCode
from protocol.frames import AnyServerFrame, Deleted, Message

FLUSH_BYTES = 131072
"""What one loop turn takes from the cursors of one connection, roughly; the rest follows in the next."""
LOG_RETRY_S = 0.5

log_lines = structlog.get_logger(__name__)


class Subscription:
    """A cursor of this connection, and the direct answers that its entries will bring."""

    __slots__ = ("closed", "cursor", "outbox", "refs")

    def __init__(self, outbox: Outbox, feed: Feed, position: Position) -> None:
        self.outbox = outbox
        self.refs: dict[int, str | None] = {}
        """seq of a `message` that this connection sent and hasn't seen -> the `ref` to answer with, if any."""
        self.closed = False
        self.cursor = Cursor(feed, position, partial(outbox.ready, self), outbox.group)
        outbox.ready(self)

    def close(self) -> None:
        self.closed = True
        self.cursor.close()


class Outbox:
    """Synchronous but for the one task that catches up. `close` ends it."""

    __slots__ = (
        "_catching_up", "_direct", "_flushing", "_lagging", "_loop", "_on_moved", "_ready", "_shell", "_writable",
        "codec", "group", "sending", "subscriptions",
    )  # fmt: skip

    def __init__(self, shell: WebSocketShell, on_moved: Callable[[Subscription], None]) -> None:
        """`on_moved`: a subscription, still in its place but closed, has to go on in another feed."""
        self._on_moved = on_moved
        self.group = new_group()
        self.codec: Codec = JSON
        self.subscriptions: dict[str, Subscription] = {}
        self.sending: dict[tuple[str, str], str | None] = {}
        """Conversation and `message_id` of messages that are being sent -> the `ref` to answer with. On another node
        than the conversation's owner the entry may come by before the owner's word does; then it is the answer, and
        is taken out of here."""
        self._shell = shell
        self._loop = asyncio.get_running_loop()
        self._ready: dict[Subscription, None] = {}
        """Woken cursors, served in turn."""
        self._direct: list[bytes] = []
        self._flushing = False
        self._lagging: dict[Subscription, None] = {}
        """Those that need the log, served in turn by one task while there are any."""
        self._catching_up: asyncio.Task[None] | None = None
        self._writable: asyncio.Event | None = None

    def answer(self, frame: AnyServerFrame) -> None:
        """Sends a frame that isn't part of any cursor's order, ahead of what the cursors have."""
        self._direct.append(self.codec.encode(frame))
        self._schedule()

    def attach(self, conversation_id: str, feed: Feed, position: Position) -> Subscription:
        """Follows a conversation from `position`, instead of from where it did before."""
        self.detach(conversation_id)
        sub = self.subscriptions[conversation_id] = Subscription(self, feed, position)
        return sub

    def detach(self, conversation_id: str) -> Subscription | None:
        """No frame of the conversation's cursor is sent after this."""
        sub = self.subscriptions.pop(conversation_id, None)
        if sub is not None:
            sub.close()
            self._ready.pop(sub, None)
            self._lagging.pop(sub, None)
        return sub

    def writable(self) -> None:
        """The shell's buffer has drained."""
        if self._writable is not None:
            self._writable.set()
        if self._ready:
            self._schedule()

    def close(self) -> None:
        for sub in self.subscriptions.values():
            sub.close()
        self.subscriptions.clear()
        self._ready.clear()
        self._lagging.clear()
        if self._catching_up is not None:
            self._catching_up.cancel()

    # ------------------------------------------------------------ level readers

    def ready(self, sub: Subscription) -> None:
        """There may be something new at its cursor."""
        self._ready[sub] = None
        if not self._flushing:
            self._schedule()

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """One write for all that is due: direct answers, then slices, while the socket takes them."""
        self._flushing = False
        out, self._direct = self._direct, []
        room = FLUSH_BYTES
        if not self._shell.paused:
            woken, self._ready = iter(self._ready), {}
            for sub in woken:
                if not sub.closed:
                    room -= self._take(sub, out)
                    if room <= 0:
                        # Those whose turn hasn't come go ahead of those that have more.
                        self._ready = {**dict.fromkeys(woken), **self._ready}
                        break
        if out:
            self._shell.write(out)
        if self._ready and not self._shell.paused:
            self._schedule()

    def _take(self, sub: Subscription, out: list[bytes]) -> int:
        """Adds the next slice at one cursor to `out`; returns its bytes."""
        feed = sub.cursor.feed
        if feed.fenced and not feed.deleted:
            self._give_up(sub)
            return 0
        made = sub.cursor.take()
        if made is None:
            self._lag(sub)
            return 0
        if not made.frames:
            if feed.deleted:
                self._leave(sub, out)
            return 0
        payloads = self._encoded(sub, made)
        if made.upto.seq < feed.visible or feed.deleted:
            self._ready[sub] = None
        if len(payloads) == 1:  # as nearly always
            [payload] = payloads
            out.append(payload)
            return len(payload)
        out += payloads
        return sum(map(len, payloads))

    def _encoded(self, sub: Subscription, made: Slice) -> list[bytes]:
        codec = self.codec
        if sub.refs or (self.sending and any(isinstance(frame, Message) for frame in made.frames)):
            return [codec.encode(self._with_ref(sub.refs, frame)) for frame in made.frames]
        payloads = made.encoded.get(codec.name)
        if payloads is None:
            payloads = made.encoded[codec.name] = codec.encode_all(made.frames)
        return payloads

    def _with_ref(self, refs: dict[int, str | None], frame: AnyServerFrame) -> AnyServerFrame:
        if isinstance(frame, Message):
            if frame.seq in refs:
                return structs.replace(frame, ref=refs.pop(frame.seq))
            if (sent := (frame.conversation_id, frame.message_id)) in self.sending:
                return structs.replace(frame, ref=self.sending.pop(sent))
        return frame

    def end(self, sub: Subscription) -> None:
        """The conversation was deleted, and what comes next is another's: the reader hears of it at once."""
        out: list[bytes] = []
        self._leave(sub, out)
        self._shell.write(out)

    def _leave(self, sub: Subscription, out: list[bytes]) -> None:
        conversation_id = sub.cursor.feed.key.conversation_id
        out += self._unanswered(sub)
        out.append(self.codec.encode(Deleted(conversation_id=conversation_id)))
        if self.subscriptions.get(conversation_id) is sub:
            self.detach(conversation_id)

    def _give_up(self, sub: Subscription) -> None:
        """Nothing more comes through this feed. What is due to messages that it never logged comes now; the reader
        goes on elsewhere."""
        self.refuse(sub)
        if sub.cursor.feed.fenced:
            sub.close()
            self._on_moved(sub)
        else:  # the log hasn't what it had when this feed was opened, and doesn't know it yet
            self._shell.close(CloseCode.DRAINING, "a conversation moved")

    def refuse(self, sub: Subscription) -> None:
        """Answers the messages that will never come by at this cursor."""
        if unanswered := self._unanswered(sub):
            self._shell.write(unanswered)

    def _unanswered(self, sub: Subscription) -> list[bytes]:
        refs, sub.refs = sub.refs, {}
        feed = sub.cursor.feed
        return [self.codec.encode(refused(gone(feed), ref, feed.key.conversation_id)) for ref in refs.values()]

    # ------------------------------------------------------------ catching up from the log

    def _lag(self, sub: Subscription) -> None:
        self._lagging[sub] = None
        if self._catching_up is None:
            self._catching_up = self._loop.create_task(self._catch_up(), name="catch up")
            self._catching_up.add_done_callback(self._caught_up)

    async def _catch_up(self) -> None:
        """Brings lagging cursors forward in turn, one slice each, until the tails of their feeds reach back.

        A cursor stays among them while its slice is read: the tail doesn't reach back to it, so nobody else moves it.
        """
        while self._lagging:
            if self._shell.paused:
                await self._until_writable()
                continue
            sub = next(iter(self._lagging))
            made = await self._fetch(sub)
            self._lagging.pop(sub, None)
            if sub.closed:
                continue
            if made is None:
                self._lagging[sub] = None
                await asyncio.sleep(LOG_RETRY_S)
                continue
            if made.frames:
                self._shell.write(self._encoded(sub, made))
            elif not sub.cursor.feed.deleted:
                self._give_up(sub)
                continue
            self.ready(sub)

    def _caught_up(self, task: asyncio.Task[None]) -> None:
        self._catching_up = None
        if not task.cancelled() and (problem := task.exception()) is not None:
            log_lines.error("catching up failed by a bug", exc_info=problem)
            self._lagging.clear()
            self._shell.close(CloseCode.INTERNAL, "internal error")
        elif self._lagging and not task.cancelled():
            self._lag(next(iter(self._lagging)))

    async def _fetch(self, sub: Subscription) -> Slice | None:
        """The next slice from the log, and moves past it; None when the log can't be read now."""
        cursor, at = sub.cursor, sub.cursor.position
        try:
            made = await cursor.feed.read_after(at.seq)
        except LogUnavailable:
            return None
        if sub.closed:
            return made
        if made.frames:
            cursor.position = made.upto
        elif cursor.feed.deleted:
            cursor.position = cursor.feed.head()
        return made

    async def _until_writable(self) -> None:
        self._writable = asyncio.Event()
        await self._writable.wait()
        self._writable = None
