"""What a program holds while it reads: a turn that it started, or a subscription to a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from protocol.client.errors import ClientClosed
from protocol.client.inbox import Inbox
from protocol.client.state import Sending, TurnState
from protocol.frames import AnyServerFrame, Cancelled, ChatMessage, ErrorBody, FinishReason, Usage


class Turn:
    """A message that was acknowledged, and its answer.

    Iterating gives the turn's frames in order, each exactly once across reconnects, from its `message` up to and
    including its `done` or `error`; tokens that waited for you are merged. A `snapshot` frame (rare: the log lost
    entries, or the cursor wasn't valid any more) replaces everything before it; a `deleted` frame ends the turn too.
    One task iterates. `text` and the other properties are right at any time, iterated or not; a turn that nobody
    iterates keeps its answer a second time, merged, and nothing more. Every await here may be cancelled.
    """

    def __init__(
        self,
        frame: ChatMessage,
        drop: Callable[[Turn], None],
        cancel: Callable[[str, str | None], Awaitable[Cancelled]],
    ) -> None:
        self.sending = Sending(frame)
        self.conversation_id = frame.conversation_id or ""
        self.message_id = self.sending.message_id
        self.state: TurnState | None = None
        self.ref: str | None = None
        self.deleted = False
        self.inbox = Inbox()
        self.acknowledged = asyncio.Event()
        """Set, too, when it will never be: the inbox has then ended."""
        self.senders = 0
        """Calls of `send` that wait for the acknowledgement."""
        self._drop = drop
        self._cancel = cancel
        self._iterated = False

    def __repr__(self) -> str:
        return f"<Turn {self.turn_id or 'unacknowledged'} of {self.conversation_id}>"

    @property
    def turn_id(self) -> str:
        """The gateway's name for it; empty while a message that the log lost is being sent again."""
        return self.sending.turn_id or ""

    @property
    def text(self) -> str:
        """The answer as far as it stands now."""
        return self.state.text if self.state else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while it runs, and when it failed. A turn that was deleted with its conversation is `cancelled`."""
        if self.deleted and self.error is None:
            return "cancelled"
        return self.state.finish_reason if self.state else None

    @property
    def usage(self) -> Usage | None:
        return self.state.usage if self.state else None

    @property
    def error(self) -> ErrorBody | None:
        """Why the turn failed, if it did."""
        return self.state.error if self.state else None

    def __aiter__(self) -> Turn:
        self._iterated = True
        return self

    async def __anext__(self) -> AnyServerFrame:
        frame = await self.inbox.take()
        if frame is None:
            raise StopAsyncIteration
        return frame

    async def wait(self) -> str:
        """Waits for the end and returns the text; look at `error` to see whether it failed.

        It gives up the frames, unless an iteration has begun. Raises `ClientClosed` when the client was closed (or
        the turn was) before the end, and what broke the reading: `OrderError`, `ProofError`, `Unauthorized` ….
        """
        if not self._iterated:
            self.inbox.discard()
        await self.inbox.ended.wait()
        self.inbox.raise_failure()
        if self.finish_reason is None and self.error is None:
            raise ClientClosed(f"turn {self.turn_id} wasn't read to its end")
        return self.text

    async def cancel(self) -> Cancelled:
        """Stops the generation. The turn then ends with a `done` of `cancelled`, if it hadn't ended before."""
        return await self._cancel(self.conversation_id, self.turn_id)

    def close(self) -> None:
        """Stops reading; the turn itself goes on in the gateway."""
        self._drop(self)

    # ---- for the channel

    def acknowledge(self, turn_id: str) -> None:
        self.sending.turn_id = turn_id
        self.acknowledged.set()

    def end(self, failure: Exception | None = None) -> None:
        self.inbox.end(failure)
        self.acknowledged.set()


class Subscription:
    """A conversation from a cursor on, without end: all its entries, snapshots and a last `deleted`.

    One task iterates. When 1 MiB waits, reading this conversation pauses, together with the turns that this client
    has open in it, and goes on from the log when half of that was taken. So don't hold one that you don't read.
    """

    def __init__(self, conversation_id: str, drop: Callable[[Subscription], None], drained: Callable[[], None]) -> None:
        self.conversation_id = conversation_id
        self.ready = asyncio.Event()
        self.inbox = Inbox(drained)
        self._drop = drop

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> AnyServerFrame:
        frame = await self.inbox.take()
        if frame is None:
            raise StopAsyncIteration
        return frame

    def close(self) -> None:
        """Ends the iteration and the subscription."""
        self._drop(self)

    # ---- for the channel

    def end(self, failure: Exception | None = None) -> None:
        self.inbox.end(failure)
        self.ready.set()
