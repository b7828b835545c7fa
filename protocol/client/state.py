"""What a reader of one conversation knows: its cursor, and the text of the turns that are open.

Pure: frames go in, facts come out. The WebSocket and the SSE client stand on it, and so can any other transport. Its
theory is SPEC.md section 2: a conversation is a log, a reader is a cursor (`seq`, `epoch`) on it, and every entry
that it is given has to be the one right after its cursor.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from protocol.client.errors import OrderError, ProofError
from protocol.frames import (
    ChatMessage,
    Done,
    Entry,
    Error,
    ErrorBody,
    FinishReason,
    FoldedMessage,
    Message,
    Restart,
    Snapshot,
    Subscribe,
    Token,
    Usage,
)


class Position(NamedTuple):
    """A cursor: `seq` and `epoch` of the last entry that a reader has."""

    seq: int
    epoch: int


START = Position(0, 0)
"""Before the first entry. Always valid."""


class TurnState:
    """One turn: the text of it that stands, and how it ended."""

    __slots__ = ("_ends", "_lengths", "_tail", "_text", "error", "finish_reason", "length", "turn_id", "usage", "whole")

    def __init__(self, turn_id: str, *, whole: bool) -> None:
        self.turn_id = turn_id
        self.whole = whole
        """All of its text was seen, from its `message` on. If not, none is kept and `done` proves nothing."""
        self.length = 0
        """Code points of the text that stands."""
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.error: ErrorBody | None = None
        self._text = ""
        self._tail: list[str] = []
        # For `restart`: the length of the text after each token entry, by the `seq` of that entry.
        self._ends = array("q")
        self._lengths = array("q")

    @property
    def text(self) -> str:
        if self._tail:
            self._text += "".join(self._tail)
            self._tail.clear()
        return self._text

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def add(self, seq: int, content: str) -> None:
        """Text of the entries up to `seq`."""
        if not self.whole:
            return
        self._tail.append(content)
        self.length += len(content)
        self._ends.append(seq)
        self._lengths.append(self.length)

    def keep(self, seq: int) -> None:
        """A `restart`: what came after the entry `seq` doesn't stand any more (SPEC.md section 6)."""
        standing = bisect_right(self._ends, seq)
        length = self._lengths[standing - 1] if standing else 0
        self._text, self.length = self.text[:length], length
        del self._ends[standing:], self._lengths[standing:]

    def finish(self, end: Done | Error) -> None:
        """Raises `ProofError` when the text isn't as long as `done` says."""
        if isinstance(end, Error):
            self.error = end.error
            return
        if self.whole and end.text_length != self.length:
            raise ProofError(
                f"turn {self.turn_id} has {self.length} code points of text, "
                f"but its `done` at seq {end.seq} counts {end.text_length}"
            )
        self.finish_reason, self.usage = end.finish_reason, end.usage

    def replace(self, answer: FoldedMessage | None, seq: int) -> None:
        """A snapshot at `seq` says how the turn stands; None: it waits, and has no answer yet."""
        self.whole = True
        self._text = answer.content if answer else ""
        self._tail.clear()
        self.length = len(self._text)
        # A restart keeps the rounds whose calls are logged, so all text before the last call stands for good.
        calls = (answer.function_calls if answer else None) or []
        kept = max((call.offset for call in calls), default=0)
        self._ends = array("q", [0, seq])
        self._lengths = array("q", [kept, self.length])
        if answer is not None and answer.status not in ("queued", "running", "function_call"):
            self.error, self.usage = answer.error, answer.usage
            self.finish_reason = None if answer.error else answer.finish_reason or "stop"


