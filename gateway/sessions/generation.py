"""One model call of a turn: asked, tried again while nothing of it was seen, and its text made into entries."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.context.manager import ContextManager
from gateway.logs.feed import Feed
from gateway.models.model import CallFragment, Finish, Model, ModelError, ModelRequest
from gateway.models.model import Event as ModelEvent
from gateway.sessions.batcher import Batcher
from gateway.sessions.calls import CallAssembler
from gateway.sessions.deadline import Deadline
from gateway.sessions.patience import Patience
from gateway.sessions.states import Event, State
from gateway.settings import LogAndSessions, Upstream
from gateway.telemetry.metrics import Metrics
from gateway.tools.toolbox import Toolbox
from protocol.codes import ErrorCode, Refusal
from protocol.frames import FinishReason, Usage

ATTEMPTS = 3
_STREAMING = State.STREAMING
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

    __slots__ = ("_batcher", "_emit", "_engine", "_flushing", "_held_since", "_loop", "_owner", "_patience",
                 "_started_at", "_token_timeout_s", "calls", "reason", "tokens", "usage")  # fmt: skip

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
        self._patience = Patience()
        self._token_timeout_s = engine.model_settings.token_timeout_s
        # Text that isn't read for so long mustn't be taken for a model that is silent.
        chars, held_s = engine.log_settings.batch_chars, engine.log_settings.batch_ms / 1000
        held_s = min(held_s, self._token_timeout_s / 2)
        self._batcher = Batcher(chars, held_s) if chars and held_s else None
        self._held_since = 0.0
        self._flushing = Deadline(self.flush)

    async def run(self, request: ModelRequest) -> None:
        """Returns when the model has finished. Raises `Refusal`, and `LogUnavailable` when the conversation isn't
        ours any more. Cancelling it closes the upstream request."""
        last_problem: ModelError | None = None
        model = self._engine.model
        try:
            async with self._patience as patience:
                patience.wait_until(self._loop.time() + self._engine.model_settings.first_token_timeout_s)
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        await model.answer(request, self)
                        break
                    except ModelError as problem:
                        last_problem = problem
                        await self._before_retry(problem, attempt)
        except TimeoutError:
            raise self._timed_out(last_problem) from None
        finally:
            if not self._owner.state.over:
                self.flush()
            self._flushing.close()

    # ------------------------------------------------------------ asking

    async def _before_retry(self, problem: ModelError, attempt: int) -> None:
        """Waits, with full jitter, before the next attempt; raises `problem` when there should be none."""
        if self._owner.state is not State.REQUESTED or not problem.transient or attempt == ATTEMPTS:
            raise problem
        delay_s = random.uniform(0, RETRY_BASE_S * 2**attempt)
        if problem.retry_after_s is not None:
            delay_s = max(delay_s, problem.retry_after_s)
        if self._loop.time() + delay_s >= self._patience.until:
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

    # ------------------------------------------------------------ what the model says (`models.model.Sink`)

    def take(self, events: list[ModelEvent], since: float) -> float:
        """One read, made into entries at once, or held by the batcher."""
        state, now, batcher, hold_s = self._owner.state, self._loop.time(), self._batcher, 0.0
        pieces: list[str] = events  # type: ignore[assignment]  # as nearly always
        for event in events:
            if type(event) is not str:
                pieces = self._note(events)
                break
        if state is not _STREAMING:
            if state.over:  # stopped in this turn of the loop; the model will hear of it in the next
                return math.inf
            if pieces or self.calls is not None:
                self._engine.metrics.first_token(now - self._started_at)
                self._owner.move(Event.OUTPUT)
                self._patience.wait_until(now + self._token_timeout_s)
        else:
            self._patience.until = now + self._token_timeout_s
        if pieces:
            count = len(pieces)
            self.tokens += count
            if batcher is None:
                self._emit(pieces)
                self._engine.metrics.tokens(count, now - since)
            else:
                self._batch(batcher, batcher.add(pieces, since, now), since, now)
                hold_s = batcher.unread_s(now, self._owner.feed.group)
        return hold_s if self._owner.feed.has_room else math.inf

    async def room(self) -> None:
        """While the log can't be written it is no fault of the model that it isn't heard."""
        if self._owner.state.over:
            await asyncio.Event().wait()  # until the cancellation is here
        self._patience.until = math.inf
        await self._owner.feed.when_room()
        self._patience.wait_until(self._loop.time() + self._token_timeout_s)

    def _note(self, events: list[ModelEvent]) -> list[str]:
        """Takes what isn't text, and returns what is."""
        pieces = []
        for event in events:
            if isinstance(event, str):
                pieces.append(event)
            elif isinstance(event, CallFragment):
                if self.calls is None:
                    self.calls = CallAssembler()
                self.calls.add(event)
            elif isinstance(event, Finish):
                self.reason = event.reason
            elif isinstance(event, Usage):
                self.usage = event
        return pieces

    def _batch(self, batcher: Batcher, text: str, since: float, now: float) -> None:
        """`text`: what the batcher wants sent now."""
        self._held_since = self._held_since or since
        if text:
            self._send(text, now)
        elif batcher.due_at is not None:
            self._flushing.wait_until(batcher.due_at)

    def _send(self, text: str, now: float) -> None:
        self._emit([text])
        self._engine.metrics.tokens(1, now - self._held_since)
        self._held_since = 0.0

    def flush(self) -> None:
        """Sends what the batcher holds."""
        if self._batcher is not None and (text := self._batcher.flush()):
            self._send(text, self._loop.time())
