"""The fold of a log: what its entries, applied in order, say about the conversation (SPEC.md section 10).

Gateway and clients use the same fold: the session engine to know its turns, `GET /api/conversations/{id}` and
`snapshot` to show them. It is pure: the same entries always give the same conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, structs, to_builtins

from protocol.frames import (
    Context,
    Done,
    Entry,
    Error,
    ErrorBody,
    FinishReason,
    FoldedCall,
    FoldedMessage,
    FunctionCall,
    FunctionResult,
    Memory,
    Message,
    Restart,
    RunningTurn,
    Token,
    TurnStatus,
    Usage,
)

PIECES = 256
"""Small strings take ten times their text: so many are joined while a turn runs."""


@dataclass(slots=True)
class TurnFold:
    """One turn: its question, the text that stands, its calls, and how it ended."""

    message: Message
    text: str = ""
    """Standing text up to the last call or result; what came after is in `pieces` until the turn ends."""
    pieces: list[str] = field(default_factory=list)
    """What the generation in progress has said since `text`."""
    pieces_from: int = 0
    """The entry of the first of `pieces`."""
    calls: dict[str, FoldedCall] = field(default_factory=dict)
    approved: set[str] = field(default_factory=set)
    """Calls that waited for the user's approval and got it: they were logged again, with `runs` `gateway`."""
    end: Done | Error | None = None
    keep_seq: int = 0
    """The last entry of a finished round: what a `restart` keeps."""
    attempt: int = 0
    """Of the last `restart`."""

    @property
    def turn_id(self) -> str:
        return self.message.turn_id

    @property
    def content(self) -> str:
        """All the turn's text that stands, over all rounds."""
        return self.text + "".join(self.pieces)

    @property
    def open_calls(self) -> list[FoldedCall]:
        return [call for call in self.calls.values() if call.open]

    @property
    def rounds(self) -> int:
        return max((call.round for call in self.calls.values()), default=0)

    def say(self, tokens: Iterable[Token]) -> None:
        """Its next text."""
        pieces = self.pieces
        for token in tokens:
            if not pieces:
                self.pieces_from = token.first_seq or token.seq
            elif len(pieces) == PIECES:
                pieces[:] = ["".join(pieces)]
            pieces.append(token.content)

    def apply(self, entry: Entry) -> None:
        """One of the turn's own entries after its `message`, in order."""
        match entry:
            case Token():
                self.say((entry,))
            case FunctionCall():
                self.keep_seq = entry.seq
                if (asked := self.calls.get(entry.call_id)) is not None:
                    self.calls[entry.call_id] = structs.replace(asked, runs=entry.runs)
                    self.approved.add(entry.call_id)
                    return
                self.settle()
                self.calls[entry.call_id] = FoldedCall(
                    call_id=entry.call_id,
                    name=entry.name,
                    args=entry.args,
                    runs=entry.runs,
                    round=entry.round,
                    offset=len(self.text),
                )
            case FunctionResult():
                self.keep_seq = entry.seq
                call = self.calls[entry.call_id]
                self.calls[entry.call_id] = structs.replace(call, result=entry.result, error=entry.error)
            case Restart():
                if self.pieces_from > entry.keep_seq:  # it never names a token (SPEC.md section 11.24)
                    self.pieces = []
                self.attempt = entry.attempt
            case Done() | Error():
                self.settle()
                self.end = entry
            case Context() | Message():
                pass

    def settle(self) -> None:
        """Joins the pieces: what was said before a call, or before the end, stands."""
        self.text = self.content
        self.pieces = []


