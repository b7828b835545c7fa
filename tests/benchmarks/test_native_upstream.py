"""The native generator, read by the real SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from benchmarks.native.run import NativeUpstream, running_upstream

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
async def upstream() -> AsyncIterator[NativeUpstream]:
    async with running_upstream(None, "tokens=3") as running:
        yield running


@pytest.fixture
async def sdk(upstream: NativeUpstream) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=upstream.url, api_key="none", max_retries=0) as client:
        yield client


async def ask(sdk: AsyncOpenAI, question: str, **more: Any) -> list[ChatCompletionChunk]:
    messages: Any = [{"role": "system", "content": "tokens=9"}, {"role": "user", "content": question}]
    stream: Any = await sdk.chat.completions.create(model="m", messages=messages, stream=True, **more)
    return [chunk async for chunk in stream]


def texts(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]


@pytest.mark.parametrize(
    ("question", "count", "size"),
    [
        ("tokens=1", 1, 6),
        ("tokens=7 size=3", 7, 3),
        ("tokens=2 size=4096", 2, 4096),
        ("tokens=5000 rate=0 size=12", 5000, 12),
        ("tokens=20 rate=500", 20, 6),
        ("say it with other words", 3, 6),
        ('an \\ escaped " one tokens=2', 2, 6),
        ("tokens=0", 0, 0),
    ],
)
async def test_a_question_is_answered_as_it_asks(sdk: AsyncOpenAI, question: str, count: int, size: int) -> None:
    chunks = await ask(sdk, question)
    assert [len(text) for text in texts(chunks)] == [size] * count
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_when_asked_for(sdk: AsyncOpenAI) -> None:
    *others, last = await ask(sdk, "tokens=4", stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 4


async def test_parts_of_a_message_and_long_histories_are_read(sdk: AsyncOpenAI) -> None:
    history = [{"role": "user", "content": "tokens=9 " + "x" * 200_000}, {"role": "assistant", "content": "tokens=9"}]
    question = {"role": "user", "content": [{"type": "text", "text": "tokens=5"}]}
    messages: Any = [*history, question]
    stream: Any = await sdk.chat.completions.create(model="m", messages=messages, stream=True)
    assert len(texts([chunk async for chunk in stream])) == 5


async def test_a_rate_is_kept_and_a_delay_comes_before_it(sdk: AsyncOpenAI) -> None:
    began = time.monotonic()
    stream: Any = await sdk.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "tokens=21 rate=100 delay=0.2 hold=0.1"}], stream=True
    )
    times = [time.monotonic() - began async for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert times[0] >= 0.2
    assert times[-1] - times[0] >= 0.19
    assert time.monotonic() - began >= 0.5


async def test_many_streams_run_side_by_side_on_kept_connections(sdk: AsyncOpenAI, upstream: NativeUpstream) -> None:
    for _ in range(2):
        answers = await asyncio.gather(*(ask(sdk, f"tokens={n} rate=200") for n in range(1, 40)))
        assert [len(texts(chunks)) for chunks in answers] == list(range(1, 40))
    stats = await upstream.stats()
    assert stats["requests"] == 78
    assert stats["tokens"] == 2 * sum(range(1, 40))
    assert stats["cancelled"] == 0


async def test_a_peer_that_leaves_is_noticed(sdk: AsyncOpenAI, upstream: NativeUpstream) -> None:
    stream: Any = await sdk.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "tokens=1000 rate=50"}], stream=True
    )
    await anext(stream)
    await stream.close()
    async with asyncio.timeout(5):
        while not (await upstream.stats())["cancelled"]:
            await asyncio.sleep(0.01)
    assert len(texts(await ask(sdk, "tokens=2"))) == 2


async def test_a_peer_that_reads_late_gets_all_and_stamps_of_when_each_was_due(upstream: NativeUpstream) -> None:
    """What is due while the peer doesn't read isn't sent later as if it had been due then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port, limit=1 << 16)
    body = b'{"stream":true,"messages":[{"role":"user","content":"tokens=30000 rate=60000 size=6 stamp=1"}]}'
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    await asyncio.sleep(1.0)
    data = b""
    while b"[DONE]" not in data[-200:]:
        data += await reader.read(1 << 20)
    writer.close()
    stamps = [part[:5] for part in data.split(b'"content":"@')[1:]]
    assert len(stamps) == 30000
    microseconds = [_number(stamp) for stamp in stamps]
    late = [us - microseconds[0] - n / 60_000 * 1e6 for n, us in enumerate(microseconds)]
    assert max(map(abs, late)) < 200_000


def _number(stamp: bytes) -> int:
    digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
    value = 0
    for character in stamp:
        value = value * 64 + digits.index(character)
    return value


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /elsewhere HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 30\r\n\r\n" + b'{"stream":true,"messages":[{"r',
        b'POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 29\r\n\r\n{"stream":true,"messages":"\\\\',
    ],
)
async def test_a_strange_request_is_answered_too(upstream: NativeUpstream, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(request_bytes)
    assert (await reader.read(8)).startswith(b"HTTP/1.1")
    writer.close()
    assert (await upstream.stats())["tokens"] % 3 == 0
