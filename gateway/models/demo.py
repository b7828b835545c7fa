"""The built-in model: offline, free, and made to be steered, so that the whole product can be tried without a key.

`/help` tells what it can do; `demo_script` decides what it says, this file only keeps its pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from gateway.models.demo_script import count_words, script_for
from gateway.models.demo_steps import Pause
from gateway.models.model import CallFragment, Event, Finish, ModelError, ModelRequest, Sink, pour
from protocol.frames import Usage

TICK_S = 0.005
"""Above one token a tick several are sent together, as a quick upstream's are read together."""
UNPACED_TOKENS = 64
"""In one batch when there is no pace to keep; other tasks run in between."""


class Demo:
    """`tokens_per_s` is its usual pace; `sleep` waits a number of seconds (tests pass their own)."""

    def __init__(
        self, *, tokens_per_s: float = 40.0, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._tokens_per_s = tokens_per_s
        self._sleep = sleep

    async def answer(self, request: ModelRequest, sink: Sink) -> None:
        """See `Model.answer`."""
        await pour(self.stream(request), sink)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """The same as batches of events. It holds nothing, so cancelling or closing it is safe anywhere."""
        script = script_for(request)
        size, wait_s = _pace(self._tokens_per_s * script.speed)
        batch: list[Event] = []
        tokens = 0
        for step in script.steps:
            last = isinstance(step, (ModelError, Pause))
            if batch and (last or len(batch) >= size):
                await self._sleep(wait_s)
                yield batch
                batch = []
            if isinstance(step, ModelError):
                raise step
            if isinstance(step, Pause):
                await asyncio.Event().wait()
                continue
            batch.append(step)
            tokens += isinstance(step, (str, CallFragment))
            if isinstance(step, Finish):
                break
        await self._sleep(wait_s)
        yield [*batch, Usage(count_words(request.messages), tokens)]

    async def close(self) -> None:
        """There is nothing to close."""


def _pace(tokens_per_s: float) -> tuple[int, float]:
    """Tokens a batch, and the seconds to wait before each."""
    if tokens_per_s == float("inf"):
        return UNPACED_TOKENS, 0.0
    size = max(1, int(tokens_per_s * TICK_S))
    return size, size / tokens_per_s
