"""A model that does exactly what a test wrote down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import orjson

from gateway.models.model import CallFragment, Event, Finish, ModelRequest, Sink, pour
from protocol.frames import Usage

Step = list[Event] | BaseException | asyncio.Event
"""What one read brings, what it raises, or what it waits for."""

END: list[Event] = [Finish("stop"), Usage(3, 4)]


def calls(*wanted: tuple[str, dict[str, Any]]) -> list[Event]:
    """The fragments of whole calls, and the end of the round."""
    fragments: list[Event] = [
        CallFragment(index, f"up_{index}", name, orjson.dumps(args).decode())
        for index, (name, args) in enumerate(wanted)
    ]
    return [*fragments, Finish(None)]


class ScriptedModel:
    """Plays one script for each model call, in order; the last one again and again."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.scripts = list(scripts)
        self.requests: list[ModelRequest] = []
        self.closed = 0
        """Model calls that were ended before their script was."""
        self.open = 0

    async def answer(self, request: ModelRequest, sink: Sink) -> None:
        await pour(self.stream(request), sink)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
        self.requests.append(request)
        self.open += 1
        finished = False
        try:
            for step in script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, BaseException):
                    raise step
                else:
                    await asyncio.sleep(0)
                    yield step
            finished = True
        finally:
            self.open -= 1
            self.closed += not finished

    async def close(self) -> None:
        pass
