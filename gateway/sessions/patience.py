"""How long a model is waited for: a time-out whose end every token moves."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from gateway.sessions.deadline import Deadline


class Patience(Deadline):
    """An asynchronous context manager whose body ends by `TimeoutError` when the deadline has passed."""

    __slots__ = ("_timeout",)

    def __init__(self) -> None:
        timeout = self._timeout = asyncio.timeout(None)
        super().__init__(lambda: _end(timeout))

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        await self._timeout.__aexit__(kind, problem, traceback)


def _end(timeout: asyncio.Timeout) -> None:
    if not timeout.expired():
        timeout.reschedule(asyncio.get_running_loop().time())
