"""What one conversation promised and what came: every logged frame is checked here, and timed.

This reader is the load tool's own, not `protocol.client`'s: it counts what is wrong and goes on, where a client stops;
it keeps lengths where a client keeps text; and a token costs it half a microsecond. The rules are those of SPEC.md
section 2.7 (order), 6.7 (`text_length`), 6.6 (`restart`), 7.7 (`snapshot`) and 10.1 (every turn ends once).
The conversations are of the run's own making, so nobody else writes in them: each begins at entry 1.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from benchmarks.load import tally as count
from benchmarks.load.asked import Asked
from benchmarks.load.tally import Tally, plus
from protocol.frames import (
    Done,
    Entry,
    Error,
    ErrorBody,
    FoldedMessage,
    FunctionCall,
    FunctionResult,
    Message,
    Restart,
    Snapshot,
    Subscribed,
    Token,
)

if TYPE_CHECKING:
    from benchmarks.load.dispatch import Carrier

MAX_MISSING = 4096
"""Missing entries that are remembered, to tell one that comes late from one that comes twice."""
ENDED = ("completed", "cancelled", "failed")


class Outcome(Enum):
    """What the carrier has to do about a frame."""

    FREE = auto()
    """The turn has ended, or will never begin: the conversation may be asked the next thing."""
    REFUSED = auto()
    """The same, but not at once."""
    LOST = auto()
    """The log has lost our message: send it again."""
    CALL = auto()
    """Function calls wait for their results."""


class Conversation:
    """`timed`: its durations are recorded; those of slow readers say nothing about the gateway."""

    __slots__ = (
        "_cut_at", "_head", "_missing", "asked", "carrier", "epoch", "id", "nowhere", "opening", "seq", "tally",
        "timed", "turns",
    )  # fmt: skip

    def __init__(self, conversation_id: str, carrier: Carrier, tally: Tally, *, timed: bool = True) -> None:
        self.id = conversation_id
        self.carrier = carrier
        self.tally = tally
        self.timed = timed
        self.seq = self.epoch = 0
        self.asked: Asked | None = None
        self.turns = 0
        """Messages that were sent."""
        self.opening = False
        """`subscribe` isn't answered yet, or was refused: nothing may come."""
        self.nowhere = False
        """It was refused. The next message of ours brings a new subscription, just before itself."""
        self._cut_at = 0.0
        """When its connection was lost, until it is level again; 0: it is."""
        self._head = 0
        """Where it is level again."""
        self._missing: set[int] = set()

    # ------------------------------------------------------------ connections

    def cut(self, now: float) -> None:
        """Its connection is gone."""
        self.opening = self.nowhere = False
        self._cut_at = self._cut_at or now
        self._head = 1 << 62
        if self.asked is not None:
            self.asked.last_at = 0.0

    def subscribed(self, frame: Subscribed, now: float) -> None:
        self.opening = False
        self._head = frame.head
        if frame.after != self.seq:
            self._wrong(count.ORDER, f"asked for what follows entry {self.seq}, told what follows {frame.after}")
        self._check_level(now)

    def not_subscribed(self) -> None:
        """`subscribe` was refused."""
        self.nowhere = True

    def attached(self, now: float) -> None:
        """The first event of an attached stream has come: over SSE nobody tells where the head is."""
        self._head = 0
        self._check_level(now)

    def _check_level(self, now: float) -> None:
        if self._cut_at and self.seq >= self._head:
            if self.timed:
                self.tally.watches.resume.add(now - self._cut_at)
            self._cut_at = 0.0

    # ------------------------------------------------------------ entries

    def token(self, frame: Token, now: float) -> None:
        first = frame.first_seq or frame.seq
        if (first != self.seq + 1 or frame.epoch < self.epoch or self.opening) and not self._mend(first, frame):
            return
        if frame.seq > self.seq:
            self.seq, self.epoch = frame.seq, frame.epoch
        counts, length = self.tally.counts, len(frame.content)
        counts.frames += 1
        counts.token_frames += 1
        counts.tokens += frame.seq - first + 1
        counts.characters += length
        asked = self.asked
        if asked is None or asked.turn_id != frame.turn_id:
            self._stray(frame)
            return
        asked.length += length
        if self.timed:
            if asked.last_at:
                self.tally.watches.between_tokens.add(now - asked.last_at)
            elif asked.first:
                self.tally.watches.first_token.add(now - asked.due_at)
        asked.first = False
        asked.last_at = now
        if self._cut_at:
            self._check_level(now)

    def entry(self, frame: Entry, now: float) -> Outcome | None:
        """Any other logged frame."""
        if isinstance(frame, Message) and frame.duplicate:
            self._acknowledge(frame, now)
            return None
        if self.nowhere and self._is_ours(frame):
            self.seq, self.opening, self.nowhere, self._head = frame.seq - 1, False, False, 0
            self._missing.clear()
        in_order = frame.seq == self.seq + 1 and frame.epoch >= self.epoch and not self.opening
        if not in_order and not self._mend(frame.seq, frame):
            return None
        self._move(frame)
        self.tally.counts.frames += 1
        if self._cut_at:
            self._check_level(now)
        if isinstance(frame, Message):
            self._message(frame, now)
            return None
        asked = self.asked
        if asked is None or asked.turn_id != frame.turn_id:
            self._stray(frame)
            return None
        return self._part(asked, frame, now)

    def _is_ours(self, frame: Entry) -> bool:
        return isinstance(frame, Message) and self.asked is not None and frame.message_id == self.asked.message_id

    def _part(self, asked: Asked, frame: Entry, now: float) -> Outcome | None:
        match frame:
            case FunctionCall(runs="gateway") | FunctionResult():
                asked.kept = asked.length
                asked.calls.pop(frame.call_id, None)
            case FunctionCall():
                asked.kept = asked.length
                asked.calls[frame.call_id] = None
                self.tally.counts.calls += 1
                return Outcome.CALL
            case Restart():
                asked.length = asked.kept
                self.tally.counts.restarts += 1
            case Done():
                if frame.text_length != asked.length:
                    words = f"{asked.length} characters came, `done` at entry {frame.seq} says {frame.text_length}"
                    self._wrong(count.TEXT, words)
                self.tally.counts.model_tokens += frame.usage.completion_tokens if frame.usage else 0
                return self._end(frame.finish_reason, now)
            case Error():
                return self._fail(frame.error)
            case _:
                pass
        return None

    def _message(self, frame: Message, now: float) -> None:
        asked = self.asked
        if asked is None or frame.message_id != asked.message_id:
            self._stray(frame)
        elif asked.acknowledged and asked.turn_id != frame.turn_id:
            self._wrong(count.TWICE, f"message {frame.message_id} is entry {frame.seq} too")
        else:
            self._acknowledge(frame, now)

    def _acknowledge(self, frame: Message, now: float) -> None:
        asked = self.asked
        if asked is None or frame.message_id != asked.message_id or asked.acknowledged:
            return
        asked.acknowledged, asked.turn_id = True, frame.turn_id
        self.tally.counts.acknowledged += 1
        if self.timed:
            self.tally.watches.ack.add(now - asked.due_at)

    # ------------------------------------------------------------ ends

    def _end(self, reason: str, now: float) -> Outcome:
        plus(self.tally.counts.ends, reason)
        if self.timed and self.asked is not None:
            self.tally.watches.turn.add(now - self.asked.due_at)
        self.asked = None
        return Outcome.FREE

    def _fail(self, error: ErrorBody) -> Outcome:
        plus(self.tally.counts.errors, error.code)
        self.tally.counts.failed += 1
        self.asked = None
        return Outcome.REFUSED

    def refused(self, code: str) -> Outcome:
        """Our message was refused: it isn't in the log."""
        plus(self.tally.counts.errors, code)
        self.tally.counts.refused += 1
        self.asked = None
        return Outcome.REFUSED

    def gone(self) -> Outcome | None:
        """Somebody has erased it."""
        self.tally.counts.deleted += self.asked is not None
        had, self.asked = self.asked, None
        return Outcome.REFUSED if had else None

    def vanished(self) -> None:
        """Nobody knows it any more: our message has to be sent again, and begins it anew."""
        self.tally.counts.lost += 1
        self.seq = self.epoch = 0
        self.opening = self.nowhere = False
        self._missing.clear()
        if self.asked is not None:
            self.asked.forgotten()

    def unended(self) -> None:
        """Its turn will never end."""
        asked, self.asked = self.asked, None
        self.tally.counts.unended += 1
        if asked is not None:
            known = f"turn {asked.turn_id}" if asked.acknowledged else "not acknowledged"
            words = f"conversation {self.id}: message {asked.message_id} ({known}), the last entry was {self.seq}"
            self.tally.counts.example(f"unended: {words}")

    # ------------------------------------------------------------ snapshots

    def snapshot(self, frame: Snapshot, now: float) -> Outcome | None:
        """Replaces all that was read."""
        self.tally.counts.snapshots += 1
        self.seq, self.epoch, self.opening, self.nowhere = frame.seq, frame.epoch, False, False
        self._missing.clear()
        self._check_level(now)
        asked = self.asked
        if asked is None:
            return None
        lines = {line.role: line for line in frame.messages if line.turn_id == self._turn_in(frame, asked)}
        if "user" not in lines:
            if not asked.acknowledged:
                return None  # it is on its way
            self.tally.counts.lost += 1
            asked.forgotten()
            return Outcome.LOST
        if not asked.acknowledged:
            asked.acknowledged = True
            self.tally.counts.acknowledged += 1
        asked.turn_id = lines["user"].turn_id
        return self._answer(asked, lines.get("assistant"), now)

    @staticmethod
    def _turn_in(frame: Snapshot, asked: Asked) -> str:
        return next((line.turn_id for line in frame.messages if line.message_id == asked.message_id), "")

    def _answer(self, asked: Asked, answer: FoldedMessage | None, now: float) -> Outcome | None:
        calls = (answer.function_calls if answer else None) or []
        asked.length = len(answer.content) if answer else 0
        asked.kept = max((call.offset for call in calls), default=0)
        asked.calls = {call.call_id: None for call in calls if call.open and call.runs != "gateway"}
        if answer is None or answer.status not in ENDED:
            return Outcome.CALL if asked.calls else None
        return self._fail(answer.error) if answer.error else self._end(answer.finish_reason or "stop", now)

    # ------------------------------------------------------------ what is wrong

    def _move(self, frame: Entry) -> None:
        if frame.seq > self.seq:
            self.seq, self.epoch = frame.seq, frame.epoch

    def _mend(self, first: int, frame: Entry) -> bool:
        """Says what is wrong with the place of this frame; whether it is to be taken all the same."""
        last = frame.seq
        if self.opening:
            self._wrong(count.EARLY, f"entry {first} came before the answer to `subscribe`")
            return False
        if frame.epoch < self.epoch:
            self._wrong(count.EPOCH, f"entry {first} is of epoch {frame.epoch}, the one before of {self.epoch}")
        if first > self.seq + 1:
            missing = range(self.seq + 1, first)
            self._wrong(count.GAP, f"entry {first} came after entry {self.seq}", len(missing))
            if len(self._missing) + len(missing) <= MAX_MISSING:
                self._missing.update(missing)
            return True
        late = self._missing.intersection(range(first, last + 1))
        if late:
            self._missing -= late
            plus(self.tally.counts.violations, count.GAP, -len(late))
            self._wrong(count.ORDER, f"entry {first} came after entry {self.seq}", len(late))
            return True
        if first <= self.seq:
            twice = min(last, self.seq) - first + 1
            self._wrong(count.DUPLICATE, f"entry {first} came again after entry {self.seq}", twice)
        return last > self.seq

    def _stray(self, frame: Entry) -> None:
        self._wrong(count.STRAY, f"entry {frame.seq} is a `{frame.__struct_config__.tag}` of a turn that isn't open")

    def _wrong(self, kind: str, words: str, number: int = 1) -> None:
        self.tally.counts.violation(kind, f"conversation {self.id}: {words}", number)
