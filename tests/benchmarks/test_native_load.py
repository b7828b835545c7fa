"""The load client against a server that breaks its promises, and against the relay."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import orjson
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Response

from benchmarks.compare.entrants import ENTRANTS
from benchmarks.native.run import Load, LoadFailedError, load, running_upstream

pytestmark = pytest.mark.usefixtures("native")
Answer = Callable[[ServerConnection, dict[str, Any]], Awaitable[None]]
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
WORDS = ("--mode", "ws", "--ramp", "0.01", "--once", "--seconds", "5")


def stamp(ago_s: float = 0.0) -> str:
    """As the generator's: `@` and microseconds modulo 2**30 in base 64."""
    us = int((time.monotonic() - ago_s) * 1e6) % (1 << 30)
    return "@" + "".join(DIGITS[us >> shift & 63] for shift in (24, 18, 12, 6, 0))


@asynccontextmanager
async def server(answer: Answer, **options: Any) -> AsyncIterator[int]:
    async def handle(connection: ServerConnection) -> None:
        async for message in connection:
            asked = orjson.loads(message)
            assert asked["type"] in {"chat_message", "subscribe"}
            await answer(connection, asked)

    async with serve(handle, "127.0.0.1", 0, compression=None, **options) as running:
        yield next(iter(running.sockets)).getsockname()[1]


def frame(asked: dict[str, Any], **fields: Any) -> str:
    return orjson.dumps({"conversation_id": asked["conversation_id"], **fields}).decode()


async def run(answer: Answer, *words: str) -> Load:
    async with server(answer) as port:
        return await load(port, [*WORDS, *words])


def scripted(*frames: dict[str, Any]) -> Answer:
    async def answer(connection: ServerConnection, asked: dict[str, Any]) -> None:
        for fields in frames:
            await connection.send(frame(asked, **fields))

    return answer


def token(seq: int, content: str = "word", **fields: Any) -> dict[str, Any]:
    return {"type": "token", "seq": seq, "content": content, **fields}


def done(seq: int, **fields: Any) -> dict[str, Any]:
    return {"type": "done", "seq": seq, "turn_id": "t", **fields}


MESSAGE = {"type": "message", "seq": 1, "content": "q"}


@pytest.mark.parametrize(
    ("frames", "gaps", "duplicates", "wrong_length"),
    [
        ([MESSAGE, token(2), token(3), done(4, text_length=8)], 0, 0, 0),
        ([MESSAGE, token(5, first_seq=2), done(6, text_length=4)], 0, 0, 0),
        ([MESSAGE, token(3), done(4)], 1, 0, 0),
        ([token(2), done(3)], 1, 0, 0),
        ([MESSAGE, token(5, first_seq=3), done(7)], 2, 0, 0),
        ([MESSAGE, token(2), token(2), done(3)], 0, 1, 0),
        ([MESSAGE, token(2), token(3, first_seq=2), done(4)], 0, 1, 0),
        ([MESSAGE, token(2), done(3, text_length=5)], 0, 0, 1),
        ([MESSAGE, token(2, 'é"\\\n\u0001👩‍👩‍👧'), done(3, text_length=10)], 0, 0, 0),
        ([MESSAGE, token(2), {"type": "restart", "seq": 3, "keep_seq": 1}, token(4), done(5, text_length=4)], 0, 0, 0),
        ([MESSAGE, {"type": "snapshot", "seq": 9, "messages": [{"seq": 3}]}, token(10), done(11)], 0, 0, 0),
    ],
)
async def test_broken_order_is_seen(
    frames: list[dict[str, Any]], gaps: int, duplicates: int, wrong_length: int
) -> None:
    seen = await run(scripted(*frames), "--connections", "2", "--conversations", "3")
    assert (seen.gaps, seen.duplicates, seen.wrong_length) == (6 * gaps, 6 * duplicates, 6 * wrong_length)
    assert seen.answered == 6
    assert bool(seen.problems()) == bool(gaps or duplicates or wrong_length)


async def test_conversations_of_a_connection_are_kept_apart() -> None:
    async def answer(connection: ServerConnection, asked: dict[str, Any]) -> None:
        async def slowly() -> None:
            for fields in (MESSAGE, token(2), token(3), done(4, text_length=8)):
                await connection.send(frame(asked, **fields))
                await asyncio.sleep(0.01)

        tasks.add(asyncio.create_task(slowly()))

    tasks: set[asyncio.Task[None]] = set()
    seen = await run(answer, "--conversations", "20")
    assert seen.problems() == []
    assert seen.all_done == seen.all_asked == 20


async def test_delays_are_read_from_stamps_also_of_a_merged_frame() -> None:
    ages_s = (0.002, 0.05, 0.9, 7.0)

    async def answer(connection: ServerConnection, asked: dict[str, Any]) -> None:
        text = "".join(f"{stamp(age_s)} word" for age_s in ages_s)
        await connection.send(frame(asked, type="token", content=f"{text} @home"))
        await connection.send(frame(asked, type="done"))

    seen = await run(answer)
    assert seen.tokens == 4
    assert seen.frames == 1
    for (value_us, _), age_s in zip(seen.added.counts, ages_s, strict=True):
        assert 1e6 * age_s * 0.999 <= value_us <= 1e6 * age_s * 1.001 + 200_000