class Fold:
    """A conversation after `seq` entries. `apply` wants the entries in order; merged `token` frames are fine."""

    __slots__ = ("_by_call_id", "_by_message_id", "_open", "epoch", "memory", "seq", "turns")

    def __init__(self) -> None:
        self.seq = 0
        self.epoch = 0
        self.memory: Memory | None = None
        """Of the last `context` entry."""
        self.turns: dict[str, TurnFold] = {}
        """In turn order, which is not log order: an interrupting message goes ahead of the queued ones."""
        self._open: dict[str, TurnFold] = {}
        """Those without an end, in the same order."""
        self._by_message_id: dict[str, TurnFold] = {}
        self._by_call_id: dict[str, TurnFold] = {}

    def apply_all(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        self.seq, self.epoch = entry.seq, entry.epoch
        if isinstance(entry, Message):
            self._begin(entry)
            return
        if isinstance(entry, Context):
            self.memory = entry.memory
        turn = self.turns[entry.turn_id]
        turn.apply(entry)
        if isinstance(entry, FunctionCall):
            self._by_call_id[entry.call_id] = turn
        elif turn.end is not None:
            del self._open[turn.turn_id]

    def say(self, turn: TurnFold, tokens: Sequence[Token]) -> None:
        """`apply_all` for tokens of one turn, which most entries are."""
        turn.say(tokens)
        last = tokens[-1]
        self.seq, self.epoch = last.seq, last.epoch

    def _begin(self, message: Message) -> None:
        turn = TurnFold(message, keep_seq=message.seq)
        self._by_message_id[message.message_id] = turn
        overtaken = list(self._open)[1:] if message.interrupt else []
        for turns in (self.turns, self._open):
            later = [(turn_id, turns.pop(turn_id)) for turn_id in overtaken]
            turns[message.turn_id] = turn
            turns.update(later)

    def open_turns(self) -> list[TurnFold]:
        """Turns without an end, in turn order: the first is the one in progress, the others wait."""
        return list(self._open.values())

    def current(self) -> TurnFold | None:
        return next(iter(self._open.values()), None)

    def by_message_id(self, message_id: str) -> TurnFold | None:
        return self._by_message_id.get(message_id)

    def by_call_id(self, call_id: str) -> TurnFold | None:
        return self._by_call_id.get(call_id)

    def status(self, turn: TurnFold) -> TurnStatus:
        match turn.end:
            case Done(finish_reason="cancelled"):
                return "cancelled"
            case Done():
                return "completed"
            case Error():
                return "failed"
            case None:
                pass
        if turn is not self.current():
            return "queued"
        return "function_call" if any(call.runs != "gateway" for call in turn.open_calls) else "running"

    def messages(self) -> list[FoldedMessage]:
        """Each question followed by its answer, in turn order; a queued question has no answer yet."""
        return [line for turn in self.turns.values() for line in self._lines(turn)]

    def running(self) -> RunningTurn | None:
        turn = self.current()
        if turn is None:
            return None
        message = turn.message
        return RunningTurn(
            turn_id=turn.turn_id, status=self.status(turn), message_id=message.message_id, seq=message.seq
        )

    def _lines(self, turn: TurnFold) -> Iterator[FoldedMessage]:
        message, status = turn.message, self.status(turn)
        yield FoldedMessage(
            role="user",
            content=message.content,
            turn_id=turn.turn_id,
            status=status,
            timestamp=message.metadata.timestamp,
            message_id=message.message_id,
            metadata=message.metadata.client,
        )
        if status == "queued":
            return
        reason, usage, error, ended = _ending(turn)
        yield FoldedMessage(
            role="assistant",
            content=turn.content,
            turn_id=turn.turn_id,
            status=status,
            timestamp=ended or message.metadata.timestamp,
            function_calls=list(turn.calls.values()) or None,
            finish_reason=reason,
            usage=usage,
            error=error,
        )


def _ending(turn: TurnFold) -> tuple[FinishReason | None, Usage | None, ErrorBody | None, int | None]:
    match turn.end:
        case Done() as done:
            return done.finish_reason, done.usage, None, done.metadata.timestamp
        case Error() as error:
            return None, None, error.error, error.metadata.timestamp if error.metadata else None
        case None:
            return None, None, None, None


def call_as_json(call: FoldedCall) -> dict[str, object]:
    """A call with its answer, if it has one, as plain JSON values."""
    fields: dict[str, object] = to_builtins(call)
    return {name: value for name, value in fields.items() if value is not UNSET}
