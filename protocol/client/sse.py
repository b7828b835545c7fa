"""Reading turns over SSE, with the resume that plain HTTP clients have to do themselves (SPEC.md section 3.4).

The first request is the `POST` of the message; after a cut the stream goes on with `GET … after=CURSOR`. A message
that may not have arrived is posted again under its `message_id`.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Self

import aiohttp
import msgspec

from protocol.client.errors import OrderError, RequestError
from protocol.client.event_stream import Ended, EventStream
from protocol.client.state import Position, Reader, Sending, TurnState, lost
from protocol.client.tokens import TokenSource
from protocol.codec import JSON, format_cursor
from protocol.frames import (
    AnyServerFrame,
    ChatMessage,
    Deleted,
    Done,
    Entry,
    Error,
    ErrorBody,
    FinishReason,
    Goaway,
    LoggedFrame,
    Message,
    Snapshot,
    Token,
    Usage,
)


class ChatStream:
    """The frames of one turn, from its `message` up to and including its `done` or `error`, each exactly once.

    A `snapshot` replaces everything before it; a `deleted` ends the turn too. Nothing is asked before the iteration
    begins. The consumer's pace is the connection's: one that stops reading holds back nobody but itself. Leaving the
    loop early needs `aclose()`, or `async with`.
    """

    def __init__(self, frame: ChatMessage, connection: EventStream) -> None:
        self.conversation_id = frame.conversation_id or ""
        self.message_id = frame.message_id or ""
        self._sending = Sending(frame)
        self._connection = connection
        self._reader = Reader(self.conversation_id)
        self._state: TurnState | None = None
        self._deleted = False
        self._frames = self._run()

    @property
    def turn_id(self) -> str:
        return self._sending.turn_id or ""

    @property
    def text(self) -> str:
        """The answer as far as it stands now."""
        return self._state.text if self._state else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while it runs, and when it failed. A turn that was deleted with its conversation is `cancelled`."""
        if self._deleted:
            return "cancelled"
        return self._state.finish_reason if self._state else None

    @property
    def usage(self) -> Usage | None:
        return self._state.usage if self._state else None

    @property
    def error(self) -> ErrorBody | None:
        """Why the turn failed, if it did."""
        return self._state.error if self._state else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyServerFrame:
        return await anext(self._frames)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection; the turn itself goes on in the gateway."""
        await self._frames.aclose()

    async def wait(self) -> str:
        """Reads to the end and returns the text; look at `error` to see whether it failed."""
        async for _ in self:
            pass
        return self.text

    async def _run(self) -> AsyncGenerator[AnyServerFrame]:
        over = False
        while not over:
            async with aclosing(self._next_request()) as frames:
                try:
                    async for frame in frames:
                        shown, over = self._take(frame)
                        if shown:
                            yield frame
                        if over or self._sending.turn_id is None:
                            break  # at the end; or the log lost the message, which has to be posted again
                except Ended:
                    raise OrderError(f"turn {self.turn_id} is over, but its end never came") from None

    def _next_request(self) -> AsyncGenerator[AnyServerFrame]:
        if self._sending.turn_id is None or self._reader.cursor is None:
            self._reader = Reader(self.conversation_id)
            return self._connection.frames("POST", body=JSON.encode(self._sending.frame))
        return self._connection.frames("GET", params=_params(self._reader))

    def _take(self, frame: AnyServerFrame) -> tuple[bool, bool]:
        """Whether to show it, and whether it is the last."""
        if isinstance(frame, Snapshot):
            self._replace(frame)
            return True, self._state is not None and self._state.ended
        if isinstance(frame, Deleted):
            self._deleted = True
            return True, True
        entry = _entry(frame)
        if entry is None:
            return False, False
        own = isinstance(entry, Message) and entry.message_id == self.message_id
        if own and self._reader.cursor is None:
            self._reader.cursor = Position(entry.seq - 1, 0)
        state = self._reader.accept(entry)
        self._connection.progress()
        if own:
            self._sending.turn_id, self._state = entry.turn_id, state
        return state is self._state, state is self._state and isinstance(entry, Done | Error)

    def _replace(self, snapshot: Snapshot) -> None:
        states = self._reader.replace(snapshot)
        if lost([self._sending], snapshot):
            self._sending.turn_id = self._state = None
        else:
            self._state = states.get(self.turn_id)


def stream_chat(
    url: str,
    message: str,
    *,
    conversation_id: str | None = None,
    message_id: str | None = None,
    token: TokenSource = None,
    session: aiohttp.ClientSession | None = None,
    rand: Callable[[], float] = random.random,
    **fields: Any,
) -> ChatStream:
    """Asks something over `POST /api/chat/stream` and reads the answer across cuts.

    `fields` are those of `chat_message`: `on_busy`, `model`, `tools`, `system`, `metadata`. Iterating raises
    `Unreachable` when the first request finds no gateway, `RequestError` when one is refused for good, and
    `OrderError` and `ProofError` when the stream isn't whole. After a cut it tries again without end: put it into
    `asyncio.timeout` for less. Cancelling is safe at any time.
    """
    body = {
        **fields,
        "type": "chat_message",
        "message": message,
        "conversation_id": conversation_id or uuid.uuid4().hex,
        "message_id": message_id or uuid.uuid4().hex,
    }
    return ChatStream(msgspec.convert(body, ChatMessage), EventStream(url, token, session, rand))


async def attach(
    url: str,
    conversation_id: str,
    after: int | None = None,
    *,
    epoch: int = 0,
    token: TokenSource = None,
    session: aiohttp.ClientSession | None = None,
    rand: Callable[[], float] = random.random,
) -> AsyncGenerator[AnyServerFrame]:
    """Reads a conversation from its cursor on (default: from the question in progress) until no turn is open.

    Nothing is yielded when there is nothing to read. Raises as `stream_chat` does; `NOT_FOUND` for a conversation
    that doesn't exist.
    """
    connection = EventStream(url, token, session, rand)
    reader = Reader(conversation_id, None if after is None else Position(after, epoch))
    over = False
    while not over:
        async with aclosing(connection.frames("GET", params=_params(reader))) as frames:
            try:
                async for frame in frames:
                    # The gateway ends the stream after the last open turn; after anything else an end is a cut.
                    over = isinstance(frame, Deleted) or (_follow(reader, connection, frame) and not reader.turns)
                    if not isinstance(frame, Goaway):
                        yield frame
            except Ended:
                return


def _params(reader: Reader) -> dict[str, str]:
    params = {"conversation_id": reader.conversation_id}
    return params if reader.cursor is None else {**params, "after": format_cursor(*reader.cursor)}


def _follow(reader: Reader, connection: EventStream, frame: AnyServerFrame) -> bool:
    """True after an entry that may be the last one."""
    if isinstance(frame, Snapshot):
        reader.replace(frame)
        return frame.turn is None
    entry = _entry(frame)
    if entry is None:
        return False
    if reader.cursor is None:
        first = (entry.first_seq if isinstance(entry, Token) else None) or entry.seq
        reader.cursor = Position(first - 1, 0)
    reader.accept(entry)
    connection.progress()
    return isinstance(entry, Done | Error)


def _entry(frame: AnyServerFrame) -> Entry | None:
    """The frame, if it is a logged one. Raises `RequestError` for an error that isn't of any turn."""
    if isinstance(frame, Error):
        if frame.turn_id and frame.seq:
            return frame
        raise RequestError(frame.error.code, frame.error.message, frame.error.retryable)
    return frame if isinstance(frame, LoggedFrame) else None
