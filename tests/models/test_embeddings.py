"""Embeddings over HTTP: batches, order, and every failure as one plain exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from gateway.models import embeddings
from gateway.models.embeddings import BATCH_TEXTS, EmbeddingFailed, OpenAIEmbeddings
from tests.models.fault_server import Exchange, Upstream


@pytest.fixture
async def embed(upstream: Upstream) -> AsyncIterator[OpenAIEmbeddings]:
    made = OpenAIEmbeddings("small", api_key="sk-hush-hush", base_url=upstream.base_url, timeout_s=5)
    yield made
    await made.close()


def vectors(exchange: Exchange) -> None:
    """[length of the text, place], in reverse, as a server may."""
    texts = orjson.loads(exchange.body)["input"]
    data = [{"object": "embedding", "index": n, "embedding": [len(text), n]} for n, text in enumerate(texts)]
    exchange.answer(200, orjson.dumps({"object": "list", "data": data[::-1], "usage": {}}))


async def test_batches_in_order(upstream: Upstream, embed: OpenAIEmbeddings) -> None:
    upstream.play = vectors
    texts = ["x" * n for n in range(2 * BATCH_TEXTS + 1)]
    got = await embed(texts)
    assert [int(vector[0]) for vector in got] == [1, *range(1, len(texts))], "an empty text is sent as a space"
    assert [len(orjson.loads(e.body)["input"]) for e in upstream.exchanges] == [BATCH_TEXTS, BATCH_TEXTS, 1]
    first = upstream.exchanges[0]
    assert first.headers.startswith(b"POST /v1/embeddings ")
    assert b"Bearer sk-hush-hush" in first.headers
    assert orjson.loads(first.body)["model"] == "small"
    assert upstream.connections == 1
    assert await embed([]) == []


async def test_an_answer_larger_than_an_error_page(upstream: Upstream, embed: OpenAIEmbeddings) -> None:
    data = [{"index": 0, "embedding": [0.123456789] * 20_000}]
    upstream.play = lambda exchange: exchange.answer(200, orjson.dumps({"data": data}))
    assert [len(vector) for vector in await embed(["a"])] == [20_000]


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (401, b'{"error": {"message": "Incorrect API key: sk-hush-hush"}}', "OPENAI_API_KEY"),
        (404, b'{"error": {"message": "no model small"}}', "404"),
        (429, b"{}", "too many requests"),
        (500, b"oops", "500"),
        (200, b"<html>", "did not answer with embeddings"),
        (200, b'{"data": [{"embedding": "AAAA"}]}', "did not answer with embeddings"),
        (200, b'{"data": []}', "0 vectors for 1 texts"),
    ],
)
async def test_failures(status: int, body: bytes, text: str, upstream: Upstream, embed: OpenAIEmbeddings) -> None:
    upstream.play = lambda exchange: exchange.answer(status, body)
    with pytest.raises(EmbeddingFailed, match=text) as caught:
        await embed(["a"])
    assert "hush" not in str(caught.value)


async def test_a_broken_answer(upstream: Upstream, embed: OpenAIEmbeddings) -> None:
    def play(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        exchange.close()

    upstream.play = play
    with pytest.raises(EmbeddingFailed, match="connection"):
        await embed(["a"])


async def test_nobody_there() -> None:
    embed = OpenAIEmbeddings("small", api_key=None, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(EmbeddingFailed, match="Nothing answers"):
        await embed(["a"])
    await embed.close()


async def test_a_silent_server(upstream: Upstream) -> None:
    embed = OpenAIEmbeddings("small", api_key=None, base_url=upstream.base_url, timeout_s=0.05)
    with pytest.raises(EmbeddingFailed, match=r"within 0\.05 s"):
        await embed(["a"])
    async with asyncio.timeout(5):
        await upstream.hung_up.wait()
    await embed.close()


async def test_too_much(upstream: Upstream, embed: OpenAIEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_ANSWER_BYTES", 1000)
    upstream.play = lambda exchange: exchange.answer(200, b" " * 2000)
    with pytest.raises(EmbeddingFailed, match="more than 1000 bytes"):
        await embed(["a"])
