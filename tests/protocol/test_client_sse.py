"""The SSE and HTTP client against a server that misbehaves by script: one script a request, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.client import (
    ConnectionFailed,
    OrderError,
    ProofError,
    RequestError,
    Unauthorized,
    Unreachable,
    attach,
    cancel_turn,
    chat,
    delete_conversation,
    get_conversation,
    send_function_result,
    stream_chat,
)
from protocol.codec import JSON, format_cursor
from protocol.frames import (
    AnyServerFrame,
    Deleted,
    Done,
    Error,
    ErrorBody,
    FoldedMessage,
    Message,
    Metadata,
    Restart,
    Snapshot,
    Token,
)
from protocol.sse import HEARTBEAT, event

AT = Metadata(timestamp=1)


def message(seq: int = 1, turn: str = "t1", message_id: str = "m") -> Message:
    return Message(conversation_id="c", turn_id=turn, seq=seq, metadata=AT, content="?", message_id=message_id)


def token(seq: int, content: str, turn: str = "t1", first_seq: int | None = None) -> Token:
    return Token(conversation_id="c", turn_id=turn, seq=seq, metadata=AT, content=content, first_seq=first_seq)


def done(seq: int, text_length: int, turn: str = "t1") -> Done:
    return Done(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        metadata=AT,
        finish_reason="stop",
        usage=None,
        text_length=text_length,
    )


def events(*frames: AnyServerFrame) -> bytes:
    return b"".join(
        event(JSON.encode(frame), format_cursor(frame.seq, frame.epoch) if hasattr(frame, "seq") else None)
        for frame in frames
    )


@dataclass
class Asked:
    """One request, and the way to answer it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    writer: asyncio.StreamWriter

    def head(self, status: int, *headers: str) -> None:
        self.writer.write("\r\n".join([f"HTTP/1.1 {status} -", *headers, "Connection: close", "", ""]).encode())

    def answer(self, status: int, content: object = None, *headers: str) -> None:
        body = b"" if content is None else msgspec.json.encode(content)
        self.head(status, f"Content-Length: {len(body)}", "Content-Type: application/json", *headers)
        self.writer.write(body)

    def refuse(self, status: int, code: str, *headers: str, retryable: bool = False) -> None:
        self.answer(status, {"error": {"code": code, "message": "No.", "retryable": retryable}}, *headers)

    def stream(self, data: bytes, *, upto: int | None = None) -> None:
        """A chunked event stream; `upto`: cut within it."""
        whole = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (data[:7], data[7:]) if part)
        self.head(200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        self.writer.write(whole + b"0\r\n\r\n" if upto is None else whole[:upto])


Script = Callable[[Asked], None]


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, target, _ = first.split()
    query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
    content = msgspec.json.decode(body) if body else None
    return Asked(method, urlsplit(target).path, query, headers, content, writer)


@asynccontextmanager
async def gateway(*scripts: Script) -> AsyncIterator[str]:
    waiting, problems = list(scripts), list[BaseException]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            waiting.pop(0)(await read_request(reader, writer))
            await writer.drain()
        except BaseException as problem:  # noqa: BLE001  # raised again where the test sees it
            problems.append(problem)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
    if problems:
        raise problems[0]
    assert not waiting, "fewer requests than expected"


def asking(url: str, **fields: Any) -> Any:
    return stream_chat(url, "?", conversation_id="c", message_id="m", rand=lambda: 0.0, **fields)


def plays(*frames: AnyServerFrame, upto: int | None = None, after: str | None = None, posted: bool = False) -> Script:
    """Checks that it is the right request, and streams."""

    def script(asked: Asked) -> None:
        assert asked.path == "/api/chat/stream"
        if posted:
            assert (asked.method, asked.body["message_id"], asked.body["message"]) == ("POST", "m", "?")
        else:
            assert (asked.method, asked.query.get("conversation_id"), asked.query.get("after")) == ("GET", "c", after)
        asked.stream(HEARTBEAT + events(*frames), upto=upto)

    return script


# ---------------------------------------------------------------------------------------------------- one turn


async def test_a_turn_over_post() -> None:
    def script(asked: Asked) -> None:
        assert asked.headers["authorization"] == "Bearer secret"
        assert asked.body == {
            "type": "chat_message",
            "message": "?",
            "conversation_id": "c",
            "message_id": "m",
            "model": "demo",
        }
        asked.stream(events(message(4), token(5, "Hi "), token(6, "🙂"), done(7, 4)))

    async with gateway(script) as url:
        stream = asking(url, model="demo", token="secret")
        assert [type(frame) async for frame in stream] == [Message, Token, Token, Done]
        assert (stream.text, stream.turn_id, stream.finish_reason, stream.error) == ("Hi 🙂", "t1", "stop", None)


async def test_the_rest_of_another_turn_passes_by_unseen() -> None:
    frames = (message(4), token(5, "other", "t0"), done(6, 100, "t0"), token(7, "own"), done(8, 3))
    async with gateway(plays(*frames, posted=True)) as url:
        stream = asking(url)
        assert [frame.turn_id async for frame in stream] == ["t1"] * 3
        assert stream.text == "own"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 700))
