"""Waiting for what nobody signals: another process' state, asked again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

ASK_S = 0.05


async def until(seen: Callable[[], bool], within_s: float) -> bool:
    """Whether it was seen in time."""

    async def asked() -> bool:
        return seen()

    return await until_told(asked, within_s)


async def until_told(seen: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    """The same for what has to be awaited."""
    now = asyncio.get_running_loop().time
    over = now() + within_s
    while not await seen():
        if now() >= over:
            return False
        await asyncio.sleep(ASK_S)
    return True
