"""The seam to a model: a request goes in, batches of events come out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from protocol.codes import ErrorCode, Refusal
from protocol.frames import FinishReason, Tool, Usage


class ModelRequest(Struct, frozen=True, kw_only=True):
    """One model call. `messages` are OpenAI chat messages, system prompt first."""

    messages: Sequence[dict[str, Any]]
    model: str
    tools: Sequence[Tool] = ()
    max_tokens: int | None = None
    """Room for the answer; None: the upstream's own limit."""


class CallFragment(Struct, frozen=True):
    """A piece of a function call. Fragments of several calls interleave by `index`; `id` and `name` come with the
    first piece of a call, `arguments` is a piece of its JSON text."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Finish(Struct, frozen=True):
    """The model's own end: no more text or calls will follow (a `Usage` may)."""

    reason: FinishReason | None
    """None: it wants its function calls answered."""


Event: TypeAlias = str | CallFragment | Finish | Usage
"""A text delta is a bare, non-empty `str`: no object is made for it."""


class ModelError(Refusal):
    """Why a model call failed, told apart by cause (SPEC.md section 8).

    `transient`: trying the same call again may help, provided that no token of it was seen yet.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        transient: bool,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable, retry_after_s=retry_after_s)
        self.transient = transient


class Model(Protocol):
    """One upstream."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """Makes one request and yields what each read from the network brought, never an empty list.

        It is an async generator: closing or cancelling it closes the upstream request at once. It ends after a
        `Finish` was yielded, and raises `ModelError` in every other case: `STREAM_ERROR` for a stream that ended
        without one. It makes one attempt and knows no time-outs: those are the turn engine's.
        """
        ...

    async def close(self) -> None: ...
