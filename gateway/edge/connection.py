"""One WebSocket connection: commands of many conversations come in, and get their direct answers (SPEC.md section 5).

Commands of one conversation are served in their order, those of different conversations side by side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress

import structlog
from msgspec import structs

from gateway.edge.answers import committed, message_entry, moved, refused, starting_at
from gateway.edge.outbox import LOG_RETRY_S, Outbox, Subscription
from gateway.edge.principal import Authenticator, Principal
from gateway.edge.websocket import WebSocketShell
from gateway.logs.feed import Feed
from gateway.logs.log import ANY_EPOCH, LogUnavailable, Position
from gateway.sessions.router import Router
from gateway.sessions.session import Acknowledged, new_id
from gateway.settings import Limits
from protocol.codec import MSGPACK, BadFrame
from protocol.codes import CloseCode, ErrorCode, Refusal
from protocol.frames import (
    Accepted,
    AnyServerFrame,
    Auth,
    Cancel,
    Cancelled,
    ChatMessage,
    ClientFunctionResult,
    Goaway,
    Message,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)

MAX_WAITING_COMMANDS = 64
"""Past this many unserved commands the connection isn't read, until half of them are served."""
Command = ChatMessage | ClientFunctionResult | Cancel | Subscribe | Unsubscribe

log_lines = structlog.get_logger(__name__)


