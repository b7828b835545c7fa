"""The asyncio client over WebSocket: many conversations on one connection that mends itself."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from typing import Any, Literal, Self

import msgspec
from msgspec import UNSET

from protocol.client.addresses import websocket_url
from protocol.client.connection import Connection, Event
from protocol.client.consumers import Subscription, Turn
from protocol.client.tokens import TokenSource
from protocol.codec import JSON, Codec
from protocol.frames import Cancel, Cancelled, ChatMessage, ClientFunctionResult, Ping, Tool


class Client:
    """A connection to a gateway; use it as `async with Client(url) as client`.

    Entering connects once, and raises `Unreachable`, `Unauthorized` or `ConnectionFailed` when that fails. A
    connection that is lost later comes back by itself, with full jitter, for as long as the client is open: turns and
    subscriptions go on where they were, unacknowledged messages are sent again under their ids. It gives up when
    another attempt can't help: a refused token (`Unauthorized`, unless `token` is a function that gets another one)
    or a close code that says that one side is wrong (`ConnectionFailed`); whoever waits or iterates then gets that.

    `url` may be any of the gateway's addresses. `on_event` is called in the event loop and must not block.
    Every await of this class may be cancelled; a cancelled `send` may or may not have reached the gateway.
    """

    def __init__(
        self,
        url: str,
        *,
        codec: Codec = JSON,
        token: TokenSource = None,
        on_event: Callable[[Event], None] | None = None,
        connect_timeout_s: float = 10.0,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._connection = Connection(websocket_url(url), codec, token, on_event, connect_timeout_s, rand)

    @property
    def url(self) -> str:
        return self._connection.url

    @property
    def limits(self) -> dict[str, int]:
        """As the gateway's `welcome` gives them."""
        return self._connection.limits

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends all iterators and closes the connection; requests that wait raise `ClientClosed`. Twice is fine."""
        await self._connection.close()

    # ------------------------------------------------------------------------------------------ requests

    async def send(
        self,
        message: str,
        *,
        conversation_id: str | None = None,
        message_id: str | None = None,
        on_busy: Literal["queue", "interrupt", "reject"] = "queue",
        model: str | None = None,
        tools: list[Tool] | list[dict[str, Any]] | None = None,
        system: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Turn:
        """Asks something, and returns when the gateway has it in its log.

        Without a `conversation_id` a new conversation begins. Ids are always made here, so that a message that was
        cut off is sent again without harm; the same `message_id` while its turn is read gives the same `Turn`.
        Raises `RequestError` when the gateway refuses, `AlreadySent`, and what `Client` gave up with.
        """
        frame = ChatMessage(
            message=message,
            conversation_id=conversation_id or uuid.uuid4().hex,
            message_id=message_id or uuid.uuid4().hex,
            on_busy=on_busy,
            model=model,
            tools=msgspec.convert(tools, list[Tool] | None),
            system=system,
            metadata=metadata,
        )
        self._connection.check(frame)
        channel = self._connection.channel(frame.conversation_id or "")
        turn = channel.sent.get(frame.message_id or "")
        if turn is None:
            turn = Turn(frame, channel.drop, self.cancel)
            channel.send(turn)
        turn.senders += 1
        try:
            await turn.acknowledged.wait()
        except asyncio.CancelledError:
            # Nobody else can know of a turn that only this call was waiting for.
            if turn.senders == 1:
                turn.close()
                self._connection.sweep(channel)
            raise
        finally:
            turn.senders -= 1
        if turn.sending.turn_id is None:
            turn.inbox.raise_failure()
        return turn

    async def subscribe(self, conversation_id: str, after: int | None = None, epoch: int = 0) -> Subscription:
        """Follows a conversation: from its head, or from after the entry `after` of `epoch` (0: the beginning).

        One subscription for each conversation: a second one ends the first and moves the cursor, which raises
        `ClientError` while turns of it are being read. Raises `RequestError` when the gateway refuses.
        """
        self._connection.check()
        channel = self._connection.channel(conversation_id)
        subscription = Subscription(conversation_id, channel.drop, channel.drained)
        channel.subscribe(subscription, after, epoch)
        try:
            await subscription.ready.wait()
        except asyncio.CancelledError:
            subscription.close()
            raise
        if subscription.inbox.ended.is_set():
            subscription.inbox.raise_failure()
        return subscription

    async def unsubscribe(self, conversation_id: str) -> None:
        """Ends the subscription, if there is one. Turns that are being read go on."""
        channel = self._connection.find(conversation_id)
        if channel is not None and channel.subscription is not None:
            channel.subscription.close()

    async def function_result(
        self, conversation_id: str, call_id: str, *, result: Any = UNSET, error: str | None = None
    ) -> None:
        """Answers a `function_call` with a `result` (any JSON) or an `error`. Raises `RequestError`."""
        if (result is UNSET) == (error is None):
            raise ValueError("give exactly one of `result` and `error`")
        frame = ClientFunctionResult(
            conversation_id=conversation_id, call_id=call_id, result=result, error=UNSET if error is None else error
        )
        await self._connection.ask(frame, repeatable=True)

    async def cancel(self, conversation_id: str, turn_id: str | None = None) -> Cancelled:
        """Ends a turn, by default the running one.

        Raises `RequestError`; and without a `turn_id` `ConnectionLost` when the answer got lost, for by then another
        turn may be running.
        """
        frame = Cancel(conversation_id=conversation_id, turn_id=turn_id or None)
        answer = await self._connection.ask(frame, repeatable=bool(turn_id))
        assert isinstance(answer, Cancelled)  # `Connection` passes on nothing else
        return answer

    async def ping(self) -> float:
        """The round trip through the gateway in seconds. Raises `ConnectionLost` when the connection breaks."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self._connection.ask(Ping(), repeatable=False)
        return loop.time() - started
