from __future__ import annotations

import asyncio

import pytest

from gateway.edge import keepalive
from gateway.edge.keepalive import NOT_WATCHED, Keepalive

TICK_S = 0.01


class Peer:
    """Notes when it was checked; asks for the next check as it was told to."""

    def __init__(self, *again_s: float | None) -> None:
        self.bucket = NOT_WATCHED
        self.again_s = list(again_s)
        self.checked_at: list[float] = []
        self.done = asyncio.Event()

    def check(self, now: float) -> float | None:
        self.checked_at.append(now)
        again_s = self.again_s.pop(0) if self.again_s else None
        if again_s is None:
            self.done.set()
            return None
        return now + again_s


async def test_checks_are_never_early_and_follow_what_the_check_asked_for() -> None:
    sweep, peer = Keepalive(TICK_S), Peer(0.05, 0.0, None)
    due = sweep.after(0.03)
    sweep.watch(peer, due)
    await peer.done.wait()
    first, second, third = peer.checked_at
    assert first >= due
    assert second >= first + 0.05
    assert third > second


async def test_the_latest_watch_counts() -> None:
    sweep, sooner, later, forgotten = Keepalive(TICK_S), Peer(), Peer(), Peer()
    for peer, first_s, then_s in ((sooner, 60.0, 0.02), (later, 0.02, 60.0), (forgotten, 0.02, 0.02)):
        sweep.watch(peer, sweep.after(first_s))
        sweep.watch(peer, sweep.after(then_s))
    sweep.forget(forgotten)
    sweep.forget(forgotten)
    await sooner.done.wait()
    last = Peer()
    sweep.watch(last, sweep.after(0.05))
    await last.done.wait()
    assert len(sooner.checked_at) == 1
    assert later.checked_at == forgotten.checked_at == []
    sweep.forget(later)


async def test_the_timer_runs_only_while_something_is_watched() -> None:
    sweep, peer = Keepalive(TICK_S), Peer()
    assert sweep._timer is None
    sweep.watch(peer, sweep.after(0.0))
    assert sweep._timer is not None
    await peer.done.wait()
    await asyncio.sleep(0)
    assert sweep._timer is None
    again = Peer()
    sweep.watch(again, sweep.after(0.0))
    await again.done.wait()


async def test_many_that_fall_due_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "MAX_CHECKS_PER_TURN", 3)
    sweep, peers = Keepalive(TICK_S), [Peer() for _ in range(10)]
    due = sweep.after(0.0)
    for peer in peers:
        sweep.watch(peer, due)
    await asyncio.gather(*(peer.done.wait() for peer in peers))
    assert {len(peer.checked_at) for peer in peers} == {1}
    assert len({peer.checked_at[0] for peer in peers}) == 4
