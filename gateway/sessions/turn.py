"""The turn engine: one running turn, from its question to its last model call.

It is owned by the node and not by a connection. It decides when to ask the model, what becomes an entry, and how
the turn ends; `Session` appends, and makes sure that a turn ends once.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.context.manager import Compaction, ContextManager
from gateway.logs.feed import Feed
from gateway.logs.log import LogUnavailable
from gateway.models.model import CallFragment, Finish, Model, ModelError, ModelRequest
from gateway.models.model import Event as ModelEvent
from gateway.sessions.batcher import Batcher
from gateway.sessions.calls import CallAssembler, WholeCall
from gateway.sessions.states import Event, State, after
from gateway.settings import LogAndSessions, Upstream
from gateway.telemetry.metrics import Metrics
from protocol.codes import ErrorCode, Refusal
from protocol.fold import Fold, TurnFold
from protocol.frames import FinishReason, Usage

MAX_ROUNDS = 16
"""After so many rounds of calls in one turn the model is asked once more, without tools."""
ATTEMPTS = 3
RETRY_BASE_S = 0.5

log_lines = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Engine:
    """What every turn of this node needs."""

    model: Model
    context: ContextManager
    model_settings: Upstream
    log_settings: LogAndSessions
    metrics: Metrics


class Host(Protocol):
    """What a running turn asks of its session."""

    feed: Feed
    fold: Fold
    token_counts: dict[str, int]

    def append_context(self, turn_id: str, compaction: Compaction) -> None: ...

    def append_text(self, turn_id: str, pieces: list[str]) -> None: ...

    def append_calls(self, turn_id: str, calls: list[WholeCall]) -> None: ...

    def finish(self, run: TurnRun, reason: FinishReason, usage: Usage | None) -> None: ...

    def fail(self, run: TurnRun, refusal: Refusal) -> None: ...


class TurnRun:
    """`run` is the body of one task. `stop` ends it from outside, at any await, and closes the upstream request."""

    def __init__(self, host: Host, turn: TurnFold, engine: Engine) -> None:
        self.turn = turn
        self.state = after(State.QUEUED, Event.START)
        self.usage: Usage | None = None
        self.tokens = 0
        self._host = host
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        self._answered = asyncio.Event()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._batch_since = 0.0
        self._new_generation()
        self.task: asyncio.Task[None] | None = None

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

    def answered(self) -> None:
        """The last open call has its result."""
        self._answered.set()

    @property
    def waits_for_client(self) -> bool:
        return self.state is State.WAITING

    # ------------------------------------------------------------ the loop of rounds

    async def run(self) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            conversation_id=self._host.feed.key.conversation_id, turn_id=self.turn.turn_id
        )
        try:
            if self.turn.open_calls:
                self.state = State.WAITING
                await self._results()
            while calls := await self._generate():
                self.move(Event.CALLS)
                self._host.append_calls(self.turn.turn_id, calls)
                await self._results()
            self._host.finish(self, self._reason or "stop", self.usage)
        except Refusal as refusal:
            self._fail(refusal)
        except LogUnavailable:
            log_lines.warning("turn left: its conversation is no longer ours")
        except Exception:
            log_lines.exception("turn failed by a bug")
            self._fail(Refusal(ErrorCode.INTERNAL, "The gateway failed on this turn. Please try again."))
        finally:
            self._cancel_timer()

    def _fail(self, refusal: Refusal) -> None:
        if not self.state.over:
            self._flush()
            self._host.fail(self, refusal)

    async def _results(self) -> None:
        """Waits until every open call has its result, however often the node changes meanwhile."""
        self._answered.clear()
        if self.turn.open_calls:
            timeout_s = self._engine.model_settings.function_timeout_s
            try:
                async with asyncio.timeout(timeout_s):
                    await self._answered.wait()
            except TimeoutError:
                names = ", ".join(sorted({call.name for call in self.turn.open_calls}))
                raise Refusal(
                    ErrorCode.FUNCTION_TIMEOUT, f"No result for {names} came within {timeout_s:g} s."
                ) from None
        self.move(Event.ANSWERED)

    # ------------------------------------------------------------ one model call

    def _new_generation(self) -> None:
        settings = self._engine.log_settings
        self._batcher = (
            Batcher(settings.batch_chars, settings.batch_ms / 1000)
            if settings.batch_chars and settings.batch_ms
            else None
        )
        self._calls: CallAssembler | None = None
        self._reason: FinishReason | None = None

    async def _generate(self) -> list[WholeCall]:
        """One model call, tried again while nothing of it was seen. Returns the calls that it wants answered."""
        self._new_generation()
        prepared = await self._engine.context.prepare(
            self._host.fold, self.turn, self._host.token_counts, tools=self.turn.rounds < MAX_ROUNDS
        )
        if prepared.compaction is not None:
            self._host.append_context(self.turn.turn_id, prepared.compaction)
        self.move(Event.PREPARED)
        settings = self._engine.model_settings
        last_problem: ModelError | None = None
        try:
            async with asyncio.timeout(settings.first_token_timeout_s) as deadline:
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        await self._stream(prepared.request, deadline)
                        break
                    except ModelError as problem:
                        last_problem = problem
                        await self._before_retry(problem, attempt, deadline)
        except TimeoutError:
            raise self._timed_out(last_problem) from None
        self._flush()
        if self._calls is None or self._reason is not None:
            return []
        if self.turn.rounds >= MAX_ROUNDS:
            text = f"The model asked for functions more than {MAX_ROUNDS} times in one turn."
            raise Refusal(ErrorCode.STREAM_ERROR, text, retryable=False)
        return self._calls.whole()

    async def _stream(self, request: ModelRequest, deadline: asyncio.Timeout) -> None:
        token_timeout_s = self._engine.model_settings.token_timeout_s
        rearm_at = 0.0
        async with aclosing(self._engine.model.stream(request)) as stream:
            async for events in stream:
                now = self._loop.time()
                if self.state is State.REQUESTED and self._is_output(events):
                    self._engine.metrics.first_token(now - self.started_at)
                    self.move(Event.OUTPUT)
                self._take(events, now)
                if now >= rearm_at and self.state is State.STREAMING:
                    # Re-arming at every read would cost more than the read: an eighth of slack saves it.
                    deadline.reschedule(now + 1.125 * token_timeout_s)
                    rearm_at = now + 0.125 * token_timeout_s
                if not self._host.feed.has_room:
                    deadline.reschedule(None)
                    await self._host.feed.when_room()
                    rearm_at = 0.0
                    deadline.reschedule(self._loop.time() + token_timeout_s)

    @staticmethod
    def _is_output(events: list[ModelEvent]) -> bool:
        return any(isinstance(event, (str, CallFragment)) for event in events)

    async def _before_retry(self, problem: ModelError, attempt: int, deadline: asyncio.Timeout) -> None:
        """Waits, with full jitter, before the next attempt; raises `problem` when there should be none."""
        if self.state is not State.REQUESTED or not problem.transient or attempt == ATTEMPTS:
            raise problem
        delay_s = random.uniform(0, RETRY_BASE_S * 2**attempt)
        if problem.retry_after_s is not None:
            delay_s = max(delay_s, problem.retry_after_s)
        if (until := deadline.when()) is not None and self._loop.time() + delay_s >= until:
            raise problem
        log_lines.info("model call failed, trying again", code=problem.code.name, attempt=attempt, delay_s=delay_s)
        self.move(Event.RETRY)
        self._calls = self._reason = None
        await asyncio.sleep(delay_s)

    def _timed_out(self, last_problem: ModelError | None) -> Refusal:
        settings = self._engine.model_settings
        if self.state is State.STREAMING:
            text = f"The model went silent in mid-answer for {settings.token_timeout_s:g} s."
            return Refusal(ErrorCode.UPSTREAM_TIMEOUT, text)
        if last_problem is not None:
            return last_problem
        text = f"The model sent no first token within {settings.first_token_timeout_s:g} s."
        return Refusal(ErrorCode.UPSTREAM_TIMEOUT, text)

    # ------------------------------------------------------------ what the stream brings

    def _take(self, events: list[ModelEvent], now: float) -> None:
        pieces: list[str] = []
        batcher = self._batcher
        for event in events:
            if type(event) is str:
                self.tokens += 1
                if batcher is None:
                    pieces.append(event)
                elif text := batcher.add(event, now):
                    pieces.append(text)
            elif isinstance(event, CallFragment):
                if self._calls is None:
                    self._calls = CallAssembler()
                self._calls.add(event)
            elif isinstance(event, Finish):
                self._reason = event.reason
            elif isinstance(event, Usage):
                self.usage = _sum(self.usage, event)
        if pieces:
            self._host.append_text(self.turn.turn_id, pieces)
            self._engine.metrics.tokens(len(pieces), now - self._batch_since if batcher and self._batch_since else 0.0)
            self._batch_since = 0.0
        if batcher is not None and batcher.due_at is not None:
            self._batch_since = self._batch_since or now
            if self._flush_timer is None:
                self._flush_timer = self._loop.call_at(batcher.due_at, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_timer = None
        batcher = self._batcher
        if batcher is None or batcher.due_at is None:
            return
        if batcher.due_at > self._loop.time():  # what was held went out by size, and something new is held
            self._flush_timer = self._loop.call_at(batcher.due_at, self._flush_due)
        else:
            self._flush()

    def _flush(self) -> None:
        """Sends what the batcher holds: before any other frame of the turn, and when its time is up."""
        if self._batcher is not None and (text := self._batcher.flush()):
            self._host.append_text(self.turn.turn_id, [text])
            self._engine.metrics.tokens(1, self._loop.time() - self._batch_since)
            self._batch_since = 0.0

    def _cancel_timer(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None


def _sum(so_far: Usage | None, more: Usage) -> Usage:
    if so_far is None:
        return more
    return Usage(so_far.prompt_tokens + more.prompt_tokens, so_far.completion_tokens + more.completion_tokens)
