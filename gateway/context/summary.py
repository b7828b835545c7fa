"""The running summary of a long conversation, written by a model and extended, never begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

from gateway.context.counting import TokenCounter
from gateway.models.model import Model, ModelError, ModelRequest

INSTRUCTIONS = (
    "You keep the running summary of a conversation between a user and an assistant. Write the summary anew so that it "
    "covers the earlier summary and the new messages together. Keep every fact, decision, name, number, date, "
    "preference and open question that could matter later; leave out greetings and wording. Use short plain sentences "
    "or a list, in the language of the conversation. Answer with the summary alone."
)
TIMEOUT_S = 60.0


class SummaryFailed(Exception):
    """No usable summary: the model failed, was silent, or wrote more than it replaces."""


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
        for chunk in await _chunks(turns, counter, chunk_tokens):
            written = (await self._ask(_question(summary, chunk), limit_tokens)).strip()
            size, replaced = await counter.count_many([written, summary + chunk])
            if not written:
                raise SummaryFailed("the model wrote nothing")
            if size >= replaced or size > limit_tokens:
                raise SummaryFailed(f"{size} tokens in place of {replaced}, at most {limit_tokens} allowed")
            summary = written
        return summary

    async def _ask(self, question: str, limit_tokens: int) -> str:
        request = ModelRequest(
            messages=[{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": question}],
            model=self._name,
            max_tokens=limit_tokens,
        )
        text: list[str] = []
        try:
            async with asyncio.timeout(self._timeout_s), aclosing(self._model.stream(request)) as stream:
                async for events in stream:
                    text += [event for event in events if isinstance(event, str)]
        except (ModelError, TimeoutError) as problem:
            raise SummaryFailed(str(problem) or "no summary in time") from None
        return "".join(text)


def _question(summary: str, chunk: str) -> str:
    return f"Earlier summary:\n{summary or '(none yet)'}\n\nNew messages:\n{chunk}\n\nThe new summary:"


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
