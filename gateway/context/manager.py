"""Puts together what the model is asked, before every model call, within a budget of tokens.

    budget = system prompt (with the summary) + turns word for word + tools + room for the answer

Turns are sent word for word from the first one behind `fold.memory.through`. When they don't fit any more, the older
of them are compressed into the running summary, down to half of what history may take, so that it isn't done at
every turn. What was decided becomes a `context` entry: the next call, and the next node, go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog

from gateway.context.counting import TokenCounter
from gateway.context.history import turn_messages
from gateway.context.prompt import system_prompt
from gateway.context.summary import Summarizer, SummaryFailed
from gateway.context.window import (
    REPLY_PRIMING,
    answer_reserve,
    message_framing,
    message_texts,
    tool_framing,
    tool_texts,
)
from gateway.models.model import ModelRequest
from gateway.settings import Upstream
from protocol.codes import ErrorCode, Refusal
from protocol.fold import Fold, TurnFold
from protocol.frames import ChatMessage, Compacted, Memory, Options

KEEP_SHARE = 0.5
"""After a compression the turns that stay word for word take at most this share of what history may take."""
SUMMARY_SHARE = 0.25
"""The summary may take this share of the budget, and a summary call reads at most twice as much at once."""

log_lines = structlog.get_logger(__name__)


class Part(NamedTuple):
    """Chat messages and what they cost in tokens."""

    messages: Sequence[dict[str, Any]]
    tokens: int


class Layout(NamedTuple):
    """One model call, before it is made."""

    system: Part
    past: Sequence[tuple[TurnFold, Part]]
    own: Part
    fixed: int
    """Tokens of tools and framing."""

    @property
    def tokens(self) -> int:
        return self.fixed + self.system.tokens + sum(part.tokens for _, part in self.past) + self.own.tokens

    @property
    def messages(self) -> list[dict[str, Any]]:
        past = [message for _, part in self.past for message in part.messages]
        return [*self.system.messages, *past, *self.own.messages]


class Compaction(NamedTuple):
    """What a `context` entry has to say."""

    compacted: Compacted
    memory: Memory


class Prepared(NamedTuple):
    request: ModelRequest
    compaction: Compaction | None


class ContextManager:
    """Shared by all turns of a node."""

    def __init__(self, settings: Upstream, summarizer: Summarizer) -> None:
        self._settings = settings
        self._summarizer = summarizer
        self._room = settings.max_context_tokens - answer_reserve(settings.max_context_tokens)
        self._counters: dict[str, TokenCounter] = {}

    def preload(self) -> None:
        """Starts to load the vocabulary, so that the first turn doesn't wait for it."""
        self._counter(self._settings.model).preload()

    async def admit(self, frame: ChatMessage) -> None:
        """Raises `Refusal` (`CONTEXT_TOO_LARGE`) for a message that can't fit even alone. Safe to cancel."""
        texts = [frame.message, frame.system or "", *tool_texts(frame.tools or ())]
        if sum(map(len, texts)) <= self._room:
            return  # a token is at least one character
        needed = sum(await self._counter(frame.model or self._settings.model).count_many(texts))
        if needed > self._room:
            raise self._too_large(needed)

    async def prepare(self, fold: Fold, turn: TurnFold, known: dict[str, int], *, tools: bool) -> Prepared:
        """The next model call of `turn`, with the tools of its question if `tools`. Counts of ended turns are kept
        in `known`, by turn. Raises `Refusal` (`CONTEXT_TOO_LARGE`). Safe to cancel."""
        options = turn.message.options or Options()
        model = options.model or self._settings.model
        offered = (options.tools or []) if tools else []
        counter = self._counter(model)
        layout = Layout(
            system=await self._system(counter, options.system, fold.memory),
            past=[(earlier, await self._turn(counter, earlier, known)) for earlier in _since_memory(fold, turn)],
            own=await self._turn(counter, turn, known),
            fixed=REPLY_PRIMING + tool_framing(offered) + sum(await counter.count_many(list(tool_texts(offered)))),
        )
        compaction = None
        if layout.tokens > self._room:
            alone = layout.fixed + layout.own.tokens + (await self._system(counter, options.system, None)).tokens
            if alone > self._room or not layout.past:
                raise self._too_large(alone)
            before = layout
            memory, layout = await self._compress(counter, layout, options.system, fold.memory, self._room - alone)
            compaction = Compaction(
                Compacted(len(before.messages), len(layout.messages), before.tokens, layout.tokens), memory
            )
        return Prepared(ModelRequest(messages=layout.messages, model=model, tools=offered), compaction)

    async def _compress(
        self, counter: TokenCounter, layout: Layout, system: str | None, memory: Memory | None, room: int
    ) -> tuple[Memory, Layout]:
        """`room`: what is left for history, summary included."""
        kept, kept_tokens = len(layout.past), 0
        while kept and kept_tokens + layout.past[kept - 1][1].tokens <= KEEP_SHARE * room:
            kept -= 1
            kept_tokens += layout.past[kept][1].tokens
        older, rest = layout.past[:kept], layout.past[kept:]
        summary = memory.summary if memory else ""
        limit = min(int(SUMMARY_SHARE * self._settings.max_context_tokens), (room - kept_tokens) // 2)
        try:
            summary = await self._summarizer.extend(
                summary,
                [part.messages for _, part in older],
                counter,
                limit_tokens=limit,
                chunk_tokens=int(2 * SUMMARY_SHARE * self._settings.max_context_tokens),
            )
        except SummaryFailed as problem:
            log_lines.warning("no summary: the oldest turns are left out", turns=len(older), problem=str(problem))
        made = Memory(through=older[-1][0].turn_id, summary=summary)
        return made, layout._replace(system=await self._system(counter, system, made), past=rest)

    # ------------------------------------------------------------ counting

    def _counter(self, model: str) -> TokenCounter:
        counter = self._counters.get(model)
        if counter is None:
            if len(self._counters) >= MAX_COUNTERS:
                self._counters.clear()
            counter = self._counters[model] = TokenCounter(model)
        return counter

    async def _system(self, counter: TokenCounter, system: str | None, memory: Memory | None) -> Part:
        prompt = system_prompt(system, memory)
        messages = [{"role": "system", "content": prompt}] if prompt else []
        return Part(messages, await _cost(counter, messages))

    async def _turn(self, counter: TokenCounter, turn: TurnFold, known: dict[str, int]) -> Part:
        messages = turn_messages(turn)
        tokens = known.get(turn.turn_id) if turn.end is not None else None
        if tokens is None:
            tokens = await _cost(counter, messages)
            if turn.end is not None:
                known[turn.turn_id] = tokens
        return Part(messages, tokens)

    def _too_large(self, needed: int) -> Refusal:
        return Refusal(
            ErrorCode.CONTEXT_TOO_LARGE,
            f"This takes about {needed} tokens where {self._room} fit beside the answer. Send less at once, or raise "
            "MAX_CONTEXT_TOKENS.",
        )


MAX_COUNTERS = 32
"""Models whose counts are remembered: a client may name any."""


async def _cost(counter: TokenCounter, messages: Sequence[dict[str, Any]]) -> int:
    texts = [text for message in messages for text in message_texts(message)]
    return message_framing(messages) + sum(await counter.count_many(texts))


def _since_memory(fold: Fold, turn: TurnFold) -> list[TurnFold]:
    """The turns that are sent word for word before `turn`, in turn order."""
    earlier: list[TurnFold] = []
    for candidate in fold.turns.values():
        if candidate is turn:
            break
        earlier.append(candidate)
        if fold.memory is not None and candidate.turn_id == fold.memory.through:
            earlier.clear()
    return earlier
