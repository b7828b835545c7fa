"""Puts together what the model is asked, before every model call, within a budget of tokens.

    budget = system prompt (with the summary) + turns word for word + tools + room for the answer

Turns are sent word for word from the first one behind `fold.memory.through`. When they don't fit any more, the older
of them are compressed into the running summary, down to half of what history may take, so that it isn't done at
every turn. What was decided becomes a `context` entry: the next call, and the next node, go on from there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import structlog

from gateway.context.budget import Budget, Budgets, Part, parts
from gateway.context.prompt import NO_CLAIMS, SystemPrompt
from gateway.context.selection import ToolSelector
from gateway.context.summary import Summarizer, SummaryFailed
from gateway.context.window import REPLY_PRIMING, tool_framing, tool_texts
from gateway.models.model import ModelRequest
from gateway.settings import Upstream
from protocol.codes import ErrorCode, Refusal
from protocol.fold import Fold, TurnFold
from protocol.frames import ChatMessage, Compacted, Memory, Options, Tool

KEEP_SHARE = 0.5
"""After a compression the turns that stay word for word take at most this share of what history may take."""
SUMMARY_SHARE = 0.25
"""The summary may take this share of the budget."""
READ_SHARE = 0.4
"""A summary call reads so much new at once: with the summary before and the one after it stays within the budget."""
LEAST_SUMMARY_TOKENS = 32
"""Into less nothing worth keeping can be written: the turns are left out without asking a model."""
HEADING_TOKENS = 32
"""Kept for what stands around a summary: its heading, its message, and the notice of a gap."""
GAP_NOTICE = "Some messages after that were left out; their content isn't known to you."
KEPT_SOURCES = 10_000
"""300 bytes each. What was forgotten is found again in the conversation."""
RECENT_TURNS = 8
"""A tool called in one of these is called lately."""

log_lines = structlog.get_logger(__name__)


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


Prompt: TypeAlias = Callable[[Memory | None], Awaitable[Part]]
"""The system prompt around a memory, with its cost."""


class ContextManager:
    """Shared by all turns of a node. `now` is Unix seconds, for the date in prompts."""

    def __init__(
        self,
        settings: Upstream,
        summarizer: Summarizer,
        selector: ToolSelector | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._summarizer = summarizer
        self._selector = selector or ToolSelector(settings.max_tools)
        self._now = now
        self._prompt = SystemPrompt(settings.system_prompt)
        self._budgets = Budgets(settings)
        self._sources: dict[str, str] = {}
        """Turn by turn whose `system` holds; empty: nobody's. It saves the way back through a long conversation."""

    def preload(self) -> None:
        """Starts to load the vocabulary, so that the first turn doesn't wait for it."""
        self._budgets.of(self._settings.model).counter.preload()

    async def admit(self, frame: ChatMessage) -> None:
        """Raises `Refusal`: `BAD_FRAME` for a `system` where clients may not set one, `CONTEXT_TOO_LARGE` for a
        message that can't fit even alone. Safe to cancel."""
        if frame.system is not None and self._settings.client_system == "refuse":
            raise Refusal(ErrorCode.BAD_FRAME, "`system` is set by this gateway's operator; leave it out.")
        budget = self._budgets.of(frame.model or self._settings.model)
        tools = list(frame.tools or ())
        # Of many tools only some will be sent; which isn't known before the turn.
        texts = [
            frame.message,
            frame.system or "",
            *tool_texts(tools if len(tools) <= self._settings.max_tools else ()),
        ]
        if budget.factor * sum(map(len, texts)) <= budget.room:
            return  # a token is at least one character
        needed = budget.scaled(await budget.tokens(texts))
        if needed > budget.room:
            raise budget.too_large(needed)

    async def prepare(
        self,
        fold: Fold,
        turn: TurnFold,
        known: dict[str, int],
        *,
        tools: bool,
        server_tools: Sequence[Tool] = (),
        claims: Mapping[str, str] = NO_CLAIMS,
    ) -> Prepared:
        """The next model call of `turn`, with those of the gateway's and its question's tools that matter, if `tools`.
        Counts of ended turns are kept in `known`; `claims` are the user's that may enter the prompt. Raises `Refusal`
        (`CONTEXT_TOO_LARGE`). Safe to cancel."""
        options = turn.message.options or Options()
        model = options.model or self._settings.model
        budget = self._budgets.of(model)
        offered = await self._offered(fold, turn, [*server_tools, *(options.tools or ())]) if tools else []
        system = self._system_of(fold, turn)

        async def prompt(memory: Memory | None) -> Part:
            text = self._prompt.render(system, memory, now_s=self._now(), claims=claims)
            messages = [{"role": "system", "content": text}] if text else []
            return Part(messages, await budget.cost(messages))

        *past, (_, own) = await parts(budget, [*_since_memory(fold, turn), turn], known)
        layout = Layout(
            system=await prompt(fold.memory),
            past=past,
            own=own,
            fixed=budget.scaled(REPLY_PRIMING + tool_framing(offered) + await budget.tokens(list(tool_texts(offered)))),
        )
        compaction = None
        if layout.tokens > budget.room:
            layout, compaction = await self._fitted(budget, layout, fold.memory, prompt)
        return Prepared(ModelRequest(messages=layout.messages, model=model, tools=offered), compaction)

    # ------------------------------------------------------------ what goes in

    async def _offered(self, fold: Fold, turn: TurnFold, tools: list[Tool]) -> list[Tool]:
        if len(tools) <= self._settings.max_tools:
            return tools
        return await self._selector.select(tools, turn.message.content, _called_lately(fold, turn))

    def _system_of(self, fold: Fold, turn: TurnFold) -> str | None:
        """The conversation's own: what the last message up to this one that had a `system` said."""
        if self._settings.client_system == "refuse":
            return None
        source = next((found for one in _backwards(fold, turn) if (found := self._source(one)) is not None), "")
        self._sources[turn.turn_id] = source
        while len(self._sources) > KEPT_SOURCES:
            del self._sources[next(iter(self._sources))]
        options = fold.turns[source].message.options if source else None
        return options.system if options is not None else None

    def _source(self, turn: TurnFold) -> str | None:
        """The turn whose `system` holds for `turn`, as far as that is known without a look at earlier ones."""
        options = turn.message.options
        if options is not None and options.system is not None:
            return turn.turn_id
        return self._sources.get(turn.turn_id)

    # ------------------------------------------------------------ over budget

    async def _fitted(
        self, budget: Budget, layout: Layout, memory: Memory | None, prompt: Prompt
    ) -> tuple[Layout, Compaction | None]:
        bare = await prompt(None)
        alone = layout.fixed + layout.own.tokens + bare.tokens
        if alone > budget.room:
            raise budget.too_large(alone)
        room = budget.room - alone
        kept = _keeping(layout, KEEP_SHARE * room)
        older, rest = layout.past[:kept], layout.past[kept:]
        fitted, compaction = layout, None
        if older:
            left = room - sum(part.tokens for _, part in rest)
            limit = min(int(SUMMARY_SHARE * budget.total), left // 2 - HEADING_TOKENS)
            summary = await self._summary(budget, memory.summary if memory else "", older, limit)
            made = Memory(through=older[-1][0].turn_id, summary=summary)
            fitted = layout._replace(system=await prompt(made), past=rest)
            compaction = Compaction(
                Compacted(len(layout.messages), len(fitted.messages), layout.tokens, fitted.tokens), made
            )
        if fitted.tokens > budget.room:
            # Beside a turn that takes nearly everything there is no room for the summary. It is left out of this
            # call alone, and stays in the log for the next one.
            fitted = fitted._replace(system=await prompt(Memory(through="")))
            if fitted.tokens > budget.room:
                fitted = fitted._replace(system=bare)
        return fitted, compaction

    async def _summary(self, budget: Budget, summary: str, older: Sequence[tuple[TurnFold, Part]], limit: int) -> str:
        """Of the earlier summary and the `older` turns; without them, and saying so, when that fails."""
        reads = min(budget.total, self._budgets.of(self._settings.summary_model).total)
        limit = min(limit, int(SUMMARY_SHARE * reads))
        try:
            if limit < LEAST_SUMMARY_TOKENS:
                raise SummaryFailed("there is no room for one", summary)
            return await self._summarizer.extend(
                summary,
                [part.messages for _, part in older],
                budget.counter,
                limit_tokens=int(limit / budget.factor),
                chunk_tokens=int(READ_SHARE * reads / budget.factor),
            )
        except SummaryFailed as problem:
            log_lines.warning("no summary: the oldest turns are left out", turns=len(older), problem=str(problem))
            summary = problem.so_far
        if summary and not summary.endswith(GAP_NOTICE):
            summary += f"\n{GAP_NOTICE}"
        return summary


def _keeping(layout: Layout, tokens: float) -> int:
    """Where the turns begin that stay word for word: the latest that take at most so many tokens."""
    start = len(layout.past)
    while start and layout.past[start - 1][1].tokens <= tokens:
        start -= 1
        tokens -= layout.past[start][1].tokens
    return start


def _backwards(fold: Fold, turn: TurnFold) -> Iterator[TurnFold]:
    """`turn` and those before it, latest first."""
    turns = iter(reversed(fold.turns.values()))
    for candidate in turns:
        if candidate is turn:
            yield turn
            yield from turns


def _since_memory(fold: Fold, turn: TurnFold) -> list[TurnFold]:
    """The turns that are sent word for word before `turn`, in turn order. Costs what is sent, not what was said."""
    through = fold.memory.through if fold.memory is not None else None
    earlier: list[TurnFold] = []
    for candidate in _backwards(fold, turn):
        if candidate.turn_id == through:
            break
        if candidate is not turn:
            earlier.append(candidate)
    earlier.reverse()
    return earlier


def _called_lately(fold: Fold, turn: TurnFold) -> list[str]:
    """Names of the functions called in the last turns, latest first."""
    latest = islice(_backwards(fold, turn), RECENT_TURNS)
    return list(dict.fromkeys(call.name for one in latest for call in reversed([*one.calls.values()])))
