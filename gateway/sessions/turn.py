"""The turn engine: one running turn, from its question to its last model call.

It is owned by the node and not by a connection. It decides when to ask the model, what becomes an entry, and how
the turn ends; `Session` appends, and makes sure that a turn ends once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Protocol

import structlog
from msgspec import UNSET, UnsetType, structs

from gateway.context.manager import Compaction
from gateway.logs.feed import Feed
from gateway.logs.log import LogUnavailable
from gateway.sessions.calls import BrokenCalls, WholeCall
from gateway.sessions.generation import Engine, Generation
from gateway.sessions.states import Event, State, after
from gateway.tools.toolbox import ToolFailed
from protocol.codes import ErrorCode, Refusal
from protocol.fold import Fold, TurnFold
from protocol.frames import FinishReason, FoldedCall, Tool, Usage

MAX_ROUNDS = 16
"""After so many rounds of calls in one turn the model is asked once more, without tools."""
OUTCOME_UNKNOWN = "the gateway stopped while this ran; whether it was done isn't known"

log_lines = structlog.get_logger(__name__)


class Host(Protocol):
    """What a running turn asks of its session."""

    feed: Feed
    fold: Fold
    token_counts: dict[str, int] | None
    """Of ended turns, by turn: a model call costs what is new. None while there are none."""

    def append_text(self, turn: TurnFold, pieces: list[str]) -> None: ...

    def append_context(self, turn_id: str, compaction: Compaction) -> None: ...

    def append_calls(self, turn_id: str, calls: list[WholeCall]) -> None: ...

    def append_result(self, turn: TurnFold, call: FoldedCall, result: Any, error: str | UnsetType) -> None: ...

    def finish(self, run: TurnRun, reason: FinishReason, usage: Usage | None) -> None: ...

    def fail(self, run: TurnRun, refusal: Refusal) -> None: ...


class TurnRun:
    """`run` is the body of one task. `stop` ends it from outside, at any await, and closes the upstream request."""

    __slots__ = ("_answered", "_begun", "_earlier_tokens", "_engine", "_generation", "_host", "_tool_tasks", "ending",
                 "feed", "started_at", "state", "task", "turn", "unread_since", "usage")  # fmt: skip

    def __init__(self, host: Host, turn: TurnFold, engine: Engine) -> None:
        self.turn = turn
        self.state = after(State.QUEUED, Event.START)
        self.usage: Usage | None = None
        self.started_at = asyncio.get_running_loop().time()
        self.task: asyncio.Task[None] | None = None
        self.unread_since: float | None = None
        """Loop time; the pool keeps it."""
        self.feed = host.feed
        self._host = host
        self._engine = engine
        self._generation: Generation | None = None
        self._earlier_tokens = 0
        """Of the generations before this one."""
        self._answered = asyncio.Event()
        self.ending = False
        """The calls of this round are closed, or the turn is: no tool is started any more."""
        self._tool_tasks: dict[asyncio.Task[None], FoldedCall] = {}
        self._begun: set[str] = set()
        """Calls whose tool this run has started."""

    def start(self) -> asyncio.Task[None]:
        self.task = asyncio.create_task(self.run(), name=f"turn {self.turn.turn_id}")
        return self.task

    def stop(self, event: Event) -> None:
        """Sends what the batcher holds, moves to the end that `event` means, and cancels the task."""
        self._flush()
        self.move(event)
        if self.task is not None:
            self.task.cancel()

    def move(self, event: Event) -> None:
        self.state = after(self.state, event)

    @property
    def tokens(self) -> int:
        """What the model has sent so far, over all rounds."""
        return self._earlier_tokens + (self._generation.tokens if self._generation else 0)

    @property
    def waits_for_client(self) -> bool:
        return self.state is State.WAITING and any(call.runs != "gateway" for call in self.turn.open_calls)

    @property
    def rests(self) -> bool:
        """It waits for its client, and nothing else goes on."""
        return self.waits_for_client and not self._tool_tasks

    # ------------------------------------------------------------ the loop of rounds

    async def run(self) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            conversation_id=self._host.feed.key.conversation_id, turn_id=self.turn.turn_id
        )
        try:
            if self.turn.open_calls:
                self.state = State.WAITING
                self._settle_unknown()
                await self._results()
            while calls := await self._round():
                self.move(Event.CALLS)
                self._host.append_calls(self.turn.turn_id, calls)
                await self._results()
            reason = self._generation.reason if self._generation else None
            self._host.finish(self, reason or "stop", self.usage)
        except Refusal as refusal:
            self._fail(refusal)
        except LogUnavailable:
            log_lines.warning("turn left: its conversation is no longer ours")
        except Exception:
            log_lines.exception("turn failed by a bug")
            self._fail(Refusal(ErrorCode.INTERNAL, "The gateway failed on this turn. Please try again."))
        finally:
            # Each holds the other: an ended turn would keep its session in memory until the collector comes by.
            self._earlier_tokens, self._generation = self.tokens, None

    def _fail(self, refusal: Refusal) -> None:
        if not self.state.over:
            self._flush()
            self._host.fail(self, refusal)

    def _flush(self) -> None:
        if self._generation is not None:
            self._generation.flush()

    async def _round(self) -> list[WholeCall]:
        """One model call, or two: calls that can't be understood are given back to the model once. Returns the calls
        that it wants answered; none: this was the answer."""
        broken = await self._generate([])
        if isinstance(broken, BrokenCalls):
            log_lines.info("calls given back to the model", problems=broken.problems)
            self.move(Event.REPEAT)
            again = await self._generate(broken.messages(self._said()))
            if isinstance(again, BrokenCalls):
                problem = "; ".join(again.problems)[:300]
                raise Refusal(ErrorCode.STREAM_ERROR, f"The model can't call its functions: {problem}", retryable=False)
            return again
        return broken

    def _said(self) -> str:
        """The text of the last model call."""
        return self.turn.content[len(self.turn.text) :]

    async def _generate(self, more: list[dict[str, Any]]) -> list[WholeCall] | BrokenCalls:
        """`more`: messages that follow those of the context, for this call only."""
        may_call = self.turn.rounds < MAX_ROUNDS
        known = self._host.token_counts or {}
        prepared = await self._engine.context.prepare(
            self._host.fold, self.turn, known, tools=may_call, server_tools=self._engine.toolbox.specs
        )
        self._host.token_counts = known or None
        if prepared.compaction is not None:
            self._host.append_context(self.turn.turn_id, prepared.compaction)
        request = prepared.request
        if more:
            request = structs.replace(request, messages=[*request.messages, *more])
        self.move(Event.PREPARED)
        self._earlier_tokens = self.tokens
        generation = self._generation = Generation(self, self._engine, partial(self._host.append_text, self.turn))
        await generation.run(request)
        self.usage = _sum(self.usage, generation.usage)
        if generation.calls is None or generation.reason is not None:
            return []
        if not may_call:
            text = f"The model asked for functions more than {MAX_ROUNDS} times in one turn."
            raise Refusal(ErrorCode.STREAM_ERROR, text, retryable=False)
        return generation.calls.whole(self._known_tools())

    def _known_tools(self) -> dict[str, Tool]:
        options = self.turn.message.options
        tools = [*((options.tools if options else None) or ()), *self._engine.toolbox.specs]
        return {tool.function.name: tool for tool in tools}

    # ------------------------------------------------------------ results

    def answered(self) -> None:
        """A call has its result, or its approval."""
        self._answered.set()

    def run_tool(self, call: FoldedCall) -> None:
        """Starts a tool of the gateway, which the model asked for or the user has just approved: once, and not before
        what was just appended is in the log, or a crash would forget that it ran."""
        if call.call_id in self._begun or self.ending:
            return
        self._begun.add(call.call_id)
        task = asyncio.create_task(self._run_tool(call, self.feed.seq), name=f"tool {call.name}")
        self._tool_tasks[task] = call
        task.add_done_callback(self._tool_ended)

    async def _results(self) -> None:
        """Waits until every open call has its result, however often the node changes meanwhile."""
        timeout_s = self._engine.model_settings.function_timeout_s
        self.ending = False
        try:
            for call in self.turn.open_calls:
                if call.runs == "gateway":
                    self.run_tool(call)
            async with asyncio.timeout(timeout_s) as deadline:
                while self.turn.open_calls:
                    if not self.waits_for_client:  # the gateway's tools have time-outs of their own
                        deadline.reschedule(None)
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            names = ", ".join(sorted({call.name for call in self.turn.open_calls if call.runs != "gateway"}))
            raise Refusal(ErrorCode.FUNCTION_TIMEOUT, f"No result for {names} came within {timeout_s:g} s.") from None
        finally:
            await self._end_tools()
        self.move(Event.ANSWERED)

    async def _run_tool(self, call: FoldedCall, after_seq: int) -> None:
        result: Any = UNSET
        error: str | UnsetType = UNSET
        try:
            await self.feed.when_committed(after_seq)
            result = await self._engine.toolbox.run(call.name, call.args, call_id=call.call_id)
        except ToolFailed as failure:
            error = str(failure)
        except LogUnavailable:
            return  # nothing can be logged for this turn any more, so nothing is done for it
        self._close_call(call, result, error)

    def _close_call(self, call: FoldedCall, result: Any, error: str | UnsetType) -> None:
        if not self.state.over and self.turn.calls[call.call_id].open:
            self._host.append_result(self.turn, call, result, error)
            self.answered()

    def _tool_ended(self, task: asyncio.Task[None]) -> None:
        call = self._tool_tasks.pop(task)
        if self.ending or (not task.cancelled() and task.exception() is None):
            return
        log_lines.error(
            "a tool's task ended by a bug", tool=call.name, exc_info=None if task.cancelled() else task.exception()
        )
        self._close_call(call, UNSET, "the tool failed")

    async def _end_tools(self) -> None:
        self.ending = True
        while tasks := list(self._tool_tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # their callbacks take them out

    def _settle_unknown(self) -> None:
        """After a take-over: a tool of the gateway whose result isn't in the log may have run. It isn't run again
        unless that does no harm (SPEC.md section 10.6)."""
        for call in self.turn.open_calls:
            unknown = call.runs == "gateway" and call.call_id not in self._begun
            if unknown and not self._engine.toolbox.idempotent(call.name):
                self._host.append_result(self.turn, call, UNSET, OUTCOME_UNKNOWN)


def _sum(so_far: Usage | None, more: Usage | None) -> Usage | None:
    if so_far is None or more is None:
        return so_far or more
    return Usage(so_far.prompt_tokens + more.prompt_tokens, so_far.completion_tokens + more.completion_tokens)
