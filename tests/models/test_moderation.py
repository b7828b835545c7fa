"""Moderation: the loop rests under load only, never for long, and only when everything read has been served."""

import asyncio

import pytest

from gateway.models.moderation import BUSY_PER_S, TURN_S, WINDOW_S, Moderation


class Clock:
    """Time that passes when it is told to, or slept away."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rests: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


async def turn(moderation: Moderation, clock: Clock, reads: int, lasts_s: float = 0.0001) -> None:
    """One turn of the loop that brings `reads`, and all that follows from it."""
    for _ in range(reads):
        moderation.read(clock.now)
    clock.now += lasts_s
    for _ in range(4):
        await asyncio.sleep(0)


async def loaded(clock: Clock, per_s: float) -> Moderation:
    """A loop that has had so many reads a second for a while."""
    moderation = Moderation(sleep=lambda _: None, clock=clock)
    until = clock.now + 3 * WINDOW_S
    while clock.now < until:
        await turn(moderation, clock, 1, 1 / per_s)
    moderation._sleep = clock.sleep
    return moderation


async def test_a_loop_with_little_to_do_never_rests() -> None:
    clock = Clock()
    moderation = await loaded(clock, 0.9 * BUSY_PER_S)
    for _ in range(100):
        await turn(moderation, clock, 1, 1 / (0.9 * BUSY_PER_S))
    assert clock.rests == []


async def test_under_load_a_turn_is_as_long_as_it_may_be() -> None:
    clock = Clock()
    moderation = await loaded(clock, 2 * BUSY_PER_S)
    began = clock.now
    for _ in range(50):
        await turn(moderation, clock, 6)
    assert len(clock.rests) >= 49
    assert max(clock.rests) < TURN_S
    assert (clock.now - began) / 50 == pytest.approx(TURN_S, rel=0.1)


async def test_a_loop_that_has_no_time_to_lose_loses_none() -> None:
    clock = Clock()
    moderation = await loaded(clock, 2 * BUSY_PER_S)
    await turn(moderation, clock, 20, 0.005)
    clock.rests.clear()
    for _ in range(20):
        await turn(moderation, clock, 20, 0.005)
    assert clock.rests == []


async def test_what_comes_after_a_silence_isnt_kept_waiting() -> None:
    clock = Clock()
    moderation = await loaded(clock, 2 * BUSY_PER_S)
    clock.now += 10
    await turn(moderation, clock, 1)
    await turn(moderation, clock, 1)
    assert clock.rests == []


async def test_all_that_was_read_is_served_before_a_rest() -> None:
    clock = Clock()
    moderation = await loaded(clock, 2 * BUSY_PER_S)
    assert moderation._busy
    loop, served = asyncio.get_running_loop(), []
    moderation._sleep = lambda _: served.append("rest")
    moderation._rested_at = moderation._since = clock.now
    served.clear()

    def read(left: int) -> None:
        moderation.read(clock.now)
        loop.call_soon(served.append, "sent")
        if left:
            loop.call_soon(read, left - 1)

    read(3)
    for _ in range(12):
        await asyncio.sleep(0)
    assert served == ["sent"] * 4 + ["rest"]
