"""A session owns one conversation on this node: it decides the order of turns and is the only one that appends.

Every decision is synchronous: it is made and appended before anything else runs, so there are no locks. What has
to wait (for a commit, for the model) waits afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import takewhile
from typing import Any, Literal, NamedTuple, TypeVar

from msgspec import UNSET, UnsetType, structs

from gateway.context.manager import Compaction
from gateway.logs.feed import Feed
from gateway.sessions.calls import WholeCall, approval, same_json
from gateway.sessions.generation import Engine
from gateway.sessions.refusals import Stopping
from gateway.sessions.states import Event
from gateway.sessions.turn import TurnRun
from protocol.codes import ErrorCode, Refusal
from protocol.fold import Fold, TurnFold
from protocol.frames import (
    ChatMessage,
    Context,
    Done,
    Entry,
    Error,
    ErrorBody,
    FinishReason,
    FoldedCall,
    FunctionCall,
    FunctionResult,
    LoggedFrame,
    Message,
    Options,
    Restart,
    Usage,
)
from protocol.merge import TOKEN_CHARS, split

MAX_RESTARTS = 3

T = TypeVar("T", bound=LoggedFrame)


class Acknowledged(NamedTuple):
    """A message that is appended; it is in the log when entry `seq` is committed."""

    turn_id: str
    seq: int
    epoch: int
    duplicate: bool


class Outcome(NamedTuple):
    """What `cancel` did; `seq` is the entry that has to be committed before it may be told."""

    outcome: Literal["stopped", "already_done", "not_found"]
    turn_id: str | None
    seq: int


class Session:
    """`fold` is always the fold of everything appended to `feed`."""

    __slots__ = ("_engine", "_on_run", "draining", "feed", "fold", "last_active", "run", "token_counts")

    def __init__(self, feed: Feed, fold: Fold, engine: Engine, on_run: Callable[[TurnRun, Session], None]) -> None:
        self.feed = feed
        self.fold = fold
        self.run: TurnRun | None = None
        self.last_active = 0.0
        """Loop time; the pool keeps it."""
        self.draining = False
        self.token_counts: dict[str, int] | None = None
        self._engine = engine
        self._on_run = on_run

    @property
    def idle(self) -> bool:
        """Nothing is running, queued or waiting for a function's result."""
        return self.run is None and self.fold.current() is None

    # ------------------------------------------------------------ commands

    def submit(self, frame: ChatMessage, *, max_queued: int) -> Acknowledged:
        """Appends a message and starts its turn, or queues it. Raises `Refusal` (`BUSY`); then nothing happened."""
        if frame.message_id is not None and (first := self.fold.by_message_id(frame.message_id)) is not None:
            return Acknowledged(first.turn_id, first.message.seq, first.message.epoch, duplicate=True)
        waiting = len(self.fold.open_turns())
        interrupt = frame.on_busy == "interrupt" and waiting > 0
        if frame.on_busy == "reject" and waiting:
            raise Refusal(ErrorCode.BUSY, "A turn is running in this conversation. Wait for its end, or cancel it.")
        if not interrupt and waiting > max_queued:
            raise Refusal(ErrorCode.BUSY, f"{max_queued} messages wait already. Send this one when some are answered.")
        turn_id = new_id("t")
        overtaken = self.fold.current() if interrupt else None
        if overtaken is not None:
            self._stop(overtaken, Event.CANCEL)
        question = self._make(
            Message,
            turn_id,
            content=frame.message,
            message_id=frame.message_id or new_id("m"),
            interrupt=interrupt,
            options=_options(frame),
        )
        if frame.metadata:
            question = structs.replace(question, metadata=structs.replace(question.metadata, client=frame.metadata))
        self._append(question, *([self._cancelled(overtaken, 1)] if overtaken is not None else []))
        self.advance()
        return Acknowledged(turn_id, question.seq, question.epoch, duplicate=False)

    def cancel(self, turn_id: str | None = None) -> Outcome:
        """Ends the running turn, or the one that is named, running or queued."""
        turn = self.fold.turns.get(turn_id) if turn_id else self.fold.current()
        if turn is None:
            last = next(reversed(self.fold.turns), None)
            if turn_id is not None or last is None:
                return Outcome("not_found", turn_id, 0)
            turn = self.fold.turns[last]
        if turn.end is not None:
            return Outcome("already_done", turn.turn_id, turn.end.seq)
        self._stop(turn, Event.CANCEL)
        self._append(self._cancelled(turn))
        self.advance()
        return Outcome("stopped", turn.turn_id, self.feed.seq)

    def answer(self, call_id: str, result: Any, error: str | UnsetType) -> int:
        """A client's result for an open call, or its word on one that waits for approval; returns the entry to be
        committed. The same answer again is no harm.

        Raises `Refusal`: `NOT_FOUND` for a call that never was, `CALL_CLOSED` for a late or a different answer,
        `BAD_FRAME` for a word on an approval that is neither yes nor no.
        """
        turn = self.fold.by_call_id(call_id)
        if turn is None:
            raise Refusal(ErrorCode.NOT_FOUND, "This conversation has no such call. Use a function_call's call_id.")
        call = turn.calls[call_id]
        approves = False
        if call.runs == "approval" or call_id in turn.approved:
            approves, error = approval(result, error)
            result = UNSET
        if call_id in turn.approved:
            if approves:
                return self.feed.seq
            raise Refusal(ErrorCode.CALL_CLOSED, "This call was approved already.")
        if call.runs == "gateway":
            raise Refusal(ErrorCode.CALL_CLOSED, "The gateway itself runs this function.")
        if not call.open:
            if not approves and call.error == error and same_json(call.result, result):
                return self.feed.seq
            raise Refusal(ErrorCode.CALL_CLOSED, "This call already has another answer.")
        if turn.end is not None:
            raise Refusal(ErrorCode.CALL_CLOSED, "The turn of this call has ended.")
        if approves:
            self._approve(turn, call)
        else:
            self.append_result(turn, call, result, error)
        if self.run is not None and self.run.turn is turn:
            self.run.answered()
        return self.feed.seq

    def _approve(self, turn: TurnFold, call: FoldedCall) -> None:
        """Raises `Refusal` where nobody would run the tool: what is approved is run, or known to be in doubt."""
        run = self.run
        if run is None or run.turn is not turn:
            raise Stopping
        if run.ending:
            raise Refusal(ErrorCode.CALL_CLOSED, "The turn of this call is ending.")
        self._append(
            self._make(
                FunctionCall,
                turn.turn_id,
                call_id=call.call_id,
                name=call.name,
                args=call.args,
                runs="gateway",
                round=call.round,
            )
        )
        run.run_tool(turn.calls[call.call_id])

    def cancel_all(self) -> None:
        """Ends every open turn, in order (before the conversation is erased)."""
        for turn in self.fold.open_turns():
            self._stop(turn, Event.CANCEL)
            self._append(self._cancelled(turn))

    def hand_over(self) -> None:
        """Leaves the running turn open in the log for the next owner; what the batcher holds is kept."""
        self.draining = True
        if (run := self.run) is not None:
            self.run = None
            run.stop(Event.HAND_OVER)

    # ------------------------------------------------------------ turns

    def resume(self, *, lost: bool) -> None:
        """Takes over the turns that the log holds open. `lost`: their last owner ended without a word."""
        turn = self.fold.current()
        if turn is None or self.run is not None:
            return
        if not turn.open_calls:
            attempt = turn.attempt + 1 if lost else turn.attempt
            if attempt > MAX_RESTARTS:
                lost_for_good = f"The node that ran this turn was lost, and {MAX_RESTARTS} others after it."
                self._append(self._failed(turn, Refusal(ErrorCode.NODE_LOST, lost_for_good)))
                self.advance()  # those behind it never ran, so nothing of theirs is repeated
                return
            if lost or not self._only_waited(turn):
                self._append(self._make(Restart, turn.turn_id, attempt=attempt, keep_seq=turn.keep_seq))
        self.advance()

    def _only_waited(self, turn: TurnFold) -> bool:
        """It was queued behind others, and nothing has come of it since they ended: as far as the log tells, its node
        stopped before it began. There is nothing to take back."""
        if turn.content or turn.calls or turn.attempt:
            return False
        ahead = takewhile(lambda other: other is not turn, self.fold.turns.values())
        return any(other.end is not None and other.end.seq > turn.message.seq for other in ahead)

    def abandon(self, turn: TurnFold) -> None:
        """Its run ended without ending it, which only a bug can do: the conversation goes on all the same."""
        failed = Refusal(ErrorCode.INTERNAL, "The gateway failed on this turn. Please try again.")
        self._append(self._failed(turn, failed))
        self.advance()

    def advance(self) -> None:
        """Starts the first open turn unless one runs."""
        turn = self.fold.current()
        if turn is None or self.run is not None or self.draining or self.feed.fenced:
            return
        self.run = TurnRun(self, turn, self._engine)
        self._on_run(self.run, self)

    def _stop(self, turn: TurnFold, event: Event) -> None:
        if self.run is not None and self.run.turn is turn:
            run, self.run = self.run, None
            run.stop(event)

    def _end(self, run: TurnRun, event: Event, last: Done | Error) -> None:
        run.move(event)
        self.run = None
        self._append(last)
        self.advance()

    # ------------------------------------------------------------ for the running turn (`turn.Host`)

    def append_text(self, turn: TurnFold, pieces: list[str]) -> None:
        """One token entry for each piece; longer ones are split."""
        if max(map(len, pieces)) > TOKEN_CHARS:
            pieces = [part for piece in pieces for part in split(piece)]
        if tokens := self.feed.append_text(turn.message.turn_id, pieces):
            self.fold.say(turn, tokens)

    def append_context(self, turn_id: str, compaction: Compaction) -> None:
        """What older turns became; the model calls after it start from there."""
        compacted, memory = compaction
        self._append(self._make(Context, turn_id, compacted=compacted, memory=memory))

    def append_calls(self, turn_id: str, calls: list[WholeCall]) -> None:
        """All calls of one round in one append: a crash leaves all of them or none."""
        number = self.fold.turns[turn_id].rounds + 1
        self._append(
            *(
                self._make(
                    FunctionCall,
                    turn_id,
                    i,
                    call_id=new_id("call"),
                    name=call.name,
                    args=call.args,
                    runs=self._engine.toolbox.runs(call.name),
                    round=number,
                )
                for i, call in enumerate(calls)
            )
        )

    def append_result(self, turn: TurnFold, call: FoldedCall, result: Any, error: str | UnsetType) -> None:
        self._append(
            self._make(FunctionResult, turn.turn_id, call_id=call.call_id, name=call.name, result=result, error=error)
        )

    def finish(self, run: TurnRun, reason: FinishReason, usage: Usage | None) -> None:
        self._end(run, Event.FINISH, self._done(run.turn, reason, usage))

    def fail(self, run: TurnRun, refusal: Refusal) -> None:
        self._end(run, Event.FAIL, self._failed(run.turn, refusal))

    # ------------------------------------------------------------ entries

    def _append(self, *entries: Entry) -> None:
        self.feed.append(*entries)
        self.fold.apply_all(entries)

    def _make(self, kind: type[T], turn_id: str, offset: int = 0, **fields: Any) -> T:
        """An entry for the place `offset` after the next one."""
        seq, epoch = self.feed.next_position()
        return kind(
            conversation_id=self.feed.key.conversation_id,
            turn_id=turn_id,
            seq=seq + offset,
            epoch=epoch,
            metadata=self.feed.stamp(),
            **fields,
        )

    def _cancelled(self, turn: TurnFold, offset: int = 0) -> Done:
        return self._done(turn, "cancelled", None, offset)

    def _done(self, turn: TurnFold, reason: FinishReason, usage: Usage | None, offset: int = 0) -> Done:
        text_length = len(turn.content)
        return self._make(Done, turn.turn_id, offset, finish_reason=reason, usage=usage, text_length=text_length)

    def _failed(self, turn: TurnFold, refusal: Refusal) -> Error:
        seq, epoch = self.feed.next_position()
        return Error(
            error=ErrorBody(refusal.code.name, refusal.message, refusal.retryable),
            conversation_id=self.feed.key.conversation_id,
            turn_id=turn.turn_id,
            seq=seq,
            epoch=epoch,
            metadata=self.feed.stamp(),
        )


def _options(frame: ChatMessage) -> Options | None:
    if frame.model is None and frame.tools is None and frame.system is None:
        return None
    return Options(model=frame.model, tools=frame.tools, system=frame.system)


def new_id(kind: str) -> str:
    """A new identifier, 96 random bits: unique without asking anybody."""
    return f"{kind}_{secrets.token_urlsafe(12)}"