async def test_frames_of_any_length_and_spacing_are_read() -> None:
    """Headers of 2, 4 and 10 bytes, and JSON with spaces, its members in any order."""
    lengths = (1, 100, 126, 65_535, 65_536, 300_000)

    async def answer(connection: ServerConnection, asked: dict[str, Any]) -> None:
        for length in lengths:
            text = "x" * length
            await connection.send(
                f'{{ "content" : "{text}", "nested": {{"type": "done"}},\n "type": "token" , '
                f'"conversation_id": "{asked["conversation_id"]}"}}'
            )
        await connection.ping()
        await connection.send(frame(asked, type="done", text_length=sum(lengths)))

    seen = await run(answer)
    assert seen.tokens == len(lengths)
    assert seen.problems() == []


async def test_every_question_may_be_in_a_new_conversation() -> None:
    asked_in: list[str] = []

    async def answer(connection: ServerConnection, asked: dict[str, Any]) -> None:
        asked_in.append(asked["conversation_id"])
        for fields in (MESSAGE, token(2), done(3)):
            await connection.send(frame(asked, **fields))

    async with server(answer) as port:
        words = ("--mode", "ws", "--fresh", "--conversations", "2", "--ramp", "0", "--warmup", "0", "--seconds", "0.2")
        seen = await load(port, words)
    assert seen.done > 4
    assert seen.problems() == []
    assert len(asked_in) == len(set(asked_in))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"type": "error", "turn_id": "t", "error": {"code": "STREAM_ERROR", "message": "x", "retryable": True}},
         "STREAM_ERROR"),
        ({"type": "error", "turn_id": "t", "error": "words"}, "ERROR"),
    ],
)  # fmt: skip
async def test_errors_are_counted_by_code(error: dict[str, Any], code: str) -> None:
    seen = await run(scripted(error), "--connections", "3")
    assert seen.errors == {code: 3}


async def test_a_refused_handshake_and_a_lost_connection_are_told() -> None:
    def refuse(connection: ServerConnection, _: Any) -> Response:
        return connection.respond(503, "no")

    async with server(scripted(), process_request=refuse) as port:
        assert (await load(port, [*WORDS, "--connections", "2"])).errors == {"HTTP_503": 2}

    async def leave(connection: ServerConnection, _: dict[str, Any]) -> None:
        await connection.close(1012)

    assert (await run(leave)).errors == {"CLOSED_1012": 1}


async def test_a_server_that_ends_meanwhile_is_told() -> None:
    """Its CPU time would be negative."""
    process = await asyncio.create_subprocess_exec("sleep", "60")

    async def answer(connection: ServerConnection, asked: dict[str, Any]) -> None:
        process.kill()
        await process.wait()
        await connection.send(frame(asked, type="done"))

    async with server(answer) as port:
        seen = await load(port, WORDS, pids=[process.pid])
    assert seen.errors == {"PROCESS_ENDED": 1}
    assert seen.cpu_s == [0]


async def test_nobody_there_is_told() -> None:
    async with server(scripted()) as port:
        pass
    assert (await load(port, WORDS)).errors == {"CONNECTION_REFUSED": 1}


async def test_what_it_doesnt_understand_ends_it() -> None:
    with pytest.raises(LoadFailedError, match="--mode"):
        await load(1, ["--mode", "smoke"])


async def test_the_relay_passes_everything_on_at_a_floor_of_frames() -> None:
    frames = {}
    async with running_upstream() as upstream:
        for name in ("relay", "relay-merge", "relay-batch"):
            async with ENTRANTS[name].start(upstream.url, 0) as running:
                words = ["--connections", "3", "--conversations", "4", "--message", "tokens=50 rate=500 stamp=1"]
                seen = await load(running.port, [*WORDS, *words], pids=running.pids())
            assert seen.problems() == []
            assert seen.tokens == 12 * 50
            assert sum(seen.cpu_s) > 0
            frames[name] = seen.frames
    assert frames["relay"] == 12 * 50
    assert frames["relay-batch"] < 12 * 40


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
async def test_event_streams_are_read_however_they_are_cut(ending: str) -> None:
    """Chunks of HTTP end anywhere: within an event, within a character, within the chunk's own line."""
    events = [token(2, "é👩‍👩‍👧"), token(3), done(4, text_length=10)]
    text = "".join(f"id: 1{ending}data: {orjson.dumps(e).decode()}{ending}{ending}" for e in events).encode()
    cuts = [0, 1, 7, 8, *range(20, len(text), 13), len(text)]
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body

    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        asked = orjson.loads(await reader.readexactly(int(length[1])))
        assert asked["message"]
        with suppress(ConnectionError):  # it leaves as soon as it has heard enough
            for at in range(0, len(response), 5):
                writer.write(response[at : at + 5])
                await writer.drain()
                await asyncio.sleep(0)
            await reader.read()
            writer.close()
            await writer.wait_closed()
        left.set()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as running:
        port = running.sockets[0].getsockname()[1]
        words = ["--mode", "sse", "--path", "/x", "--ramp", "0", "--once", "--seconds", "5"]
        seen = await load(port, words)
        await left.wait()
    assert seen.tokens == 2
    assert (seen.gaps, seen.duplicates, seen.wrong_length) == (1, 0, 0)