class Reader:
    """A cursor on one conversation that checks what it is given. `cursor` None: nothing is known yet."""

    __slots__ = ("conversation_id", "cursor", "turns")

    def __init__(self, conversation_id: str, cursor: Position | None = None) -> None:
        self.conversation_id = conversation_id
        self.cursor = cursor
        self.turns: dict[str, TurnState] = {}
        """The open ones, by `turn_id`."""

    def accept(self, entry: Entry) -> TurnState:
        """Takes the next entry and returns the state of its turn. Raises `OrderError` and `ProofError`."""
        self._check(entry)
        self.cursor = Position(entry.seq, entry.epoch)
        turn = self.turns.get(entry.turn_id)
        if turn is None:
            turn = self.turns[entry.turn_id] = TurnState(entry.turn_id, whole=isinstance(entry, Message))
        match entry:
            case Token():
                turn.add(entry.seq, entry.content)
            case Restart():
                turn.keep(entry.keep_seq)
            case Done() | Error():
                del self.turns[entry.turn_id]
                turn.finish(entry)
            case _:
                pass
        return turn

    def _check(self, entry: Entry) -> None:
        first = (entry.first_seq if isinstance(entry, Token) else None) or entry.seq
        if self.cursor is None:
            raise OrderError(f"conversation {self.conversation_id}: seq {first} came before any cursor was set")
        if first != self.cursor.seq + 1 or entry.seq < first:
            raise OrderError(
                f"conversation {self.conversation_id}: entry {first} came after entry {self.cursor.seq}, "
                f"but {self.cursor.seq + 1} has to be next"
            )
        if entry.epoch < self.cursor.epoch:
            raise OrderError(
                f"conversation {self.conversation_id}: entry {entry.seq} is of epoch {entry.epoch}, "
                f"but entry {self.cursor.seq} is of epoch {self.cursor.epoch}, and epochs never go back"
            )

    def replace(self, snapshot: Snapshot) -> dict[str, TurnState]:
        """A snapshot replaces everything. Returns the state of all its turns, the ended ones too, by `turn_id`."""
        answers = {line.turn_id: line for line in snapshot.messages if line.role == "assistant"}
        states: dict[str, TurnState] = {}
        for turn_id in dict.fromkeys(line.turn_id for line in snapshot.messages):
            state = self.turns.get(turn_id) or TurnState(turn_id, whole=True)
            state.replace(answers.get(turn_id), snapshot.seq)
            states[turn_id] = state
        self.cursor = Position(snapshot.seq, snapshot.epoch)
        self.turns = {turn_id: state for turn_id, state in states.items() if not state.ended}
        return states

    def resume(self) -> Subscribe:
        """The frame that goes on where this reader is. The cursor has to be known."""
        seq, epoch = self.cursor or START
        return Subscribe(conversation_id=self.conversation_id, after=seq, epoch=epoch)


@dataclass(slots=True)
class Sending:
    """A message of ours, from the first attempt to send it to the end of its turn.

    It carries its own `conversation_id` and `message_id`, so that sending it again is safe (SPEC.md section 5).
    """

    frame: ChatMessage
    turn_id: str | None = None
    """Known once the gateway has acknowledged it. None: it has to be sent (again) on the next connection."""

    @property
    def message_id(self) -> str:
        return self.frame.message_id or ""


def lost(sendings: list[Sending], snapshot: Snapshot) -> list[Sending]:
    """The acknowledged ones that a snapshot doesn't know: the log lost them, and they have to be sent again."""
    known = {line.message_id for line in snapshot.messages}
    return [each for each in sendings if each.turn_id is not None and each.message_id not in known]


class Backoff:
    """How long to wait before the next attempt to connect, in seconds.

    Full jitter, `random() * min(cap, base * 2**attempt)`, after "Exponential Backoff And Jitter" of the AWS
    Architecture Blog. The count starts again after a connection that was of use: it brought an entry, or it lasted.
    """

    def __init__(self, rand: Callable[[], float], *, base_s: float = 0.25, cap_s: float = 30.0) -> None:
        self._rand = rand
        self._base_s = base_s
        self._cap_s = cap_s
        self._connected_at: float | None = None
        self.attempt = 0

    def connected(self, now: float) -> None:
        self._connected_at = now

    def progress(self) -> None:
        self.attempt = 0

    def delay_s(self, now: float, *, asked_ms: int | None = None, crowded: bool = False) -> float:
        """After a connection was lost or couldn't be made.

        `asked_ms`: the gateway said when to come back (`goaway`, `Retry-After`), jitter included; that is followed.
        `crowded`: it turned us away for being one too many (4429), so the first wait is a long one.
        """
        if self._connected_at is not None and now - self._connected_at >= self._cap_s:
            self.attempt = 0
        self._connected_at = None
        if crowded:
            self.attempt = max(self.attempt, 4)
        ceiling_s = min(self._cap_s, self._base_s * 2.0 ** min(self.attempt, 30))
        self.attempt += 1
        if asked_ms is not None:
            return max(0, asked_ms) / 1000
        return self._rand() * ceiling_s
