"""The fold of a log: what its entries, applied in order, say about the conversation (SPEC.md section 10).

Gateway and clients use the same fold: the session engine to know its turns, `GET /api/conversations/{id}` and
`snapshot` to show them. It is pure: the same entries always give the same conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

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
_NO_CALLS: Mapping[str, FoldedCall] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class TurnFold:
    """One turn: its question, the text that stands, its calls, and how it ended. Turns are many, and most are over and
    had no calls: what is empty is shared."""

    message: Message
    text: str = ""
    """Standing text up to the last call or result; what came after is in `pieces` until the turn ends."""
    pieces: list[str] | tuple[()] = ()
    """What the generation in progress has said since `text`."""
    pieces_from: int = 0
    """The entry of the first of `pieces`."""
    calls: Mapping[str, FoldedCall] = field(default_factory=lambda: _NO_CALLS)
    approved: frozenset[str] = frozenset()
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
                pieces = self.pieces = []
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
                    self._put(structs.replace(asked, runs=entry.runs))
                    self.approved |= {entry.call_id}
                    return
                self.settle()
                self._put(
                    FoldedCall(
                        call_id=entry.call_id,
                        name=entry.name,
                        args=entry.args,
                        runs=entry.runs,
                        round=entry.round,
                        offset=len(self.text),
                    )
                )
            case FunctionResult():
                self.keep_seq = entry.seq
                call = self.calls[entry.call_id]
                self._put(structs.replace(call, result=entry.result, error=entry.error))
            case Restart():
                if self.pieces_from > entry.keep_seq:  # it never names a token (SPEC.md section 11.24)
                    self.pieces = ()
                self.attempt = entry.attempt
            case Done() | Error():
                self.settle()
                self.end = entry
                if (options := self.message.options) is not None and options.tools is not None:
                    # Kilobytes that only a turn that runs needs.
                    self.message = structs.replace(self.message, options=structs.replace(options, tools=None))
            case Context() | Message():
                pass

    def settle(self) -> None:
        """Joins the pieces: what was said before a call, or before the end, stands."""
        self.text = self.content
        self.pieces = ()

    def _put(self, call: FoldedCall) -> None:
        self.calls = {**self.calls, call.call_id: call}


class Fold:
    """A conversation after `seq` entries. `apply` wants the entries in order; merged `token` frames are fine."""

    __slots__ = ("_open", "epoch", "memory", "seq", "turns")

    def __init__(self) -> None:
        self.seq = 0
        self.epoch = 0
        self.memory: Memory | None = None
        """Of the last `context` entry."""
        self.turns: dict[str, TurnFold] = {}
        """In turn order, which is not log order: an interrupting message goes ahead of the queued ones."""
        self._open: tuple[TurnFold, ...] = ()
        """Those without an end, in the same order."""

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
        if turn.end is not None:
            self._open = tuple(other for other in self._open if other is not turn)

    def say(self, turn: TurnFold, tokens: Sequence[Token]) -> None:
        """`apply_all` for tokens of one turn, which most entries are."""
        turn.say(tokens)
        last = tokens[-1]
        self.seq, self.epoch = last.seq, last.epoch

    def _begin(self, message: Message) -> None:
        turn = TurnFold(message, keep_seq=message.seq)
        ahead = 1 if message.interrupt else len(self._open)
        first, overtaken = self._open[:ahead], self._open[ahead:]
        self._open = (*first, turn, *overtaken)
        for later in overtaken:
            del self.turns[later.turn_id]
        self.turns.update((behind.turn_id, behind) for behind in (turn, *overtaken))

    def open_turns(self) -> tuple[TurnFold, ...]:
        """Turns without an end, in turn order: the first is the one in progress, the others wait."""
        return self._open

    def current(self) -> TurnFold | None:
        return self._open[0] if self._open else None

    def by_message_id(self, message_id: str) -> TurnFold | None:
        """A look at every turn: an index would cost each of them memory, for one question a message."""
        return next((turn for turn in self.turns.values() if turn.message.message_id == message_id), None)

    def by_call_id(self, call_id: str) -> TurnFold | None:
        return next((turn for turn in reversed(self.turns.values()) if call_id in turn.calls), None)

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
