"""One conversation on one WebSocket: what is asked of the gateway for it, and who gets what comes back.

A `Channel` decides; it does no I/O. It is told what happens (frames, cuts, new connections, consumers that come and
go) and posts the frames that follow from it. Its life is a table; the columns are events, the entries new states:

            subscribed  unsubscribed  own `message`  other entry  reader full  reader drained  nobody left  cut
IDLE        -           -             FOLLOWING      ignored      -            -               LEAVING      IDLE
OPENING     FOLLOWING   -             noted          ignored      -            -               LEAVING      IDLE
FOLLOWING   -           -             taken          taken        PAUSED       -               LEAVING      IDLE
PAUSED      -           -             noted          ignored      -            OPENING         LEAVING      PAUSED
LEAVING     -           IDLE          noted          ignored      -            -               -            IDLE

A new connection takes IDLE to OPENING when a cursor is known; a subscription takes every state to OPENING. The log is
the buffer: a subscription that isn't read makes the channel give up its place (PAUSED) and come back with its cursor
when there is room again, so that it costs at most `FULL_BYTES`, and other conversations don't wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from protocol.client.consumers import Subscription, Turn
from protocol.client.errors import AlreadySent, ClientError, OrderError, ProofError, RequestError
from protocol.client.state import Position, Reader, lost
from protocol.frames import (
    AnyClientFrame,
    Deleted,
    Done,
    Entry,
    Error,
    Message,
    Snapshot,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)

FULL_BYTES = 1 << 20
"""A subscription with so much waiting pauses its conversation."""
LOW_BYTES = FULL_BYTES // 2
"""Below this it goes on."""


class Link(Enum):
    """Where the channel stands with the gateway. See the table above."""

    IDLE = auto()
    OPENING = auto()
    FOLLOWING = auto()
    PAUSED = auto()
    LEAVING = auto()


class Channel:
    """`post` sends a frame on the present connection and returns its `ref`; without a connection it only makes one."""

    def __init__(self, conversation_id: str, post: Callable[[AnyClientFrame], str]) -> None:
        self.conversation_id = conversation_id
        self.link = Link.IDLE
        self.reader = Reader(conversation_id)
        self.online = False
        self.sent: dict[str, Turn] = {}
        """Our unfinished turns, by `message_id`."""
        self.subscription: Subscription | None = None
        self._post = post
        self._awaiting: str | None = None
        """`ref` of the latest subscribe or unsubscribe: an answer to an earlier one says nothing any more."""

    @property
    def wanted(self) -> bool:
        return bool(self.sent) or self.subscription is not None

    @property
    def over(self) -> bool:
        """Nobody needs it and the gateway has nothing more to say: it may be forgotten."""
        return not self.wanted and self.link is Link.IDLE

    # ------------------------------------------------------------------------------------------ consumers

    def send(self, turn: Turn) -> None:
        self.sent[turn.message_id] = turn
        turn.ref = self._post(turn.sending.frame)

    def subscribe(self, subscription: Subscription, after: int | None, epoch: int) -> None:
        """Ends an earlier subscription. Raises `ClientError` when turns being read forbid to move the cursor."""
        asked = None if after is None else Position(after, epoch)
        if self.sent and asked is not None and asked != self.reader.cursor:
            raise ClientError(
                f"a turn of conversation {self.conversation_id} is being read on this connection, so its cursor "
                "can't be moved: subscribe before sending, or use another Client"
            )
        if self.subscription is not None:
            self.subscription.end()
        self.subscription = subscription
        if self.sent:
            subscription.ready.set()
            self.drained()
            return
        if asked is not None or self.link is not Link.FOLLOWING:
            self.reader = Reader(self.conversation_id, asked)
            self._open()
        else:
            subscription.ready.set()

    def drop(self, consumer: Turn | Subscription) -> None:
        """It doesn't want any more frames."""
        consumer.end()
        if isinstance(consumer, Turn):
            if self.sent.get(consumer.message_id) is consumer:
                del self.sent[consumer.message_id]
        elif self.subscription is consumer:
            self.subscription = None
        self.drained()
        self._release()

    def drained(self) -> None:
        """A consumer took a frame or went away."""
        if self.link is Link.PAUSED and not self._full(LOW_BYTES) and self.wanted:
            self._open()

    def _full(self, limit_bytes: int) -> bool:
        return self.subscription is not None and self.subscription.inbox.size_bytes >= limit_bytes

    def _open(self) -> None:
        if not self.online:
            self.link = Link.IDLE
            return
        known = self.reader.cursor is not None
        self.link = Link.OPENING
        self._awaiting = self._post(self.reader.resume() if known else Subscribe(conversation_id=self.conversation_id))

    def _release(self) -> None:
        if self.wanted or self.link is Link.LEAVING:
            return
        self.reader = Reader(self.conversation_id)
        if self.online:
            self.link = Link.LEAVING
            self._awaiting = self._post(Unsubscribe(conversation_id=self.conversation_id))
        else:
            self.link = Link.IDLE

    def fail(self, failure: Exception) -> None:
        """Everybody who reads this conversation gets `failure`."""
        for turn in self.sent.values():
            turn.end(failure)
        self.sent.clear()
        if self.subscription is not None:
            self.subscription.end(failure)
            self.subscription = None
        self._release()

    # ------------------------------------------------------------------------------------------ connections

    def connected(self) -> None:
        """On a new connection: goes on from the cursor, and sends again what nobody has acknowledged."""
        self.online = True
        if self.link is not Link.PAUSED and (self.reader.cursor is not None or self.subscription is not None):
            self._open()
        for turn in self.sent.values():
            if turn.sending.turn_id is None:
                turn.ref = self._post(turn.sending.frame)

    def disconnected(self) -> None:
        self.online = False
        self._awaiting = None
        if self.link is not Link.PAUSED:
            self.link = Link.IDLE

    # ------------------------------------------------------------------------------------------ frames

    def subscribed(self, frame: Subscribed) -> None:
        if self.link is not Link.OPENING or frame.ref != self._awaiting:
            return
        self.link = Link.FOLLOWING
        if self.reader.cursor is None:
            self.reader.cursor = Position(frame.after, frame.epoch)
        if self.subscription is not None:
            self.subscription.ready.set()

    def unsubscribed(self, frame: Unsubscribed) -> None:
        if self.link is Link.LEAVING and frame.ref == self._awaiting:
            self.link = Link.IDLE

    def asked(self, ref: str) -> bool:
        """Whether the frame with this `ref` is one that it waits for an answer to."""
        return ref == self._awaiting or any(turn.ref == ref for turn in self.sent.values())

    def refused(self, ref: str, error: RequestError) -> bool:
        """The gateway refused the frame with this `ref`. True: it was a resumption, and is worth another try."""
        for turn in list(self.sent.values()):
            if turn.ref == ref:
                turn.end(error)
                self.drop(turn)
                return False
        if ref != self._awaiting:
            return False
        opening = self.link is Link.OPENING
        self.link = Link.IDLE
        if not opening:
            return False
        if error.retryable and (self.subscription is None or self.subscription.ready.is_set()):
            return True
        self.fail(error)
        return False

    def retry(self) -> None:
        """The other try."""
        if self.online and self.wanted and self.link is Link.IDLE and self.reader.cursor is not None:
            self._open()

    def entry(self, frame: Entry, size_bytes: int) -> bool:
        """A logged frame. True: it was taken, so the connection was of use."""
        own = self.sent.get(frame.message_id) if isinstance(frame, Message) else None
        copy = isinstance(frame, Message) and frame.duplicate
        if self.link is Link.IDLE and own is not None:
            self.link = Link.FOLLOWING
            self.reader = Reader(self.conversation_id, Position(frame.seq - 1, 0))
        elif self.link is not Link.FOLLOWING:
            if own is not None:
                own.acknowledge(frame.turn_id)
                self._pause_again()
            return False
        elif copy:
            self._copy(frame, own)
            return False
        try:
            self._take(frame, own, size_bytes)
        except (OrderError, ProofError) as failure:
            self.fail(failure)
            return False
        if copy and self.wanted:
            # Outside the order, so perhaps nothing follows it: ask for what does.
            self._open()
        return True

    def _pause_again(self) -> None:
        """Sending has subscribed us anew, but there is no room yet."""
        if self.link is Link.PAUSED:
            self._post(Unsubscribe(conversation_id=self.conversation_id))

    def _copy(self, frame: Entry, own: Turn | None) -> None:
        """A `duplicate` of a message that this connection has seen."""
        cursor = self.reader.cursor
        if own is None or own.sending.turn_id is not None or (cursor and frame.seq > cursor.seq):
            return
        state = self.reader.turns.get(frame.turn_id)
        if state is not None and state.whole:
            own.acknowledge(frame.turn_id)
            own.state = state
        else:
            own.end(AlreadySent(self.conversation_id, frame.turn_id, frame.seq))
            self.drop(own)

    def _take(self, frame: Entry, own: Turn | None, size_bytes: int) -> None:
        state = self.reader.accept(frame)
        if own is not None:
            own.acknowledge(frame.turn_id)
            own.state = state
        for turn in list(self.sent.values()):
            if turn.sending.turn_id == frame.turn_id:
                turn.inbox.put(frame, size_bytes)
                if isinstance(frame, Done | Error):
                    self._finish(turn)
        if self.subscription is not None:
            self.subscription.inbox.put(frame, size_bytes)
            if self._full(FULL_BYTES):
                self.link = Link.PAUSED
                self._post(Unsubscribe(conversation_id=self.conversation_id))
        self._release()

    def _finish(self, turn: Turn) -> None:
        turn.end()
        self.sent.pop(turn.message_id, None)

    def snapshot(self, frame: Snapshot, size_bytes: int) -> None:
        """Replaces what was read; what the log has lost of ours is sent again (SPEC.md section 7)."""
        if self.link is not Link.FOLLOWING:
            return
        states = self.reader.replace(frame)
        turn_ids = {line.message_id: line.turn_id for line in frame.messages if line.message_id is not None}
        gone = lost([turn.sending for turn in self.sent.values()], frame)
        for turn in list(self.sent.values()):
            if turn.message_id in turn_ids:
                turn.acknowledge(turn_ids[turn.message_id])
                turn.state = states[turn_ids[turn.message_id]]
                turn.inbox.put(frame, size_bytes)
                if turn.state.ended:
                    self._finish(turn)
            elif turn.sending in gone:
                turn.inbox.put(frame, size_bytes)
                turn.sending.turn_id = turn.state = None
                turn.ref = self._post(turn.sending.frame)
        if self.subscription is not None:
            self.subscription.inbox.put(frame, size_bytes)
        self._release()

    def deleted(self, frame: Deleted, size_bytes: int) -> None:
        """The conversation was erased; messages of ours that are still on their way start it anew."""
        if self.link is not Link.FOLLOWING:
            return
        for turn in list(self.sent.values()):
            if turn.sending.turn_id is not None:
                turn.deleted = True
                turn.inbox.put(frame, size_bytes)
                self._finish(turn)
        if self.subscription is not None:
            self.subscription.inbox.put(frame, size_bytes)
            self.subscription.end()
            self.subscription = None
        self.reader = Reader(self.conversation_id)
        self.link = Link.IDLE
