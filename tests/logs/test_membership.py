"""Who is found lost, and who never is, whatever happens to the beats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs.membership import BEAT_S, LEASE_S, PAUSE_S, Membership

ME, X = "me", "x"


class Watch:
    """A node that beats at given times and remembers what it found."""

    def __init__(self) -> None:
        self.members = Membership(ME)
        self.found: list[tuple[float, str]] = []
        self.at = 0.0

    def beat(self, at: float, took: float = 0.0, **table: int) -> None:
        self.at = at + took
        for node_id in self.members.beaten({ME: int(at * 1000), **table}, asked_s=at, now_s=self.at):
            self.found.append((at, node_id))

    def beats(self, start: float, end: float, **table: int) -> None:
        while start <= end:
            self.beat(start, **table)
            start += BEAT_S

    def is_lost(self, node_id: str = X, later: float = 0.0) -> bool | None:
        return self.members.is_lost(node_id, self.at + later)


def test_a_node_that_beats_is_live() -> None:
    watch = Watch()
    for number in range(20):
        watch.beat(number * BEAT_S, x=number)
        assert watch.is_lost() is (False if number else None)
    assert watch.members.live(watch.at) == [X]
    assert watch.is_lost(ME) is False
    assert watch.found == []


def test_a_node_that_appears_while_we_look_is_live_at_once() -> None:
    watch = Watch()
    watch.beat(0.0)
    watch.beat(0.5, x=1)
    assert watch.is_lost() is False


def test_a_silent_node_is_lost_after_the_lease_and_found_once() -> None:
    watch = Watch()
    watch.beat(0.0, x=1)
    watch.beats(0.5, 3.0, x=2)
    assert watch.is_lost() is False
    watch.beats(3.5, 9.0, x=2)
    assert watch.is_lost() is True
    assert watch.found == [(3.5, X)]
    assert watch.members.live(watch.at) == []


def test_a_frozen_node_that_wakes_is_live_again_and_can_be_lost_again() -> None:
    watch = Watch()
    watch.beats(0.0, 3.0, x=1)
    assert watch.is_lost() is True
    watch.beats(3.5, 6.0, x=2)
    assert watch.is_lost() is False
    watch.beats(6.5, 8.0, x=2)
    assert watch.found == [(3.0, X), (6.5, X)]


def test_who_was_away_for_the_lease_knows_it_by_either_clock() -> None:
    watch = Watch()
    watch.beats(0.0, 4.0)
    assert not watch.members.was_away
    watch.members.failed()
    watch.beat(4.0 + LEASE_S - 0.1, took=0.05)
    assert not watch.members.was_away
    for _ in range(20):
        watch.members.failed()
    watch.beat(7.0, took=LEASE_S)
    assert watch.members.was_away, "it may have been late"
    watch.beat(10.5)
    watch.beat(11.0, me=14_000)
    assert watch.members.was_away, "by the server's clock"
    watch.beat(11.5, me=14_500)
    assert not watch.members.was_away


def test_a_node_that_left_is_known_at_once_and_for_good() -> None:
    watch = Watch()
    watch.beat(0.0, x=1)
    watch.beat(0.5, x=-2)
    assert watch.is_lost() is True
    watch.members.failed()
    assert watch.is_lost() is True
    watch.beats(1.0, 2.0)
    watch.beats(3.0, 8.0)
    assert watch.is_lost() is True
    assert watch.found == [(0.5, X)]


def test_one_that_was_lost_and_then_leaves_or_is_removed_is_found_once() -> None:
    for after in ({"x": -5}, {}):
        watch = Watch()
        watch.beats(0.0, 4.0, x=1)
        watch.beats(4.5, 9.0, **after)
        assert watch.is_lost() is True
        assert watch.found == [(3.0, X)]


def test_an_unknown_node_is_lost_when_it_was_absent_for_the_lease() -> None:
    watch = Watch()
    assert watch.is_lost() is None
    watch.beats(0.0, 2.5)
    assert watch.is_lost() is None
    watch.beat(3.0)
    assert watch.is_lost() is True
    assert watch.found == []


def test_a_table_that_was_lost_is_no_sign_of_death() -> None:
    watch = Watch()
    for number in range(4):
        watch.beat(number * BEAT_S, x=number)
    watch.beats(2.0, 4.5)
    assert watch.is_lost() is None
    watch.beat(5.0, x=99)
    assert watch.is_lost() is False
    assert watch.found == []
    watch.beats(5.5, 9.0)
    assert watch.found == [(8.5, X)]
    assert watch.is_lost() is True


@pytest.mark.parametrize("interrupt", ["failed", "pause"])
def test_an_interruption_starts_the_observation_anew(interrupt: str) -> None:
    watch = Watch()
    watch.beat(0.0, x=1)
    watch.beats(0.5, 3.0, x=2)
    resumed = 3.5
    if interrupt == "failed":
        watch.members.failed()
        assert watch.is_lost() is None
    else:
        resumed = 3.0 + PAUSE_S + 0.1
    watch.beats(resumed, resumed + 2.9, x=2)
    assert watch.is_lost() is None
    assert watch.is_lost("never seen") is None
    watch.beat(resumed + LEASE_S, x=2)
    assert watch.is_lost() is True
    assert watch.is_lost("never seen") is True


def test_a_verdict_stands_over_an_interruption_but_is_not_told_during_it() -> None:
    watch = Watch()
    watch.beats(0.0, 4.0, x=1)
    assert watch.is_lost(later=PAUSE_S + 0.1) is None
    watch.beat(20.0, x=1)
    assert watch.is_lost() is True
    watch.beat(40.0, x=2)
    assert watch.is_lost() is False
    assert watch.found == [(3.0, X)]


def test_the_time_that_a_beat_took_does_not_count() -> None:
    """The table is of some moment between asking and answer: unchanged from an answer to a later question is sure."""
    watch = Watch()
    for number in range(10):
        watch.beat(number * 0.9, took=0.8, x=1)
    assert [at for at, _ in watch.found] == [pytest.approx(0.8 + LEASE_S, abs=0.9)]
    assert watch.found[0][0] >= 0.8 + LEASE_S


# ------------------------------------------------------------ properties


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[float]]:
    """When we asked and how long each beat took (negative: it failed); when X wrote its beats."""
    pauses, took = st.sampled_from((0.5, 0.5, 0.5, 0.7, 1.5)), st.sampled_from((0.0, 0.0, 0.1, 0.4, -1.0))
    ours = draw(st.lists(st.tuples(pauses, took), min_size=8, max_size=80))
    theirs = draw(st.lists(st.sampled_from((0.5, 0.5, 1.0, 2.9, 3.5, 9.0)), max_size=40))
    return ours, theirs


def sums(steps: list[float]) -> Iterator[float]:
    at = 0.0
    for step in steps:
        at += step
        yield at


@given(histories(), st.floats(0.0, 1.0))
def test_nobody_is_found_lost_who_beat_within_the_lease(
    history: tuple[list[tuple[float, float]], list[float]], within: float
) -> None:
    ours, theirs = history
    beats = list(sums(theirs))
    members = Membership(ME)
    now, succeeded = 0.0, []
    for pause, took in ours:
        asked = now + pause
        now = asked + abs(took)
        if took < 0:
            members.failed()
            succeeded = []
            continue
        read = asked + within * took  # the moment at which the server saw it
        written = [number for number, at in enumerate(beats) if at <= read]
        if succeeded and now - succeeded[-1] > PAUSE_S:
            succeeded = []
        succeeded.append(now)
        found = members.beaten({X: written[-1] + 1} if written else {}, asked_s=asked, now_s=now)
        assert not found or asked - succeeded[0] >= LEASE_S
        if members.is_lost(X, now):
            assert not [at for at in beats if asked - LEASE_S < at <= read]


@given(st.integers(1, 30), st.floats(0.0, 0.5))
def test_whoever_stops_is_found_within_the_lease_and_two_beats(number: int, offset: float) -> None:
    stopped = number * BEAT_S + offset
    members = Membership(ME)
    at = 0.0
    while not members.is_lost(X, at):
        at += BEAT_S
        members.beaten({X: int(min(at + offset, stopped) / BEAT_S)}, asked_s=at, now_s=at)
        assert at <= stopped + LEASE_S + 2 * BEAT_S
    assert at >= stopped + LEASE_S - BEAT_S