async def test_a_cut_at_any_byte_is_resumed_from_the_cursor(at: int) -> None:
    log: list[AnyServerFrame] = [message(), *(token(seq, "ä🙂"[seq % 2]) for seq in range(2, 9)), done(9, 7)]
    requests: list[str] = []

    def first(asked: Asked) -> None:
        requests.append(asked.method)
        asked.stream(events(*log), upto=at)

    def again(asked: Asked) -> None:
        requests.append(asked.method)
        after = int(asked.query.get("after", 0))
        assert asked.method == ("GET" if after else "POST")
        asked.stream(events(*log[after:]))

    async with gateway(first, again) as url:
        stream = asking(url)
        frames = [frame async for frame in stream]
        assert [frame.seq for frame in frames] == list(range(1, 10))
        assert stream.text == "".join("ä🙂"[seq % 2] for seq in range(2, 9))


async def test_a_restart_and_a_merged_slice_after_a_cut() -> None:
    first = events(message(), token(2, "lost "))
    restart = Restart(conversation_id="c", turn_id="t1", seq=4, epoch=5, metadata=AT, attempt=2, keep_seq=1)

    def second(asked: Asked) -> None:
        assert asked.query["after"] == "2"
        asked.stream(events(token(3, "words"), restart), upto=10_000)

    def third(asked: Asked) -> None:
        assert asked.query["after"] == "4.5"
        end = msgspec.structs.replace(done(9, 5), epoch=5)
        asked.stream(events(msgspec.structs.replace(token(8, "found", first_seq=5), epoch=5), end))

    async with gateway(lambda asked: asked.stream(first, upto=10_000), second, third) as url:
        stream = asking(url)
        assert await stream.wait() == "found"


async def test_what_was_posted_without_an_answer_is_posted_again() -> None:
    def silent(asked: Asked) -> None:
        assert asked.method == "POST"

    async with gateway(silent, plays(message(), done(2, 0), posted=True)) as url:
        assert await asking(url).wait() == ""


