"""The WebSocket client against a gateway that misbehaves by script: one script a connection, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from protocol.client import (
    AlreadySent,
    Client,
    ClientClosed,
    ClientError,
    Connected,
    ConnectionFailed,
    ConnectionLost,
    OrderError,
    ProofError,
    Reconnecting,
    RequestError,
    Turn,
    Unauthorized,
    Unreachable,
)
from protocol.client.addresses import base_url, websocket_url
from protocol.client.channel import FULL_BYTES
from protocol.codec import JSON, MSGPACK, Codec
from protocol.frames import (
    Accepted,
    AnyServerFrame,
    Cancel,
    Cancelled,
    ChatMessage,
    ClientFunctionResult,
    Deleted,
    Done,
    Error,
    ErrorBody,
    FoldedMessage,
    Goaway,
    Message,
    Metadata,
    Ping,
    Pong,
    Restart,
    Snapshot,
    Subscribe,
    Subscribed,
    Token,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)

AT = Metadata(timestamp=1)
T = TypeVar("T")


def message(sent: ChatMessage, seq: int = 1, turn: str = "t1", **fields: Any) -> Message:
    assert sent.conversation_id is not None
    assert sent.message_id is not None
    return Message(
        conversation_id=sent.conversation_id,
        turn_id=turn,
        seq=seq,
        metadata=AT,
        content=sent.message,
        message_id=sent.message_id,
        **fields,
    )


def token(conversation_id: str, seq: int, content: str, turn: str = "t1", first_seq: int | None = None) -> Token:
    return Token(
        conversation_id=conversation_id, turn_id=turn, seq=seq, metadata=AT, content=content, first_seq=first_seq
    )


def restart(conversation_id: str, seq: int, keep_seq: int, turn: str = "t1") -> Restart:
    return Restart(conversation_id=conversation_id, turn_id=turn, seq=seq, metadata=AT, attempt=2, keep_seq=keep_seq)


def done(conversation_id: str, seq: int, text_length: int, turn: str = "t1") -> Done:
    return Done(
        conversation_id=conversation_id,
        turn_id=turn,
        seq=seq,
        metadata=AT,
        finish_reason="stop",
        usage=None,
        text_length=text_length,
    )


def refused(ref: str | None, code: str = "BUSY", retryable: bool = True) -> Error:
    return Error(error=ErrorBody(code, "No.", retryable), ref=ref)


class Peer:
    """The gateway's side of one connection."""

    def __init__(self, ws: ServerConnection, codec: Codec) -> None:
        self.ws = ws
        self.codec = codec

    async def next(self, kind: type[T]) -> T:
        frame = self.codec.decode_client(await self.ws.recv(decode=False))
        assert isinstance(frame, kind), frame
        return frame

    async def say(self, *frames: AnyServerFrame) -> None:
        for frame in frames:
            await self.ws.send(self.codec.encode(frame), text=not self.codec.binary)

    async def resumed(self) -> Subscribe:
        """Answers a `subscribe`."""
        frame = await self.next(Subscribe)
        after = frame.after or 0
        await self.say(
            Subscribed(conversation_id=frame.conversation_id, after=after, head=after, epoch=frame.epoch, ref=frame.ref)
        )
        return frame

    async def left(self) -> Unsubscribe:
        frame = await self.next(Unsubscribe)
        await self.say(Unsubscribed(conversation_id=frame.conversation_id, ref=frame.ref))
        return frame

    async def cut(self, frame: AnyServerFrame | None = None, at_byte: int = 0) -> None:
        """Breaks the connection within `frame`."""
        if frame is not None:
            payload = self.codec.encode(frame)
            head = bytes([0x81, len(payload)]) if len(payload) < 126 else b"\x81\x7e" + len(payload).to_bytes(2)
            self.ws.transport.write((head + payload)[:at_byte])
            self.ws.transport.close()
        else:
            self.ws.transport.abort()
        await self.ws.wait_closed()

    async def gone(self) -> None:
        """Until the client has left."""
        await self.ws.wait_closed()


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def gateway(
    *scripts: Script,
    codec: Codec = JSON,
    process_request: Callable[[ServerConnection, Request], Response | None] | None = None,
) -> AsyncIterator[str]:
    """Fails when a script does, or when there are more or fewer connections than scripts."""
    waiting = list(scripts)
    problems: list[BaseException] = []

    async def handler(ws: ServerConnection) -> None:
        try:
            script = waiting.pop(0)
            peer = Peer(ws, codec)
            await peer.say(
                Welcome(connection_id="w", protocol=codec.name, heartbeat_s=20, limits={"max_frame_bytes": 65536})
            )
            await script(peer)
        except ConnectionClosed:
            pass
        except BaseException as problem:
            problems.append(problem)
            raise

    async with serve(
        handler, "127.0.0.1", 0, subprotocols=[codec.name], process_request=process_request, compression=None
    ) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/chat"
    if problems:
        raise problems[0]
    assert not waiting, "fewer connections than expected"


