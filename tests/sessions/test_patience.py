"""A model's time-out: it comes when it should, and a token that moves it sets no timer."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from gateway.sessions.patience import Patience


async def times_out_at(patience: Patience) -> float:
    """The loop time at which the body was ended."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10), patience:
            await asyncio.Event().wait()
    return asyncio.get_running_loop().time()


async def test_it_ends_in_time_and_not_before() -> None:
    until = asyncio.get_running_loop().time() + 0.03
    patience = Patience()
    patience.wait_until(until)
    assert until <= await times_out_at(patience) < until + 5


async def test_an_end_that_was_moved_later() -> None:
    now = asyncio.get_running_loop().time()
    patience = Patience()
    patience.wait_until(now + 0.01)
    patience.until = now + 0.05
    assert now + 0.05 <= await times_out_at(patience) < now + 5


async def test_an_end_that_was_moved_earlier() -> None:
    now = asyncio.get_running_loop().time()
    patience = Patience()
    patience.wait_until(now + 3600)
    patience.wait_until(now + 0.01)
    assert await times_out_at(patience) < now + 5


async def test_an_end_again_after_there_was_none() -> None:
    patience = Patience()
    patience.wait_until(asyncio.get_running_loop().time() + 0.01)
    patience.until = math.inf
    await asyncio.sleep(0.03)
    now = asyncio.get_running_loop().time()
    patience.wait_until(now + 0.01)
    assert now + 0.01 <= await times_out_at(patience) < now + 5


async def test_a_body_that_ends_by_itself_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), set[asyncio.TimerHandle]()
    call_at = loop.call_at

    def counting(*arguments: Any, **options: Any) -> asyncio.TimerHandle:
        timer = call_at(*arguments, **options)
        timers.add(timer)
        return timer

    monkeypatch.setattr(loop, "call_at", counting)
    async with Patience() as patience:
        now = loop.time()
        patience.wait_until(now + 3600)
        patience.wait_until(now + 1800)
        for token in range(1000):
            patience.until = now + 1800 + token
        for token in range(1000):
            patience.wait_until(now + 2800 + token)
    assert len(timers) == 2
    assert all(timer.cancelled() for timer in timers)
