"""Chooses the tools of a model call, when there are more than the model should see.

By default with BM25 over the words of names, descriptions and parameters (bm25s; the formula is Robertson's with
Lucene's idf); with an embedding model by the cosine between the message and each tool, and a little of the words. A
tool that was called lately in the conversation stays: "and now the same for Paris" names none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from gateway.context.words import query_of, words_of
from protocol.frames import Tool

NAME_WEIGHT = 3
"""A word of a name counts as often as if it stood so many times in the description."""
DESCRIPTION_CHARS = 2_000
"""Of a description; what a tool is for comes first."""
MESSAGE_CHARS = 4_000
"""Of a message, half from its beginning and half from its end."""
WORDS_SHARE = 0.2
"""With embeddings, the tool whose words fit best gets so much beside its cosine: each finds what the other misses."""
RECENT_SHARE = 0.5
"""Tools called lately take at most this share of the places, or a new wish could never be met."""
INDEXED_TOOLS = 10_000
"""In all indexes that are kept; the one not used for the longest goes first. About 2 KB a tool, 8 KB with embeddings
of 1,536 dimensions."""
RANKED_TOOLS = 200_000
"""In all rankings that are kept, 8 bytes each: a turn with several model calls asks for the same again."""
EMBEDDING_PAUSE_S = 30.0
"""After a failure the embedding model isn't asked for so long."""

V = TypeVar("V")

_ENCODER = msgspec.json.Encoder()
log_lines = structlog.get_logger(__name__)


class Embed(Protocol):
    """Turns texts into vectors, one for each, all of one length; any exception means that it could not."""

    async def __call__(self, texts: list[str], /) -> list[list[float]]: ...


class _Index(Protocol):
    """What is used of `bm25s.BM25`, which comes without types."""

    def get_tokens_ids(self, query_tokens: list[str]) -> list[int]: ...

    def get_scores_from_ids(self, query_tokens_ids: list[int]) -> Any: ...


class ToolSelector:
    """Shared by all turns of a node. Indexes are kept, so that a turn costs the query and not the tools."""

    def __init__(self, max_tools: int, embed: Embed | None = None) -> None:
        self._max_tools = max_tools
        self._embed = embed
        self._embed_after_s = 0.0
        self._words: _Kept[_Index] = _Kept(INDEXED_TOOLS)
        self._vectors: _Kept[Any] = _Kept(INDEXED_TOOLS)
        self._rankings: _Kept[list[int]] = _Kept(RANKED_TOOLS)

    async def select(self, tools: Sequence[Tool], message: str, recent: Sequence[str]) -> list[Tool]:
        """At most `max_tools` of `tools`, in their order: those of `recent` (names, latest first), then those that
        `message` is about; what is left is filled in the given order. Never raises; safe to cancel."""
        if len(tools) <= self._max_tools:
            return list(tools)
        places = {tool.function.name: place for place, tool in enumerate(tools)}
        staying = max(1, int(self._max_tools * RECENT_SHARE))
        chosen = dict.fromkeys([places[name] for name in dict.fromkeys(recent) if name in places][:staying])
        for place in await self._ranking(tools, _excerpt(message)):
            if len(chosen) == self._max_tools:
                break
            chosen[place] = None
        return [tools[place] for place in sorted(chosen)]

    async def _ranking(self, tools: Sequence[Tool], message: str) -> list[int]:
        """All places, best first; equal ones in the given order, so that no match at all is the given order."""
        listed = _digest(_ENCODER.encode(tools))
        key = listed + _digest(message.encode("utf-8", "surrogatepass"))
        ranking = self._rankings.get(key)
        if ranking is None:
            scores = await self._by_meaning(tools, listed, message)
            lasting = self._embed is None or scores is not None
            if scores is None:
                scores = await self._by_words(tools, listed, message)
            ranking = _best_first(scores)
            if lasting:
                self._rankings.put(key, ranking, len(tools))
        return ranking

    # ------------------------------------------------------------ words

    async def _by_words(self, tools: Sequence[Tool], listed: bytes, message: str) -> Sequence[float]:
        index = self._words.get(listed)
        if index is None:
            # In a thread: the first time it loads numpy (0.2 s), and large lists take milliseconds.
            index = await asyncio.to_thread(_index, tools)
            self._words.put(listed, index, len(tools))
        scores = [0.0] * len(tools)
        words = query_of(message)
        for weight in set(words.values()):
            known = index.get_tokens_ids([word for word, own in words.items() if own == weight])
            if known:
                found = index.get_scores_from_ids(known).tolist()
                scores = [score + weight * more for score, more in zip(scores, found, strict=True)]
        return scores

    # ------------------------------------------------------------ meaning

    async def _by_meaning(self, tools: Sequence[Tool], listed: bytes, message: str) -> Sequence[float] | None:
        """None without an embedding model, and when it fails."""
        loop = asyncio.get_running_loop()
        if self._embed is None or not message.strip() or loop.time() < self._embed_after_s:
            return None
        try:
            vectors = self._vectors.get(listed)
            if vectors is None:
                *made, query = await self._embed([*map(_text, tools), message])
                vectors = await asyncio.to_thread(_unit_rows, made)
                self._vectors.put(listed, vectors, len(tools))
            else:
                (query,) = await self._embed([message])
            cosines: list[float] = (vectors @ _unit_rows([query])[0]).tolist()
        except Exception as problem:  # noqa: BLE001  # whatever it is, words serve instead
            self._embed_after_s = loop.time() + EMBEDDING_PAUSE_S
            log_lines.warning("no embeddings: tools are chosen by their words", problem=_one_line(problem))
            return None
        words = await self._by_words(tools, listed, message)
        most = max(words) or 1.0
        return [cosine + WORDS_SHARE * score / most for cosine, score in zip(cosines, words, strict=True)]