async def test_a_message_that_the_log_lost_is_posted_again() -> None:
    gone = Snapshot(conversation_id="c", seq=0, epoch=0, messages=[], turn=None)
    async with gateway(
        plays(message(3), token(4, "lost"), upto=10_000, posted=True),
        plays(gone, after="4"),
        plays(message(1, "t7"), token(2, "found", "t7"), done(3, 5, "t7"), posted=True),
    ) as url:
        stream = asking(url)
        assert await stream.wait() == "found"
        assert stream.turn_id == "t7"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_a_snapshot_may_tell_the_end(status: str) -> None:
    ending: dict[str, Any] = {
        "completed": {"finish_reason": "stop"},
        "cancelled": {"finish_reason": "cancelled"},
        "failed": {"error": ErrorBody("NODE_LOST", "Gone.", True)},
    }[status]
    common: dict[str, Any] = {"turn_id": "t1", "status": status, "timestamp": 1}
    lines = [
        FoldedMessage(role="user", content="?", message_id="m", **common),
        FoldedMessage(role="assistant", content="all", **common, **ending),
    ]
    snapshot = Snapshot(conversation_id="c", seq=9, epoch=3, messages=lines, turn=None)
    async with gateway(plays(message(), upto=10_000, posted=True), plays(snapshot, after="1")) as url:
        stream = asking(url)
        assert await stream.wait() == "all"
        assert (stream.finish_reason, stream.error) == (ending.get("finish_reason"), ending.get("error"))


async def test_a_deleted_conversation_ends_the_turn() -> None:
    async with gateway(plays(message(), Deleted(conversation_id="c"), posted=True)) as url:
        stream = asking(url)
        assert [type(frame) async for frame in stream] == [Message, Deleted]
        assert stream.finish_reason == "cancelled"


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ((message(), token(3, "x")), OrderError),
        ((message(), token(2, "x"), token(2, "x")), OrderError),
        ((token(2, "x"),), OrderError),
        ((message(), token(2, "x"), done(3, 2)), ProofError),
        ((message(), Error(error=ErrorBody("INTERNAL", "Oh.", True))), RequestError),
    ],
)
async def test_a_stream_that_is_not_whole_raises(frames: tuple[AnyServerFrame, ...], error: type[Exception]) -> None:
    async with gateway(plays(*frames, posted=True)) as url:
        with pytest.raises(error):
            await asking(url).wait()


async def test_a_stream_of_something_else_raises() -> None:
    async with gateway(lambda asked: asked.stream(b"data: <html>\n\n")) as url:
        with pytest.raises(ConnectionFailed):
            await asking(url).wait()