def client(url: str, **options: Any) -> Client:
    return Client(url, rand=lambda: 0.0, **options)


async def read(turn: Turn) -> list[AnyServerFrame]:
    return [frame async for frame in turn]


def seqs(frames: list[AnyServerFrame]) -> list[int]:
    """Every entry that the frames stand for."""
    return [
        seq
        for frame in frames
        for seq in range(getattr(frame, "first_seq", None) or getattr(frame, "seq", 0), getattr(frame, "seq", 0) + 1)
    ]


# ---------------------------------------------------------------------------------------------------- one turn


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
async def test_a_turn_from_its_message_to_its_done(codec: Codec) -> None:
    async def script(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        c = sent.conversation_id or ""
        assert (sent.message, bool(c), bool(sent.message_id)) == ("Hello", True, True)
        await peer.say(message(sent, ref=sent.ref), token(c, 2, "Hi "), token(c, 3, "🙂"), done(c, 4, 4))
        await peer.left()
        await peer.gone()

    async with gateway(script, codec=codec) as url, client(url, codec=codec) as it:
        turn = await it.send("Hello")
        assert turn.turn_id == "t1"
        frames = await read(turn)
        assert (turn.text, turn.finish_reason, turn.usage, turn.error) == ("Hi 🙂", "stop", None, None)
        assert isinstance(frames[0], Message)
        assert isinstance(frames[-1], Done)
        assert seqs(frames) == [1, 2, 3, 4]
        assert await turn.wait() == "Hi 🙂"


async def test_many_conversations_share_one_connection() -> None:
    async def script(peer: Peer) -> None:
        sent = [await peer.next(ChatMessage) for _ in range(20)]
        for one in sent:
            await peer.say(message(one, ref=one.ref))
        for seq in range(2, 12):
            for one in sent:
                await peer.say(token(one.conversation_id or "", seq, one.message))
        for one in sent:
            await peer.say(done(one.conversation_id or "", 12, 10 * len(one.message)))
        for _ in sent:
            await peer.left()
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        turns = await asyncio.gather(*(it.send(f"{n} ") for n in range(20)))
        assert await asyncio.gather(*(turn.wait() for turn in turns)) == [f"{n} " * 10 for n in range(20)]


async def test_a_failed_turn_says_why() -> None:
    async def script(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        c = sent.conversation_id or ""
        body = ErrorBody("UPSTREAM_TIMEOUT", "The model is silent.", True)
        await peer.say(
            message(sent), token(c, 2, "Hm"), Error(error=body, conversation_id=c, turn_id="t1", seq=3, metadata=AT)
        )
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        turn = await it.send("Hello")
        assert await turn.wait() == "Hm"
        assert turn.error is not None
        assert (turn.error.code, turn.finish_reason) == ("UPSTREAM_TIMEOUT", None)


# ---------------------------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize("at_byte", [0, 1, 2, 3, 40, 90])
async def test_a_cut_at_any_byte_of_a_frame_is_mended_from_the_cursor(at_byte: int) -> None:
    started: list[ChatMessage] = []

    async def first(peer: Peer) -> None:
        started.append(sent := await peer.next(ChatMessage))
        c = sent.conversation_id or ""
        await peer.say(message(sent), token(c, 2, "one "))
        await peer.cut(token(c, 3, "two "), at_byte)

    async def second(peer: Peer) -> None:
        resume = await peer.resumed()
        c = resume.conversation_id
        assert (c, resume.after, resume.epoch) == (started[0].conversation_id, 2, 0)
        await peer.say(token(c, 4, "two three", first_seq=3), done(c, 5, 13))
        await peer.left()
        await peer.gone()

    events: list[object] = []
    async with gateway(first, second) as url, client(url, on_event=events.append) as it:
        turn = await it.send("count")
        assert seqs(await read(turn)) == [1, 2, 3, 4, 5]
        assert turn.text == "one two three"
    kinds = [type(event) for event in events if isinstance(event, Connected | Reconnecting)]
    assert kinds == [Connected, Reconnecting, Connected]


async def test_a_message_that_nobody_acknowledged_is_sent_again_under_its_ids() -> None:
    seen: list[ChatMessage] = []

    async def first(peer: Peer) -> None:
        seen.append(await peer.next(ChatMessage))
        await peer.cut()

    async def second(peer: Peer) -> None:
        seen.append(sent := await peer.next(ChatMessage))
        await peer.say(message(sent), done(sent.conversation_id or "", 2, 0))
        await peer.gone()

    async with gateway(first, second) as url, client(url) as it:
        await (await it.send("Hello", metadata={"a": 1})).wait()
    assert (seen[0].conversation_id, seen[0].message_id) == (seen[1].conversation_id, seen[1].message_id)
    assert seen[1].metadata == {"a": 1}


async def test_after_a_cut_the_resume_comes_before_the_message_that_is_sent_again() -> None:
    async def first(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        await peer.say(message(sent), token("c", 2, "first"))
        await peer.next(ChatMessage)
        await peer.cut()

    async def second(peer: Peer) -> None:
        assert (await peer.resumed()).after == 2
        again = await peer.next(ChatMessage)
        assert again.message == "second"
        # It had arrived: the subscription brings it in order, and the direct answer is a copy.
        await peer.say(
            message(again, 3, "t2"),
            message(again, 3, "t2", ref=again.ref, duplicate=True),
            done("c", 4, 5),
            token("c", 5, "2", "t2"),
            done("c", 6, 1, "t2"),
        )
        await peer.gone()

    async with gateway(first, second) as url, client(url) as it:
        one = await it.send("first", conversation_id="c")
        two = await it.send("second", conversation_id="c")
        assert seqs(await read(one)) == [1, 2, 4]
        assert seqs(await read(two)) == [3, 5, 6]


async def test_a_hundred_cuts_lose_and_repeat_nothing() -> None:
    text = "Wörter 🙂 und mehr. " * 20
    cuts = 100

    def numbered(number: int) -> Script:
        async def run(peer: Peer) -> None:
            if number == 0:
                await peer.say(message(await peer.next(ChatMessage)))
                at = 1
            else:
                at = (await peer.resumed()).after or 0
            upto = min(at + 3, len(text) + 1) if number < cuts else len(text) + 1
            await peer.say(*(token("c", seq, text[seq - 2]) for seq in range(at + 1, upto + 1)))
            if number < cuts:
                await peer.cut(token("c", upto + 1, "never whole"), number % 40)
            else:
                await peer.say(done("c", len(text) + 2, len(text)))
                await peer.gone()

        return run

    async with gateway(*(numbered(n) for n in range(cuts + 1))) as url, client(url) as it:
        turn = await it.send("write", conversation_id="c")
        frames = await read(turn)
        assert turn.text == text
        assert seqs(frames) == list(range(1, len(text) + 3))
        assert "".join(frame.content for frame in frames if isinstance(frame, Token)) == text


@pytest.mark.parametrize("code", [1001, 1011, 1012, 4408, 4429])
async def test_after_these_close_codes_it_comes_back(code: int) -> None:
    async def first(peer: Peer) -> None:
        await peer.say(message(await peer.next(ChatMessage)))
        await peer.ws.close(code, "later")

    async def second(peer: Peer) -> None:
        assert (await peer.resumed()).after == 1
        await peer.say(done("c", 2, 0))
        await peer.gone()

    async with gateway(first, second) as url, client(url) as it:
        assert await (await it.send("Hello", conversation_id="c")).wait() == ""


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1009])
async def test_after_these_close_codes_everybody_hears_that_it_is_over(code: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(message(await peer.next(ChatMessage)))
        await peer.next(Ping)
        await peer.ws.close(code, "you did wrong")

    async with gateway(script) as url, client(url) as it:
        turn = await it.send("Hello")
        ping = asyncio.create_task(it.ping())
        with pytest.raises(ConnectionFailed, match="you did wrong") as problem:
            await turn.wait()
        assert problem.value.code == code
        with pytest.raises(ClientError):
            await ping
        with pytest.raises(ConnectionFailed):
            await read(turn)
        with pytest.raises(ConnectionFailed):
            await it.send("more")


async def test_goaway_says_when_to_come_back() -> None:
    async def first(peer: Peer) -> None:
        await peer.say(Goaway(reason="a new version", reconnect_after_ms=7))
        await peer.ws.close(1012)

    async def second(peer: Peer) -> None:
        await peer.say(Pong(ref=(await peer.next(Ping)).ref))
        await peer.gone()

    events: list[object] = []
    back = asyncio.Event()

    def note(event: object) -> None:
        events.append(event)
        if event == Connected(again=True):
            back.set()

    async with gateway(first, second) as url, Client(url, rand=lambda: 1.0, on_event=note) as it:
        await back.wait()
        assert await it.ping() >= 0
    assert [event.delay_s for event in events if isinstance(event, Reconnecting)] == [0.007]


# ---------------------------------------------------------------------------------------------------- order and proof


async def test_a_gap_fails_that_conversation_and_no_other() -> None:
    async def script(peer: Peer) -> None:
        bad, good = await peer.next(ChatMessage), await peer.next(ChatMessage)
        await peer.say(message(bad), message(good), token("bad", 3, "x"))
        assert (await peer.left()).conversation_id == "bad"
        await peer.say(token("bad", 4, "ignored"), token("good", 2, "fine"), done("good", 3, 4))
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        bad, good = await asyncio.gather(it.send("a", conversation_id="bad"), it.send("b", conversation_id="good"))
        with pytest.raises(OrderError, match="entry 3 came after entry 1"):
            await read(bad)
        assert await good.wait() == "fine"


async def test_a_text_that_is_too_short_is_no_done() -> None:
    async def script(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        await peer.say(message(sent), token("c", 2, "short"), done("c", 3, 6))
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        turn = await it.send("Hello", conversation_id="c")
        with pytest.raises(ProofError):
            await turn.wait()


async def test_what_is_not_a_frame_ends_the_client_and_an_unknown_type_does_not() -> None:
    async def script(peer: Peer) -> None:
        await peer.ws.send('{"type":"of_the_future","conversation_id":"c"}')
        sent = await peer.next(ChatMessage)
        await peer.say(message(sent))
        await peer.ws.send("[]")
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        turn = await it.send("Hello")
        with pytest.raises(ConnectionFailed):
            await turn.wait()


# ---------------------------------------------------------------------------------------------------- snapshots


def snapshot(seq: int, epoch: int, *messages: FoldedMessage) -> Snapshot:
    return Snapshot(conversation_id="c", seq=seq, epoch=epoch, messages=list(messages), turn=None)


def line(role: str, content: str, status: str, **fields: Any) -> FoldedMessage:
    return FoldedMessage(role=role, content=content, turn_id="t1", status=status, timestamp=1, **fields)  # type: ignore[arg-type]


async def test_a_snapshot_that_knows_the_end_ends_the_turn() -> None:
    async def first(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        await peer.say(message(sent), token("c", 2, "lost"))
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.resumed()
        await peer.say(
            snapshot(
                5,
                9,
                line("user", "Hello", "completed", message_id="m"),
                line("assistant", "whole", "completed", finish_reason="stop"),
            )
        )
        await peer.left()
        await peer.gone()

    async with gateway(first, second) as url, client(url) as it:
        turn = await it.send("Hello", conversation_id="c", message_id="m")
        frames = await read(turn)
        assert isinstance(frames[-1], Snapshot)
        assert (turn.text, turn.finish_reason) == ("whole", "stop")


async def test_what_the_log_has_lost_is_sent_again() -> None:
    async def first(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        await peer.say(message(sent), token("c", 2, "lost"))
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.resumed()
        await peer.say(snapshot(0, 0))
        again = await peer.next(ChatMessage)
        assert again.message_id == "m"
        await peer.say(
            message(again, 1, "t7"), token("c", 2, "found", "t7"), restart("c", 3, 1, "t7"), done("c", 4, 0, "t7")
        )
        await peer.gone()

    async with gateway(first, second) as url, client(url) as it:
        turn = await it.send("Hello", conversation_id="c", message_id="m")
        kinds = [type(frame) for frame in await read(turn)]
        assert kinds == [Message, Token, Snapshot, Message, Token, Restart, Done]
        assert (turn.turn_id, turn.text, turn.finish_reason) == ("t7", "", "stop")


async def test_a_resumption_that_the_gateway_cannot_serve_now_is_tried_again() -> None:
    async def first(peer: Peer) -> None:
        await peer.say(message(await peer.next(ChatMessage)))
        await peer.cut()

    async def second(peer: Peer) -> None:
        for _ in range(3):
            await peer.say(refused((await peer.next(Subscribe)).ref, "OVERLOADED"))
        await peer.resumed()
        await peer.say(done("c", 2, 0))
        await peer.gone()

    async with gateway(first, second) as url, client(url) as it:
        assert await (await it.send("Hello", conversation_id="c")).wait() == ""


# ---------------------------------------------------------------------------------------------------- requests


async def test_refusals_reach_the_one_who_asked() -> None:
    async def script(peer: Peer) -> None:
        chat = await peer.next(ChatMessage)
        await peer.say(refused(chat.ref))
        await peer.left()
        await peer.say(refused((await peer.next(ClientFunctionResult)).ref, "CALL_CLOSED", False))
        await peer.say(refused((await peer.next(Subscribe)).ref, "TOO_MANY_CONVERSATIONS"))
        await peer.left()
        await peer.say(Pong(ref=(await peer.next(Ping)).ref))
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        with pytest.raises(RequestError) as busy:
            await it.send("Hello", on_busy="reject")
        assert (busy.value.code, busy.value.retryable) == ("BUSY", True)
        with pytest.raises(RequestError, match="CALL_CLOSED"):
            await it.function_result("c", "k", result=None)
        with pytest.raises(RequestError, match="TOO_MANY_CONVERSATIONS"):
            await it.subscribe("d")
        assert await it.ping() >= 0
        with pytest.raises(RequestError, match="FRAME_TOO_LARGE"):
            await it.send("x" * 70_000)


async def test_requests_that_may_be_repeated_are_and_others_raise() -> None:
    async def first(peer: Peer) -> None:
        await peer.next(Ping)
        await peer.next(ClientFunctionResult)
        await peer.next(Cancel)
        await peer.next(Cancel)
        await peer.cut()

    async def second(peer: Peer) -> None:
        answer = await peer.next(ClientFunctionResult)
        assert answer.result == {"n": 1}
        await peer.say(Accepted(conversation_id="c", call_id="k", ref=answer.ref))
        cancel = await peer.next(Cancel)
        assert cancel.turn_id == "t1"
        await peer.say(Cancelled(conversation_id="c", outcome="stopped", turn_id="t1", ref=cancel.ref))
        await peer.gone()

    async with gateway(first, second) as url, client(url) as it:
        ping = asyncio.create_task(it.ping())
        result = asyncio.create_task(it.function_result("c", "k", result={"n": 1}))
        named = asyncio.create_task(it.cancel("c", "t1"))
        whatever = asyncio.create_task(it.cancel("c"))
        await result
        assert (await named).outcome == "stopped"
        for task in (ping, whatever):
            with pytest.raises(ConnectionLost):
                await task


async def test_a_cancelled_send_leaves_the_conversation() -> None:
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        arrived.set()
        assert (await peer.left()).conversation_id == sent.conversation_id
        await peer.say(Pong(ref=(await peer.next(Ping)).ref))
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        sending = asyncio.create_task(it.send("Hello"))
        await arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await it.ping()


async def test_the_same_message_id_is_the_same_turn_and_a_late_one_is_told() -> None:
    async def script(peer: Peer) -> None:
        await peer.resumed()
        sent = await peer.next(ChatMessage)
        await peer.say(message(sent), done("c", 2, 0))
        again = await peer.next(ChatMessage)
        await peer.say(message(again, ref=again.ref, duplicate=True))
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        await it.subscribe("c", after=0)
        both = await asyncio.gather(*(it.send("Hello", conversation_id="c", message_id="m") for _ in range(2)))
        assert both[0] is both[1]
        await both[0].wait()
        with pytest.raises(AlreadySent):
            await it.send("Hello", conversation_id="c", message_id="m")


async def test_a_copy_without_a_subscription_is_followed_from_there() -> None:
    async def script(peer: Peer) -> None:
        sent = await peer.next(ChatMessage)
        await peer.say(message(sent, 5, ref=sent.ref, duplicate=True, epoch=3))
        resume = await peer.resumed()
        assert (resume.after, resume.epoch) == (5, 3)
        await peer.say(
            Done(
                conversation_id="c",
                turn_id="t1",
                seq=6,
                epoch=3,
                metadata=AT,
                finish_reason="stop",
                usage=None,
                text_length=0,
            )
        )
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        turn = await it.send("Hello", conversation_id="c")
        assert seqs(await read(turn)) == [5, 6]


async def test_a_conversation_is_entered_anew_while_it_is_being_left() -> None:
    async def script(peer: Peer) -> None:
        first = await peer.next(ChatMessage)
        await peer.say(message(first), done("c", 2, 0))
        leaving = await peer.next(Unsubscribe)
        second = await peer.next(ChatMessage)
        # Frames of the old cursor, which nobody waits for any more, and a gap where nobody read.
        await peer.say(token("c", 3, "?", "other"))
        await peer.say(Unsubscribed(conversation_id="c", ref=leaving.ref))
        await peer.say(message(second, 7, "t2"), token("c", 8, "yes", "t2"), done("c", 9, 3, "t2"))
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        await (await it.send("a", conversation_id="c")).wait()
        assert await (await it.send("b", conversation_id="c")).wait() == "yes"


# ---------------------------------------------------------------------------------------------------- subscriptions


async def test_a_subscription_gives_everything_until_the_conversation_is_deleted() -> None:
    async def script(peer: Peer) -> None:
        asked = await peer.resumed()
        assert (asked.conversation_id, asked.after, asked.epoch) == ("c", 4, 2)
        await peer.say(
            Token(conversation_id="c", turn_id="t", seq=5, epoch=2, metadata=AT, content="a"),
            snapshot(9, 3),
            Deleted(conversation_id="c"),
        )
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        subscription = await it.subscribe("c", after=4, epoch=2)
        assert [type(frame) async for frame in subscription] == [Token, Snapshot, Deleted]


async def test_a_second_subscription_moves_the_cursor_and_ends_the_first() -> None:
    async def script(peer: Peer) -> None:
        await peer.resumed()
        again = await peer.next(Subscribe)
        await peer.say(token("c", 1, "of the old cursor"))
        await peer.say(Subscribed(conversation_id="c", after=2, head=3, epoch=0, ref=again.ref))
        await peer.say(token("c", 3, "of the new one"))
        await peer.left()
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        first = await it.subscribe("c", after=0)
        second = await it.subscribe("c", after=2)
        assert [frame async for frame in first] == []
        frame = await anext(second)
        assert isinstance(frame, Token)
        assert frame.content == "of the new one"
        await it.unsubscribe("c")
        assert [frame async for frame in second] == []


async def test_the_cursor_cannot_be_moved_under_a_turn() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(message(await peer.next(ChatMessage)))
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        await it.send("Hello", conversation_id="c")
        with pytest.raises(ClientError, match="subscribe before sending"):
            await it.subscribe("c", after=0)


async def test_a_subscription_that_nobody_reads_pauses_and_goes_on_from_the_log() -> None:
    piece = "x" * 60_000
    pieces = 40

    async def script(peer: Peer) -> None:
        at = (await peer.resumed()).after or 0
        pauses = 0
        while at < pieces:
            # Write ahead as long as the client allows, like a gateway that follows.
            leaving = asyncio.create_task(peer.next(Unsubscribe))
            for seq in range(at + 1, pieces + 1):
                await peer.say(token("c", seq, piece))
            if not done_reading.is_set():
                gone = await leaving
                pauses += 1
                await peer.say(Unsubscribed(conversation_id="c", ref=gone.ref))
                paused.set()
                at = (await peer.resumed()).after or 0
                if at + FULL_BYTES // len(piece) >= pieces:
                    done_reading.set()
            else:
                leaving.cancel()
                break
        assert pauses >= 2
        await peer.gone()

    paused, done_reading = asyncio.Event(), asyncio.Event()
    async with gateway(script) as url, client(url) as it:
        subscription = await it.subscribe("c", after=0)
        await paused.wait()
        assert FULL_BYTES <= subscription.inbox.size_bytes < FULL_BYTES + len(piece) + 1
        got: list[int] = []
        while len(got) < pieces:
            got += seqs([await anext(subscription)])
        assert got == list(range(1, pieces + 1))


async def test_a_turn_that_nobody_reads_keeps_its_answer_merged() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(message(await peer.next(ChatMessage)))
        await peer.say(*(token("c", seq, "ab") for seq in range(2, 2002)), done("c", 2002, 4000))
        await peer.left()
        await peer.gone()

    async with gateway(script) as url, client(url) as it:
        turn = await it.send("Hello", conversation_id="c")
        await turn.inbox.ended.wait()
        frames = await read(turn)
        assert len(frames) <= 12
        assert seqs(frames) == list(range(1, 2003))
        assert "".join(frame.content for frame in frames if isinstance(frame, Token)) == turn.text == "ab" * 2000


# ---------------------------------------------------------------------------------------------------- who and where


async def test_nobody_there_is_said_at_once() -> None:
    with pytest.raises(Unreachable, match="no gateway answers"):
        async with client("ws://127.0.0.1:1/chat"):
            pass


@pytest.mark.parametrize(
    ("status", "error"), [(401, Unauthorized), (403, ConnectionFailed), (404, ConnectionFailed), (503, Unreachable)]
)
async def test_a_refused_handshake_is_told_apart(status: int, error: type[Exception]) -> None:
    def refuse(ws: ServerConnection, request: Request) -> Response:
        return ws.respond(status, "No.\n")

    async with gateway(process_request=refuse) as url:
        with pytest.raises(error):
            async with client(url):
                pass


async def test_an_old_token_is_replaced_by_a_fresh_one_or_the_client_gives_up() -> None:
    tokens: list[str | None] = []

    def note(ws: ServerConnection, request: Request) -> None:
        tokens.append(request.headers.get("Authorization"))

    async def old(peer: Peer) -> None:
        await peer.say(message(await peer.next(ChatMessage)))
        await peer.ws.close(4401, "expired")

    async def fresh(peer: Peer) -> None:
        await peer.resumed()
        await peer.say(done("c", 2, 0))
        await peer.gone()

    async def still_bad(peer: Peer) -> None:
        await peer.ws.close(4401, "expired")

    counter = iter(range(10))

    async def provider() -> str:
        return f"token-{next(counter)}"

    async with gateway(old, fresh, process_request=note) as url, client(url, token=provider) as it:
        await (await it.send("Hello", conversation_id="c")).wait()
    assert tokens == ["Bearer token-0", "Bearer token-1"]

    async with gateway(old) as url, client(url, token="fixed") as it:
        with pytest.raises(Unauthorized):
            await (await it.send("Hello", conversation_id="c")).wait()

    async with gateway(old, still_bad) as url, client(url, token=provider) as it:
        with pytest.raises(Unauthorized):
            await (await it.send("Hello", conversation_id="c")).wait()


async def test_closing_ends_iterators_and_waits() -> None:
    async def script(peer: Peer) -> None:
        await peer.resumed()
        await peer.say(message(await peer.next(ChatMessage)))
        await peer.gone()

    async with gateway(script) as url:
        async with client(url) as it:
            subscription = await it.subscribe("d", after=0)
            turn = await it.send("Hello", conversation_id="c")
            waiting = asyncio.create_task(turn.wait())
            silent = asyncio.create_task(it.send("never answered"))
            listening = asyncio.create_task(anext(subscription, None))
            await anext(aiter(turn))
        assert await listening is None
        assert await read(turn) == []
        for task in (waiting, silent):
            with pytest.raises(ClientClosed):
                await task
        with pytest.raises(ClientClosed):
            await it.ping()
        await it.aclose()


@pytest.mark.parametrize(
    ("typed", "ws", "http"),
    [
        ("http://h:8080", "ws://h:8080/chat", "http://h:8080"),
        ("ws://h:8080/chat", "ws://h:8080/chat", "http://h:8080"),
        ("wss://h/chat/", "wss://h/chat", "https://h"),
        ("https://h/behind/", "wss://h/behind/chat", "https://h/behind"),
        ("127.0.0.1:8080", "ws://127.0.0.1:8080/chat", "http://127.0.0.1:8080"),
        ("ws://h/chat?ticket=1", "ws://h/chat?ticket=1", "http://h"),
    ],
)
def test_one_address_serves_both_kinds_of_endpoint(typed: str, ws: str, http: str) -> None:
    assert (websocket_url(typed), base_url(typed)) == (ws, http)


@pytest.mark.parametrize("typed", ["ftp://h", "http://", ""])
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="isn't the address of a gateway"):
        websocket_url(typed)
