"""The seam to a model: a request goes in, events come out as they are read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
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


class Sink(Protocol):
    """Where an answer goes. The model calls it on the event loop, one call at a time."""

    def take(self, events: list[Event], since: float) -> float:
        """What one read brought, never an empty list; `since`: the loop time from which it may have waited to be read.

        Returns for how many seconds nothing more need be read; `math.inf`: no more fits in, and nothing is to be
        given until `room` has returned.
        """
        ...

    async def room(self) -> None:
        """Returns when more can be taken. What it raises ends the call."""
        ...


class Model(Protocol):
    """One upstream."""

    async def answer(self, request: ModelRequest, sink: Sink) -> None:
        """Makes one request and gives its answer to `sink` as it comes.

        Returns after a `Finish` was given, and raises `ModelError` in every other case: `STREAM_ERROR` for an answer
        that ended without one. Cancelling it closes the upstream request at once, and nothing is given after that.
        It makes one attempt and knows no time-outs: those are the turn engine's.
        """
        ...

    async def close(self) -> None: ...


async def pour(answer: AsyncGenerator[list[Event], None], sink: Sink) -> None:
    """For models that are easier to write as generators."""
    loop = asyncio.get_running_loop()
    async with aclosing(answer):
        async for events in answer:
            if sink.take(events, loop.time()) == math.inf:
                await sink.room()
