"""What a model call may take, and what its messages cost, counted as its model counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.context.counting import EncodingName, TokenCounter, encoding_for
from gateway.context.history import turn_messages
from gateway.context.window import answer_reserve, approximation, known_window, message_framing, message_texts
from gateway.settings import Upstream
from protocol.codes import ErrorCode, Refusal
from protocol.fold import TurnFold


class Part(NamedTuple):
    """Chat messages and what they cost in tokens."""

    messages: Sequence[dict[str, Any]]
    tokens: int


class Budget(NamedTuple):
    """How the calls of one model are counted, and what they may take."""

    counter: TokenCounter
    factor: float
    """From the vocabulary's tokens to the model's: see `window.approximation`."""
    total: int
    """Model tokens of question and answer together."""

    @property
    def room(self) -> int:
        """What is left beside the answer."""
        return self.total - answer_reserve(self.total)

    async def cost(self, messages: Sequence[dict[str, Any]]) -> int:
        return self.scaled(message_framing(messages) + await self.tokens(texts_of(messages)))

    async def tokens(self, texts: Sequence[str]) -> int:
        """In the vocabulary's tokens."""
        return sum(await self.counter.count_many(texts))

    def too_large(self, needed: int) -> Refusal:
        return Refusal(
            ErrorCode.CONTEXT_TOO_LARGE,
            f"This takes about {needed} tokens where {self.room} fit beside the answer. Send less at once, or raise "
            "MAX_CONTEXT_TOKENS.",
        )

    def scaled(self, tokens: int) -> int:
        return math.ceil(tokens * self.factor)


class Budgets:
    """Of all models that a node is asked for; they share the counts of an encoding."""

    def __init__(self, settings: Upstream) -> None:
        self._settings = settings
        self._counters: dict[EncodingName, TokenCounter] = {}

    def of(self, model: str) -> Budget:
        settings = self._settings
        own = settings.model_window if model == settings.model else 0
        window = own or known_window(model) or settings.max_context_tokens
        encoding = encoding_for(model)
        counter = self._counters.get(encoding)
        if counter is None:
            counter = self._counters[encoding] = TokenCounter(model)
        return Budget(counter, approximation(model), min(settings.max_context_tokens, window))


async def parts(budget: Budget, turns: Sequence[TurnFold], known: dict[str, int]) -> list[tuple[TurnFold, Part]]:
    """What is new is counted all at once, so that a long conversation that was just loaded is one job of a thread and
    not a long row of small ones on the event loop."""
    prefix = f"{budget.counter.encoding} "
    messages = [turn_messages(turn) for turn in turns]
    ended = [turn.end is not None for turn in turns]  # one may end while this waits
    counts = [known.get(prefix + turn.turn_id) if over else None for turn, over in zip(turns, ended, strict=True)]
    new = [place for place, count in enumerate(counts) if count is None]
    texts = [texts_of(messages[place]) for place in new]
    tokens = iter(await budget.counter.count_many([text for group in texts for text in group]))
    for place, group in zip(new, texts, strict=True):
        counts[place] = count = message_framing(messages[place]) + sum(next(tokens) for _ in group)
        if ended[place]:
            known[prefix + turns[place].turn_id] = count
    return [
        (turn, Part(said, budget.scaled(count or 0))) for turn, said, count in zip(turns, messages, counts, strict=True)
    ]


def texts_of(messages: Sequence[dict[str, Any]]) -> list[str]:
    return [text for message in messages for text in message_texts(message)]