class _Kept(Generic[V]):
    """What was used last, up to a total cost."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._cost = 0
        self._held: OrderedDict[bytes, tuple[V, int]] = OrderedDict()

    def get(self, key: bytes) -> V | None:
        held = self._held.get(key)
        if held is None:
            return None
        self._held.move_to_end(key)
        return held[0]

    def put(self, key: bytes, value: V, cost: int) -> None:
        _, before = self._held.pop(key, (None, 0))
        self._held[key] = value, cost
        self._cost += cost - before
        while self._cost > self._most:
            _, (_, freed) = self._held.popitem(last=False)
            self._cost -= freed


# ---------------------------------------------------------------- texts


def _index(tools: Sequence[Tool]) -> _Index:
    # numpy takes 30 MB and 0.2 s, which a gateway whose clients offer few tools needn't spend.
    import bm25s  # type: ignore[import-untyped]  # noqa: PLC0415

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its debug lines would reach ours
    ids: dict[str, int] = {}
    rows: list[list[int]] = []
    for tool in tools:
        rows.append([ids.setdefault(word, len(ids)) for word in _words(tool)])
        time.sleep(0)  # lets the event loop have the interpreter, which it else waits 5 ms for
    made = bm25s.BM25()
    made.index((rows, ids), show_progress=False)
    index: _Index = made
    return index


def _words(tool: Tool) -> list[str]:
    spec = tool.function
    name = words_of(spec.name) or [spec.name]
    words = name * NAME_WEIGHT + words_of((spec.description or "")[:DESCRIPTION_CHARS])
    for key, described in _parameters(tool):
        words += words_of(key) + words_of(described)
    return words


def _text(tool: Tool) -> str:
    """A tool as an embedding model reads it best: in sentences, its name in words."""
    spec = tool.function
    name = " ".join(re.findall(r"[^\W_]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", spec.name)))
    parameters = ", ".join(key for key, _ in _parameters(tool))
    return f"{name}: {(spec.description or '')[:DESCRIPTION_CHARS]}" + (f" ({parameters})" if parameters else "")


def _parameters(tool: Tool) -> Iterator[tuple[str, str]]:
    properties = (tool.function.parameters or {}).get("properties")
    for key, value in properties.items() if isinstance(properties, dict) else ():
        described = value.get("description") if isinstance(value, dict) else None
        yield key, described[:DESCRIPTION_CHARS] if isinstance(described, str) else ""


def _excerpt(message: str) -> str:
    if len(message) <= MESSAGE_CHARS:
        return message
    half = MESSAGE_CHARS // 2
    return f"{message[:half]} {message[-half:]}"


# ---------------------------------------------------------------- numbers


def _best_first(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def _unit_rows(vectors: Sequence[Sequence[float]]) -> Any:
    """A matrix whose rows have length 1. Raises `ValueError` for what isn't one."""
    import numpy as np  # noqa: PLC0415  # as above

    rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError("vectors of different lengths, or not of numbers")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
