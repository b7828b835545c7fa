"""One model call of a turn: asked, tried again while nothing of it was seen, and its text made into entries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.context.manager import ContextManager
from gateway.logs.feed import Feed
from gateway.models.model import CallFragment, Finish, Model, ModelError, ModelRequest
from gateway.models.model import Event as ModelEvent
from gateway.sessions.batcher import Batcher
from gateway.sessions.calls import CallAssembler
from gateway.sessions.states import Event, State
from gateway.settings import LogAndSessions, Upstream
from gateway.telemetry.metrics import Metrics
from gateway.tools.toolbox import Toolbox
from protocol.codes import ErrorCode, Refusal
from protocol.frames import FinishReason, Usage

ATTEMPTS = 3
RETRY_BASE_S = 0.5

log_lines = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Engine:
    """What every turn of this node needs."""

    model: Model
    context: ContextManager
    toolbox: Toolbox
    model_settings: Upstream
    log_settings: LogAndSessions
    metrics: Metrics


class Owner(Protocol):
    """The turn that a model call belongs to."""

    @property
    def state(self) -> State: ...

    @property
    def feed(self) -> Feed: ...

    def move(self, event: Event) -> None: ...


class Generation:
    """`run` once. `flush` at any time: before every other frame of the turn, and when it is stopped."""

    def __init__(self, owner: Owner, engine: Engine, emit: Callable[[list[str]], None]) -> None:
        self.tokens = 0
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.calls: CallAssembler | None = None
        self._owner = owner
        self._engine = engine
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        chars, held_s = engine.log_settings.batch_chars, engine.log_settings.batch_ms / 1000
        self._batcher = Batcher(chars, held_s) if chars and held_s else None
        self._batch_since = 0.0
        self._flush_timer: asyncio.TimerHandle | None = None

    async def run(self, request: ModelRequest) -> None:
        """Returns when the model has finished. Raises `Refusal`, and `LogUnavailable` when the conversation isn't
        ours any more. Cancelling it closes the upstream request."""
        last_problem: ModelError | None = None
        try:
            async with asyncio.timeout(self._engine.model_settings.first_token_timeout_s) as deadline:
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        await self._stream(request, deadline)
                        break
                    except ModelError as problem:
                        last_problem = problem
                        await self._before_retry(problem, attempt, deadline)
        except TimeoutError:
            raise self._timed_out(last_problem) from None
        finally:
            if not self._owner.state.over:
                self.flush()
            self._cancel_timer()

    # ------------------------------------------------------------ asking

    async def _stream(self, request: ModelRequest, deadline: asyncio.Timeout) -> None:
        token_timeout_s = self._engine.model_settings.token_timeout_s
        owner, feed, rearm_at = self._owner, self._owner.feed, 0.0
        async with aclosing(self._engine.model.stream(request)) as stream:
            async for events in stream:
                now = self._loop.time()
                if owner.state is State.REQUESTED and _is_output(events):
                    self._engine.metrics.first_token(now - self._started_at)
                    owner.move(Event.OUTPUT)
                self._take(events, now)
                if now >= rearm_at and owner.state is State.STREAMING:
                    # Re-arming at every read would cost more than the read: an eighth of slack saves it.
                    deadline.reschedule(now + 1.125 * token_timeout_s)
                    rearm_at = now + 0.125 * token_timeout_s
                if not feed.has_room:
                    deadline.reschedule(None)
                    await feed.when_room()
                    rearm_at = 0.0
                    deadline.reschedule(self._loop.time() + token_timeout_s)

    async def _before_retry(self, problem: ModelError, attempt: int, deadline: asyncio.Timeout) -> None:
        """Waits, with full jitter, before the next attempt; raises `problem` when there should be none."""
        if self._owner.state is not State.REQUESTED or not problem.transient or attempt == ATTEMPTS:
            raise problem
        delay_s = random.uniform(0, RETRY_BASE_S * 2**attempt)
        if problem.retry_after_s is not None:
            delay_s = max(delay_s, problem.retry_after_s)
        if (until := deadline.when()) is not None and self._loop.time() + delay_s >= until:
            raise problem
        log_lines.info("model call failed, trying again", code=problem.code.name, attempt=attempt, delay_s=delay_s)
        self._owner.move(Event.RETRY)
        self.calls = self.reason = None
        await asyncio.sleep(delay_s)

    def _timed_out(self, last_problem: ModelError | None) -> Refusal:
        settings = self._engine.model_settings
        if self._owner.state is State.STREAMING:
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
                if self.calls is None:
                    self.calls = CallAssembler()
                self.calls.add(event)
            elif isinstance(event, Finish):
                self.reason = event.reason
            elif isinstance(event, Usage):
                self.usage = event
        if pieces:
            self._emit(pieces)
            self._engine.metrics.tokens(len(pieces), now - self._batch_since if self._batch_since else 0.0)
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
            self.flush()

    def flush(self) -> None:
        """Sends what the batcher holds."""
        if self._batcher is not None and (text := self._batcher.flush()):
            self._emit([text])
            self._engine.metrics.tokens(1, self._loop.time() - self._batch_since)
            self._batch_since = 0.0

    def _cancel_timer(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None


def _is_output(events: list[ModelEvent]) -> bool:
    return any(isinstance(event, (str, CallFragment)) for event in events)
