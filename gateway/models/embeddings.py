"""Embeddings from the upstream's `/embeddings`, asked by the openai SDK and read raw like the chat's stream."""

from __future__ import annotations

import asyncio
import math
import time

import httpx2
import msgspec
import openai

from gateway.models import failures
from gateway.models.answer import Answer
from gateway.models.openai_compatible import DEFAULT_BASE_URL, open_sdk, post_raw

BATCH_TEXTS = 32
"""In one request: servers differ in how many they take, and reading the answer to so many takes about 3 ms."""
MAX_ANSWER_BYTES = 8 << 20
"""32 vectors of 4,096 numbers take 3 MB."""
TIMEOUT_S = 10.0
"""For one request. A turn waits for it."""


class EmbeddingFailed(Exception):
    """No vectors. The text says why in one line, for the operator, without a secret."""


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Answer(msgspec.Struct):
    data: list[_Vector]


_DECODER = msgspec.json.Decoder(_Answer)


class OpenAIEmbeddings:
    """`model` of one upstream; the other arguments are as for `OpenAICompatible`. Call it with texts."""

    def __init__(self, model: str, *, api_key: str | None, base_url: str | None, timeout_s: float = TIMEOUT_S) -> None:
        base_url = base_url or DEFAULT_BASE_URL
        self._model = model
        self._timeout_s = timeout_s
        self._upstream = failures.upstream_at(base_url, api_key)
        self._sdk = open_sdk(api_key, base_url)

    async def __call__(self, texts: list[str], /) -> list[list[float]]:
        """One vector for each text, in order. Raises `EmbeddingFailed`; safe to cancel."""
        vectors: list[list[float]] = []
        for at in range(0, len(texts), BATCH_TEXTS):
            vectors += await self._batch(texts[at : at + BATCH_TEXTS])
        return vectors

    async def close(self) -> None:
        await self._sdk.close()

    async def _batch(self, texts: list[str]) -> list[list[float]]:
        # An empty text is refused by OpenAI and means nothing to others.
        body = {"model": self._model, "input": [text or " " for text in texts], "encoding_format": "float"}
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await post_raw(self._sdk, "/embeddings", body)
                try:
                    data = await self._read(response)
                finally:
                    response.close()
        except openai.APIStatusError as error:
            told = failures.from_status(
                error.status_code, error.response.headers, error.body, self._upstream, now_s=time.time()
            )
            raise EmbeddingFailed(told.message) from error
        except TimeoutError as error:
            raise EmbeddingFailed(f"{self._upstream.address} sent no vectors within {self._timeout_s:g} s.") from error
        except (openai.APIConnectionError, httpx2.TransportError, OSError) as error:
            raise EmbeddingFailed(failures.from_exception(error, self._upstream).message) from error
        return self._vectors(data, len(texts))

    async def _read(self, response: Answer) -> bytes:
        data = bytearray()

        def take(piece: bytes, _: float) -> float:
            data.extend(piece)
            return math.inf if len(data) > MAX_ANSWER_BYTES else 0.0

        await response.read(take)
        if len(data) > MAX_ANSWER_BYTES:
            raise EmbeddingFailed(f"{self._upstream.address} sent more than {MAX_ANSWER_BYTES} bytes.")
        return bytes(data)

    def _vectors(self, data: bytes, wanted: int) -> list[list[float]]:
        try:
            vectors = _DECODER.decode(data).data
        except msgspec.MsgspecError as error:
            raise EmbeddingFailed(f"{self._upstream.address} did not answer with embeddings.") from error
        if len(vectors) != wanted:
            raise EmbeddingFailed(f"{self._upstream.address} sent {len(vectors)} vectors for {wanted} texts.")
        # Servers that leave `index` out answer in order; the sort is stable.
        return [vector.embedding for vector in sorted(vectors, key=lambda vector: vector.index)]