class Connection:
    """The shell's handler. Everything runs on the event loop; `closed` ends its tasks."""

    __slots__ = (
        "_authenticator", "_inbox", "_limits", "_on_closed", "_out", "_principal", "_router", "_shell", "_tasks",
        "_waiting", "_welcome", "id",
    )  # fmt: skip

    def __init__(
        self,
        shell: WebSocketShell,
        *,
        principal: Principal,
        authenticator: Authenticator,
        router: Router,
        limits: Limits,
        welcome: Callable[[Connection], Welcome],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.id = new_id("ws")
        self._shell = shell
        self._out = Outbox(shell, self._moved)
        self._principal = principal
        self._authenticator = authenticator
        self._router = router
        self._limits = limits
        self._welcome = welcome
        self._on_closed = on_closed
        self._inbox: dict[str, deque[Command]] = {}
        """Per conversation: commands that aren't served yet; the first is being served."""
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def protocol(self) -> str:
        """The subprotocol that is spoken."""
        return self._out.codec.name

    @property
    def busy(self) -> bool:
        """A turn that this node runs is open in one of its conversations or hasn't been read to its end, or a command
        isn't answered yet."""
        cursors = (sub.cursor for sub in self._out.subscriptions.values())
        return self._waiting > 0 or any(
            not cursor.feed.follows and (cursor.feed.open_turns or cursor.position.seq < cursor.feed.seq)
            for cursor in cursors
        )

    def goaway(self, reason: str, reconnect_after_ms: int) -> None:
        """Says goodbye, and closes with 1012 once what is written has gone out."""
        self._out.answer(Goaway(reason=reason, reconnect_after_ms=reconnect_after_ms))
        self._out.flush()
        self._shell.close(CloseCode.DRAINING, reason)

    # ------------------------------------------------------------ the shell's calls

    def opened(self) -> None:
        if self._shell.subprotocol == MSGPACK.name:
            self._out.codec = MSGPACK
        self._out.answer(self._welcome(self))

    def received(self, data: bytes, binary: bool) -> None:
        try:
            if binary != self._out.codec.binary:
                right = "binary (MessagePack)" if self._out.codec.binary else "text (JSON)"
                raise BadFrame(ErrorCode.BAD_FRAME, f"On this connection frames are {right}.")
            frame = self._out.codec.decode_client(data)
        except BadFrame as refusal:
            self._out.answer(refused(refusal, refusal.ref, refusal.conversation_id))
            return
        match frame:
            case Ping():
                self._out.answer(Pong(ref=frame.ref))
            case Auth():
                self._auth(frame)
            case _:
                self._enqueue(frame)

    def writable(self) -> None:
        self._out.writable()

    def closed(self) -> None:
        self._out.close()
        self._inbox.clear()
        for task in self._tasks:
            task.cancel()
        self._on_closed(self)

    # ------------------------------------------------------------ commands

    def _auth(self, frame: Auth) -> None:
        try:
            principal = self._authenticator.authenticate(frame.token)
        except Refusal as refusal:
            self._out.answer(refused(refusal, frame.ref))
            self._shell.close(CloseCode.UNAUTHORIZED, "get a new token")
            return
        if principal != self._principal:
            self._out.answer(refused(Refusal(ErrorCode.UNAUTHORIZED, "This token is somebody else's."), frame.ref))
            self._shell.close(CloseCode.UNAUTHORIZED, "get a new token")
            return
        self._out.answer(structs.replace(self._welcome(self), ref=frame.ref))

    def _enqueue(self, frame: Command) -> None:
        if isinstance(frame, ChatMessage) and frame.conversation_id is None:
            frame = structs.replace(frame, conversation_id=new_id("c"))
        assert frame.conversation_id is not None
        inbox = self._inbox.get(frame.conversation_id)
        if inbox is None:
            inbox = self._inbox[frame.conversation_id] = deque()
            self._spawn(self._serve(frame.conversation_id, inbox))
        inbox.append(frame)
        self._waiting += 1
        if self._waiting == MAX_WAITING_COMMANDS:
            self._shell.pause_reading()

    async def _serve(self, conversation_id: str, inbox: deque[Command]) -> None:
        """Serves one conversation's commands in order, until none waits."""
        while inbox:
            frame = inbox[0]
            try:
                answer = await self._command(frame, conversation_id)
            except Refusal as refusal:
                answer = refused(refusal, frame.ref, conversation_id)
            except LogUnavailable as problem:
                gone = Refusal(ErrorCode.NOT_FOUND, "The conversation was deleted meanwhile.")
                log_lines.info("command lost its conversation", problem=str(problem))
                answer = refused(gone, frame.ref, conversation_id)
            except Exception:
                log_lines.exception("command failed by a bug", connection_id=self.id)
                bug = Refusal(ErrorCode.INTERNAL, "The gateway failed on this frame. Please try again.")
                answer = refused(bug, frame.ref, conversation_id)
            if answer is not None:
                await self._messages_first(conversation_id)
                self._out.answer(answer)
            inbox.popleft()
            self._waiting -= 1
            if self._waiting == MAX_WAITING_COMMANDS // 2:
                self._shell.resume_reading()
        self._inbox.pop(conversation_id, None)

    async def _command(self, frame: Command, conversation_id: str) -> AnyServerFrame | None:
        """Its direct answer, unless that comes from a cursor or was sent already."""
        key = self._principal.key(conversation_id)
        match frame:
            case ChatMessage():
                return await self._chat_message(frame, conversation_id)
            case Subscribe():
                await self._subscribe(frame)
                return None
            case Unsubscribe():
                await self._unsubscribe(conversation_id)
                return Unsubscribed(conversation_id=conversation_id, ref=frame.ref)
            case Cancel():
                done = await self._router.cancel(key, frame.turn_id)
                return Cancelled(
                    conversation_id=conversation_id, outcome=done.outcome, turn_id=done.turn_id, ref=frame.ref
                )
            case ClientFunctionResult():
                await self._router.answer(key, frame.call_id, frame.result, frame.error)
                return Accepted(conversation_id=conversation_id, call_id=frame.call_id, ref=frame.ref)

    async def _messages_first(self, conversation_id: str) -> None:
        """Answers come in the order of the commands (SPEC.md section 4.4), but those of messages come from a cursor:
        they go out before the next one. A reader that is behind gets them in their place nevertheless."""
        sub = self._out.subscriptions.get(conversation_id)
        if sub is not None and sub.refs:
            with suppress(LogUnavailable):
                await sub.cursor.feed.when_committed(max(sub.refs))
                self._out.flush()

    async def _unsubscribe(self, conversation_id: str) -> None:
        """Nothing of the conversation comes after the answer to this, so what is due to earlier messages comes now."""
        await self._messages_first(conversation_id)
        if (sub := self._out.detach(conversation_id)) is not None:
            for seq, ref in sub.refs.items():
                await self._answer_late(sub.cursor.feed, seq, ref)

    async def _chat_message(self, frame: ChatMessage, conversation_id: str) -> Message | None:
        self._check_room(conversation_id)
        sent = await self._submit(frame, conversation_id)
        if sent is None:
            return None
        feed, done = sent
        sub = self._out.subscriptions.get(conversation_id)
        if sub is not None and sub.cursor.feed is not feed and not sub.cursor.feed.deleted:
            await self._follow_on(sub)  # it stays where it is, in another feed
            sub = self._out.subscriptions.get(conversation_id)
        if sub is None or sub.cursor.feed.deleted:
            if sub is not None:
                self._out.end(sub)
            before = Position(done.seq - 1, ANY_EPOCH)
            sub = self._attach(conversation_id, feed, before)
        if sub.cursor.position.seq >= done.seq or done.seq in sub.refs:
            first = await message_entry(sub.cursor.feed, done.seq)
            return structs.replace(first, ref=frame.ref, duplicate=True)
        sub.refs[done.seq] = frame.ref
        return None

    async def _submit(self, frame: ChatMessage, conversation_id: str) -> tuple[Feed, Acknowledged] | None:
        """As the router's; None when the entry came by meanwhile, and so was the answer."""
        message_id = frame.message_id or new_id("m")
        sent = (conversation_id, message_id)
        self._out.sending[sent] = frame.ref
        try:
            feed, done = await self._router.submit(
                self._principal.key(conversation_id), structs.replace(frame, message_id=message_id)
            )
            if done.duplicate:
                await committed(feed, done.seq)
        except Refusal:
            if sent in self._out.sending:
                raise
            return None  # whatever became of the word: it is in the log
        finally:
            answered = sent not in self._out.sending
            self._out.sending.pop(sent, None)
        return None if answered else (feed, done)

    async def _subscribe(self, frame: Subscribe) -> None:
        conversation_id = frame.conversation_id
        await self._messages_first(conversation_id)
        self._check_room(conversation_id)
        feed = await self._router.feed(self._principal.key(conversation_id))
        if frame.after is None:
            position, snapshot = feed.head(), None
        else:
            position, snapshot = await starting_at(feed, Position(frame.after, frame.epoch))
        head = feed.head()
        after = position.seq if frame.after is None else frame.after
        self._out.answer(
            Subscribed(conversation_id=conversation_id, after=after, head=head.seq, epoch=head.epoch, ref=frame.ref)
        )
        if snapshot is not None:
            self._out.answer(snapshot)
        self._attach(conversation_id, feed, position)

    def _check_room(self, conversation_id: str) -> None:
        most = self._limits.max_conversations_per_connection
        if conversation_id not in self._out.subscriptions and len(self._out.subscriptions) >= most:
            raise Refusal(
                ErrorCode.TOO_MANY_CONVERSATIONS,
                f"This connection follows {most} conversations already. Unsubscribe from some, or open another one.",
            )

    def _attach(self, conversation_id: str, feed: Feed, position: Position) -> Subscription:
        """A new cursor instead of the old one, whose answers that are still due it takes over, unless they were to come
        through a feed that was given up."""
        old = self._out.detach(conversation_id)
        if old is not None and old.cursor.feed.fenced:
            self._out.refuse(old)
        sub = self._out.attach(conversation_id, feed, position)
        for seq, ref in (old.refs if old else {}).items():
            if seq > position.seq:
                sub.refs[seq] = ref
            else:
                self._spawn(self._answer_late(feed, seq, ref))
        return sub

    def _moved(self, sub: Subscription) -> None:
        self._spawn(self._follow_on(sub))

    async def _follow_on(self, sub: Subscription) -> None:
        """Everything after its cursor, then follow: in the feed that has the conversation now. A reader that has seen
        nothing yet was to begin with a message that was refused: it never followed."""
        old = sub.cursor.feed
        conversation_id = old.key.conversation_id
        if sub.cursor.position.epoch == ANY_EPOCH and self._out.subscriptions.get(conversation_id) is sub:
            self._out.refuse(sub)
            self._out.detach(conversation_id)
        while self._out.subscriptions.get(conversation_id) is sub:
            try:
                feed, position, snapshot = await moved(self._router.journal.feeds, old, sub.cursor.position)
            except Refusal:
                await asyncio.sleep(LOG_RETRY_S)
                continue
            if self._out.subscriptions.get(conversation_id) is sub:
                if snapshot is not None:
                    self._out.answer(snapshot)
                self._attach(conversation_id, feed, position)
            return

    async def _answer_late(self, feed: Feed, seq: int, ref: str | None) -> None:
        """The direct answer to a message whose entry this connection's cursor has been moved past."""
        try:
            await committed(feed, seq)
            self._out.answer(structs.replace(await message_entry(feed, seq), ref=ref, duplicate=True))
        except Refusal as refusal:
            self._out.answer(refused(refusal, ref, feed.key.conversation_id))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log_lines.error("a connection failed by a bug", exc_info=problem, connection_id=self.id)
            self._shell.close(CloseCode.INTERNAL, "internal error")