async def test_leaving_early_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await read_request(reader, writer)
        asked.head(200, "Content-Type: text/event-stream")
        writer.write(events(message()))
        assert await reader.read() == b""
        closed.set()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        async with asking(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as stream:
            assert isinstance(await anext(stream), Message)
        await closed.wait()


# ---------------------------------------------------------------------------------------------------- refusals


async def test_a_refusal_before_the_stream_is_an_error_and_not_tried_again() -> None:
    async with gateway(lambda asked: asked.refuse(429, "RATE_LIMITED", "Retry-After: 3", retryable=True)) as url:
        with pytest.raises(RequestError) as problem:
            await asking(url).wait()
        assert (problem.value.code, problem.value.retryable, problem.value.retry_after_s) == ("RATE_LIMITED", True, 3)


async def test_a_refused_resumption_is_tried_again_when_that_can_help() -> None:
    async with gateway(
        plays(message(), upto=10_000, posted=True),
        lambda asked: asked.refuse(503, "OVERLOADED", "Retry-After: 0", retryable=True),
        plays(done(2, 0), after="1"),
    ) as url:
        assert await asking(url).wait() == ""
    async with gateway(plays(message(), upto=10_000, posted=True), lambda asked: asked.refuse(404, "NOT_FOUND")) as url:
        with pytest.raises(RequestError, match="NOT_FOUND"):
            await asking(url).wait()
    async with gateway(plays(message(), upto=10_000, posted=True), lambda asked: asked.answer(204)) as url:
        with pytest.raises(OrderError, match="its end never came"):
            await asking(url).wait()


async def test_nobody_there_is_said_at_once() -> None:
    with pytest.raises(Unreachable):
        await asking("http://127.0.0.1:1").wait()
    with pytest.raises(Unreachable):
        await chat("http://127.0.0.1:1", "?")


# ---------------------------------------------------------------------------------------------------- attach


async def collect(frames: AsyncIterator[AnyServerFrame]) -> list[int]:
    return [getattr(frame, "seq", 0) async for frame in frames]


async def test_attaching_follows_all_open_turns_across_cuts() -> None:
    async with gateway(
        plays(message(4), message(5, "t2", "m2"), token(6, "a"), upto=10_000),
        plays(done(7, 1), token(8, "b", "t2"), after="6"),  # ends as if well, but a turn is open
        plays(done(9, 1, "t2"), after="8"),
    ) as url:
        assert await collect(attach(url, "c", rand=lambda: 0.0)) == [4, 5, 6, 7, 8, 9]


async def test_attaching_ends_where_nothing_is_open() -> None:
    async with gateway(lambda asked: asked.answer(204)) as url:
        assert await collect(attach(url, "c", 7, epoch=2)) == []
    async with gateway(lambda asked: asked.refuse(404, "NOT_FOUND")) as url:
        with pytest.raises(RequestError, match="NOT_FOUND"):
            await collect(attach(url, "c"))
    async with gateway(plays(Deleted(conversation_id="c"), after="3.2")) as url:
        assert await collect(attach(url, "c", 3, epoch=2)) == [0]
    over = Snapshot(conversation_id="c", seq=8, epoch=1, messages=[], turn=None)
    async with gateway(plays(over, after="3")) as url:
        assert await collect(attach(url, "c", 3)) == [8]


# ---------------------------------------------------------------------------------------------------- endpoints


async def test_every_endpoint_is_asked_as_the_contract_says() -> None:
    seen: list[tuple[str, str, Any]] = []

    def answering(status: int, content: object) -> Script:
        def script(asked: Asked) -> None:
            seen.append((asked.method, asked.path, asked.body))
            asked.answer(status, content)

        return script

    conversation = {
        "conversation_id": "c",
        "seq": 3,
        "epoch": 0,
        "messages": [{"role": "user", "content": "?", "turn_id": "t1", "status": "running", "timestamp": 1}],
        "turn": {"turn_id": "t1", "status": "running", "message_id": "m", "seq": 1},
    }
    async with gateway(
        answering(200, {"reply": "Hi"}),
        answering(200, conversation),
        answering(204, None),
        answering(200, {"outcome": "stopped", "turn_id": "t1"}),
        answering(200, {"accepted": True}),
        answering(200, {"accepted": True}),
    ) as url:
        assert await chat(url, "?", model="demo") == {"reply": "Hi"}
        read = await get_conversation(url, "c")
        assert (read.seq, read.messages[0].content, read.turn and read.turn.turn_id) == (3, "?", "t1")
        await delete_conversation(url, "c")
        assert (await cancel_turn(url, "c", "t1"))["outcome"] == "stopped"
        await send_function_result(url, "c", "k", result=None)
        await send_function_result(url, "c", "k", error="broken")
        with pytest.raises(ValueError, match="exactly one"):
            await send_function_result(url, "c", "k")
    assert seen == [
        ("POST", "/api/chat", {"message": "?", "model": "demo"}),
        ("GET", "/api/conversations/c", None),
        ("DELETE", "/api/conversations/c", None),
        ("POST", "/api/conversations/c/cancel", {"turn_id": "t1"}),
        ("POST", "/api/conversations/c/function_results", {"call_id": "k", "result": None}),
        ("POST", "/api/conversations/c/function_results", {"call_id": "k", "error": "broken"}),
    ]


async def test_a_refusal_is_an_error_whoever_speaks_it() -> None:
    async with gateway(lambda asked: asked.refuse(401, "UNAUTHORIZED")) as url:
        with pytest.raises(Unauthorized):
            await get_conversation(url, "c")

    def proxy(asked: Asked) -> None:
        asked.head(502, "Content-Length: 6")
        asked.writer.write(b"<html>")

    async with gateway(proxy) as url:
        with pytest.raises(RequestError) as problem:
            await get_conversation(url, "c")
        assert (problem.value.code, problem.value.retryable) == ("UPSTREAM_UNAVAILABLE", True)
