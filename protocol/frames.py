"""The closed set of frames, each an immutable typed record (SPEC.md sections 4 to 7).

One definition serves validation, JSON, MessagePack and the schemas. Logged frames are also the entries of the
conversation log: what is stored, what is in memory and what is sent are the same records.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

# `$` also matches before a final newline in Python, hence the lookahead.
Identifier: TypeAlias = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.\-]{1,128}(?!\n)$", description="1 to 128 characters of A-Z a-z 0-9 _ . -")
]
FunctionName: TypeAlias = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_\-]{1,64}(?!\n)$", description="1 to 64 characters of A-Z a-z 0-9 _ -")
]
NonEmpty: TypeAlias = Annotated[str, Meta(min_length=1)]
# Whole numbers that every JSON reader keeps exact (2**53 - 1).
Count: TypeAlias = Annotated[int, Meta(ge=0, le=9007199254740991)]

MAX_METADATA_BYTES = 4096

# ---------------------------------------------------------------- client to server (SPEC.md section 5)


class FunctionSpec(Struct, frozen=True, omit_defaults=True):
    """OpenAI's function format; `parameters` is a JSON Schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True):
    function: FunctionSpec
    type: Literal["function"] = "function"


class ClientFrame(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    ref: str | None = None


class ChatMessage(ClientFrame, frozen=True, tag="chat_message"):
    message: NonEmpty
    conversation_id: Identifier | None = None
    message_id: Identifier | None = None
    on_busy: Literal["queue", "interrupt", "reject"] = "queue"
    model: NonEmpty | None = None
    tools: list[Tool] | None = None
    system: str | None = None
    metadata: dict[str, Any] | None = None


class ClientFunctionResult(ClientFrame, frozen=True, tag="function_result"):
    """Exactly one of `result` and `error` is given; `result: null` is a result."""

    conversation_id: Identifier
    call_id: NonEmpty
    result: Any = UNSET
    error: str | UnsetType = UNSET


class Cancel(ClientFrame, frozen=True, tag="cancel"):
    conversation_id: Identifier
    turn_id: NonEmpty | None = None


class Subscribe(ClientFrame, frozen=True, tag="subscribe"):
    conversation_id: Identifier
    after: Count | None = None
    epoch: Count = 0


class Unsubscribe(ClientFrame, frozen=True, tag="unsubscribe"):
    conversation_id: Identifier


class Auth(ClientFrame, frozen=True, tag="auth"):
    token: NonEmpty


class Ping(ClientFrame, frozen=True, tag="ping"):
    pass


AnyClientFrame: TypeAlias = ChatMessage | ClientFunctionResult | Cancel | Subscribe | Unsubscribe | Auth | Ping

# ---------------------------------------------------------------- server to client, logged (SPEC.md section 6)

Runs: TypeAlias = Literal["client", "gateway", "approval"]
FinishReason: TypeAlias = Literal["stop", "length", "content_filter", "cancelled"]


class Metadata(Struct, frozen=True, omit_defaults=True, gc=False):
    timestamp: int
    """Unix milliseconds at which the entry was appended."""
    client: dict[str, Any] | None = None
    """The `metadata` object of the client's own `chat_message`, on `message` frames only."""


class LoggedFrame(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """What every entry of a conversation log carries. `seq` counts from 1; `epoch` 0 is left out on the wire."""

    conversation_id: str
    turn_id: str
    seq: int
    epoch: int = 0
    metadata: Metadata


class Options(Struct, frozen=True, omit_defaults=True):
    """How the turn of a `message` is to be generated. In the log, so that any node can run it; never on the wire."""

    model: str | None = None
    tools: list[Tool] | None = None
    system: str | None = None


class Message(LoggedFrame, frozen=True, kw_only=True, tag="message", gc=False):
    role: Literal["user"] = "user"
    content: str
    message_id: str
    interrupt: bool = False
    """This message ended the turn before it and goes ahead of those that wait."""
    options: Options | None = None
    """Log only: `codec` leaves it out of everything that is sent."""
    ref: str | None = None
    duplicate: bool = False


class Token(LoggedFrame, frozen=True, tag="token", gc=False):
    content: str
    first_seq: int | None = None


class FunctionCall(LoggedFrame, frozen=True, tag="function_call"):
    call_id: str
    name: str
    args: dict[str, Any]
    runs: Runs
    round: int
    """Which model call of the turn asked for it, from 1: calls of one round were made in parallel."""


class FunctionResult(LoggedFrame, frozen=True, tag="function_result"):
    call_id: str
    name: str
    result: Any = UNSET
    error: str | UnsetType = UNSET


class Compacted(Struct, frozen=True):
    messages_before: int
    messages_after: int
    tokens_before: int
    tokens_after: int


class Memory(Struct, frozen=True, omit_defaults=True):
    """What stands in a prompt for the turns up to `through`. In the log, so that it is extended and never made
    again; never on the wire."""

    through: str
    """The last turn, in turn order, that isn't sent to the model word for word any more."""
    summary: str = ""
    """Empty: those turns were dropped."""


class Context(LoggedFrame, frozen=True, tag="context"):
    compacted: Compacted
    memory: Memory | None = None
    """Log only: `codec` leaves it out of everything that is sent."""


class Restart(LoggedFrame, frozen=True, tag="restart"):
    attempt: int
    keep_seq: int


class Usage(Struct, frozen=True, gc=False):
    prompt_tokens: int
    completion_tokens: int


class Done(LoggedFrame, frozen=True, tag="done", gc=False):
    finish_reason: FinishReason
    usage: Usage | None
    text_length: int
    """Unicode code points of all the turn's text that stands, over all rounds."""


class ErrorBody(Struct, frozen=True):
    code: str
    message: str
    retryable: bool


class Error(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="error"):
    """With `turn_id` and `seq` a logged entry: that turn has failed. Without: a refused frame (SPEC.md section 7)."""

    error: ErrorBody
    conversation_id: str = ""
    turn_id: str = ""
    seq: int = 0
    epoch: int = 0
    metadata: Metadata | None = None
    ref: str | None = None


Entry: TypeAlias = Message | Token | FunctionCall | FunctionResult | Context | Restart | Done | Error
ENTRY_TYPES: tuple[type[Entry], ...] = (Message, Token, FunctionCall, FunctionResult, Context, Restart, Done, Error)

# ---------------------------------------------------------------- server to client, not logged (SPEC.md section 7)

TurnStatus: TypeAlias = Literal["queued", "running", "function_call", "completed", "cancelled", "failed"]


class FoldedCall(Struct, frozen=True, omit_defaults=True, kw_only=True):
    call_id: str
    name: str
    args: dict[str, Any]
    runs: Runs
    round: int
    offset: int
    """Code points of the answer's text that stand before the call."""
    result: Any = UNSET
    error: str | UnsetType = UNSET

    @property
    def open(self) -> bool:
        return self.result is UNSET and self.error is UNSET


class FoldedMessage(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of a conversation as people read it: a question, or the whole answer of its turn."""

    role: Literal["user", "assistant"]
    content: str
    turn_id: str
    status: TurnStatus
    timestamp: int
    message_id: str | None = None
    metadata: dict[str, Any] | None = None
    function_calls: list[FoldedCall] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: ErrorBody | None = None


class RunningTurn(Struct, frozen=True, kw_only=True):
    turn_id: str
    status: TurnStatus
    message_id: str
    seq: int
    """Of the turn's `message`."""


class ServerFrame(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    ref: str | None = None


class Welcome(ServerFrame, frozen=True, tag="welcome"):
    connection_id: str
    protocol: str
    heartbeat_s: float
    limits: dict[str, int]


class Subscribed(ServerFrame, frozen=True, tag="subscribed"):
    """`head` and `epoch` are the cursor of the log's last entry; `after` is where this reader starts."""

    conversation_id: str
    after: int
    head: int
    epoch: int


class Unsubscribed(ServerFrame, frozen=True, tag="unsubscribed"):
    conversation_id: str


class Accepted(ServerFrame, frozen=True, tag="accepted"):
    conversation_id: str
    call_id: str


class Deleted(ServerFrame, frozen=True, tag="deleted"):
    conversation_id: str


class Cancelled(ServerFrame, frozen=True, tag="cancelled"):
    conversation_id: str
    outcome: Literal["stopped", "already_done", "not_found"]
    turn_id: str | None


class Snapshot(ServerFrame, frozen=True, tag="snapshot"):
    conversation_id: str
    seq: int
    epoch: int
    messages: list[FoldedMessage]
    turn: RunningTurn | None


class Pong(ServerFrame, frozen=True, tag="pong"):
    pass


class Goaway(ServerFrame, frozen=True, tag="goaway"):
    reason: str
    reconnect_after_ms: int


Unlogged: TypeAlias = Welcome | Subscribed | Unsubscribed | Accepted | Deleted | Cancelled | Snapshot | Pong | Goaway
AnyServerFrame: TypeAlias = Entry | Unlogged
