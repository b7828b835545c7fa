"""The running summary of a long conversation, written by a model and extended, never begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.context.counting import TokenCounter
from gateway.context.quotes import HEADING, chosen, joined_summary, quotes, split_summary, without_repeats
from gateway.models.model import Event, Model, ModelError, ModelRequest

INSTRUCTIONS = (
    "You keep the running summary of a conversation between a user and an assistant. Write the summary anew so that it "
    "covers the earlier summary and the new messages together. Keep every fact, decision, name, number, date, "
    "preference and open question that could matter later; leave out greetings and wording. Use short plain sentences "
    "or a list, in the language of the conversation. Answer with the summary alone."
)
TIMEOUT_S = 60.0
RETRY_S = 0.5
QUOTE_SHARE = 0.4
"""Of a summary: what is kept word for word."""


class SummaryFailed(Exception):
    """No usable summary: the model failed, was silent, or wrote more than it replaces.

    `so_far` is the last one that stands: the earlier summary, and what could be added to it before the failure.
    """

    def __init__(self, problem: str, so_far: str) -> None:
        super().__init__(problem)
        self.so_far = so_far


class Summarizer:
    """Asks `name` of `model` for summaries."""

    def __init__(self, model: Model, name: str, timeout_s: float = TIMEOUT_S) -> None:
        self._model = model
        self._name = name
        self._timeout_s = timeout_s

    async def extend(
        self,
        summary: str,
        turns: Sequence[Sequence[dict[str, Any]]],
        counter: TokenCounter,
        *,
        limit_tokens: int,
        chunk_tokens: int,
    ) -> str:
        """`summary` and the chat messages of `turns` in at most `limit_tokens`; what is read at once is at most
        about `chunk_tokens`. Raises `SummaryFailed`. Safe to cancel."""
        prose, quoted = split_summary(summary)
        chunks = await _chunks(turns, counter, chunk_tokens)
        for number, chunk in enumerate(chunks):
            room = int(QUOTE_SHARE * limit_tokens)
            kept = await _quoted(quoted, chunk, counter, room)
            taken, size = await counter.count_many([joined_summary("", kept), prose])
            try:
                prose = await self._written(prose, chunk, counter, limit_tokens - taken)
            except SummaryFailed as problem:
                # What the model can't tell of the rest is kept as far as it can be quoted.
                kept = await _quoted(quoted, "\n".join(chunks[number:]), counter, min(room, limit_tokens - size))
                raise SummaryFailed(str(problem), joined_summary(prose, kept)) from None
            quoted = kept
        return joined_summary(prose, quoted)

    async def _written(self, prose: str, chunk: str, counter: TokenCounter, limit_tokens: int) -> str:
        """The model's own part, anew."""
        try:
            written = await self._ask(_question(prose, chunk, limit_tokens), limit_tokens)
        except (ModelError, TimeoutError) as problem:
            raise SummaryFailed(str(problem) or "no summary in time", prose) from None
        written = without_repeats(written)
        size, replaced = await counter.count_many([written, prose + chunk])
        if not written:
            raise SummaryFailed("the model wrote nothing", prose)
        if size >= replaced or size > limit_tokens:
            raise SummaryFailed(f"{size} tokens in place of {replaced}, at most {limit_tokens} allowed", prose)
        return written

    async def _ask(self, question: str, limit_tokens: int) -> str:
        """One answer. A failure that may pass is tried once more: what isn't summarised is forgotten for good."""
        request = ModelRequest(
            messages=[{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": question}],
            model=self._name,
            max_tokens=limit_tokens,
        )
        async with asyncio.timeout(self._timeout_s):
            try:
                return await self._read(request)
            except ModelError as problem:
                if not problem.transient:
                    raise
                await asyncio.sleep(problem.retry_after_s or RETRY_S)
            return await self._read(request)

    async def _read(self, request: ModelRequest) -> str:
        prose = _Prose()
        await self._model.answer(request, prose)
        return "".join(prose.pieces).strip()


class _Prose:
    """The text of an answer (`models.model.Sink`)."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def take(self, events: list[Event], since: float) -> float:
        self.pieces += [event for event in events if isinstance(event, str)]
        return 0.0

    async def room(self) -> None: ...


async def _quoted(quoted: Sequence[str], chunk: str, counter: TokenCounter, room: int) -> list[str]:
    """Lines of those quoted earlier and of new messages, in at most `room` tokens with their heading."""
    candidates = list(quotes("\n".join([*quoted, chunk])))
    if not candidates:
        return []
    heading, *sizes = await counter.count_many([f"{HEADING}\n", *(f"- {quote.line}\n" for quote in candidates)])
    return chosen(candidates, sizes, room - heading)


def _question(summary: str, chunk: str, limit_tokens: int) -> str:
    words = max(10, limit_tokens // 2)  # models count words better than tokens, and neither well
    return (
        f"Earlier summary:\n{summary or '(none yet)'}\n\nNew messages:\n{chunk}\n\n"
        f"The new summary, in at most {words} words:"
    )


async def _chunks(turns: Sequence[Sequence[dict[str, Any]]], counter: TokenCounter, chunk_tokens: int) -> list[str]:
    """The messages as text, in pieces of about `chunk_tokens`; one message is only cut if it is larger itself."""
    lines = [line for turn in turns for message in turn for line in _lines(message)]
    chunks: list[str] = []
    held: list[str] = []
    room = chunk_tokens
    for line, tokens in zip(lines, await counter.count_many(lines), strict=True):
        if tokens > room and held:
            chunks.append("\n".join(held))
            held, room = [], chunk_tokens
        # A character is at least a quarter of a token in the scripts that cost most: this never exceeds the room.
        held.append(line if tokens <= chunk_tokens else line[:chunk_tokens] + " […]")
        room -= min(tokens, chunk_tokens)
    if held:
        chunks.append("\n".join(held))
    return chunks


def _lines(message: dict[str, Any]) -> Iterator[str]:
    speaker = {"user": "User", "assistant": "Assistant", "tool": "Function result"}[message["role"]]
    if message.get("content"):
        yield f"{speaker}: {message['content']}"
    for call in message.get("tool_calls", ()):
        yield f"Assistant calls {call['function']['name']}({call['function']['arguments']})"
