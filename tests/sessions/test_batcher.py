"""The batcher: nothing is lost or reordered, nothing is held longer than it may be, and reads are spared."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.sessions.batcher import Batcher

GROUPS = st.integers(-(1 << 63), (1 << 63) - 1)
"""Also hashes, as of a feed that nobody reads here."""


def fed(batcher: Batcher, text: str, now: float, since: float | None = None) -> str:
    return batcher.add([text], now if since is None else since, now)


@pytest.mark.parametrize(
    ("pieces", "sent", "held"),
    [
        (["a"], ["a"], ""),
        (["a", "b"], ["a", ""], "b"),
        (["a", "bcde", "f"], ["a", "", "bcdef"], ""),
        (["a", "bcdefgh", "i"], ["a", "bcdefgh", ""], "i"),
        (["abcdefghi", "j"], ["abcdefghi", ""], "j"),
        (["a", "🙂🙂🙂🙂", "é"], ["a", "", "🙂🙂🙂🙂é"], ""),
    ],
)
def test_five_characters(pieces: list[str], sent: list[str], held: str) -> None:
    batcher = Batcher(5, 0.05)
    assert [fed(batcher, piece, 0) for piece in pieces] == sent
    assert batcher.flush() == held
    assert batcher.flush() == ""


def test_one_read_is_one_piece() -> None:
    batcher = Batcher(5, 0.05)
    fed(batcher, "first", 0)
    assert batcher.add(["ab", "cdefgh", "ijklmnopq"], 1, 1) == "abcdefghijklmnopq"


def test_the_oldest_character_says_when_it_is_due() -> None:
    batcher = Batcher(10, 0.05)
    fed(batcher, "first", 1.0)
    assert batcher.due_at is None
    fed(batcher, "b", 1.02)
    fed(batcher, "c", 1.04)
    assert batcher.due_at == pytest.approx(1.07)
    fed(batcher, "0123456789", 1.05)
    assert batcher.due_at is None
    fed(batcher, "d", 1.06)
    assert batcher.due_at == pytest.approx(1.11)
    batcher.flush()
    assert batcher.due_at is None


def test_what_nothing_would_join_isnt_held() -> None:
    batcher = Batcher(10, 0.05)
    sent = [fed(batcher, "abc", 0.06 * number) for number in range(5)]
    assert sent == ["abc"] * 5


def test_after_a_pause_text_is_soon_held_again() -> None:
    batcher = Batcher(1000, 0.05)
    for number in range(9):
        fed(batcher, "ab", 0.005 * number)
    assert batcher.flush()
    sent = [fed(batcher, "ab", 9.0 + 0.005 * number) for number in range(9)]
    assert sent.count("ab") <= 3
    assert sent[3:] == [""] * 6


def test_what_has_waited_to_be_read_goes_out_at_once() -> None:
    batcher = Batcher(10, 0.05)
    fed(batcher, "first", 1.0)
    assert fed(batcher, "b", 1.04, since=1.0) == "b"
    assert fed(batcher, "c", 1.08) == ""


def paced(every_s: float, piece: str) -> Batcher:
    """One that has seen text at a steady pace, up to time 10."""
    batcher = Batcher(10, 0.08)
    assert batcher.unread_s(9.0, 0) == 0.0  # no pace is known yet
    for back in range(8, -1, -1):
        fed(batcher, piece, 10 - back * every_s, since=10 - (back + 1) * every_s)
    return batcher


@pytest.mark.parametrize(
    ("every_s", "piece", "unread_s"),
    [
        pytest.param(0.02, "12345", 0.04, id="ten characters are there after two pieces"),
        pytest.param(0.03, "12345", 0.08, id="and not after 40 ms"),
        pytest.param(0.002, "12345", 0.01, id="a fast model"),
        pytest.param(0.0001, "12345", 0.01, id="never more often than this"),
        pytest.param(0.02, "1", 0.08, id="never later than the batch may wait"),
        pytest.param(0.06, "1234", 0.08, id="a slow model"),
        pytest.param(0.08, "1234", 0.0, id="one so slow that nothing would be joined"),
    ],
)
def test_when_reading_is_worth_while(every_s: float, piece: str, unread_s: float) -> None:
    assert paced(every_s, piece).unread_s(10.0, 0) == pytest.approx(unread_s)


def test_what_is_held_makes_the_next_read_come_sooner() -> None:
    batcher = Batcher(10, 0.08)
    fed(batcher, "12345", 9.98)
    fed(batcher, "12345", 10.0)
    assert batcher.unread_s(10.0, 0) == pytest.approx(0.02)


@given(st.floats(0, 0.08), st.floats(0, 0.08), GROUPS)
def test_those_with_a_phase_in_common_are_due_together(one: float, other: float, group: int) -> None:
    """Whenever they were read last, and at whatever pace, the slower one's time is a time of the faster one."""
    slow, fast = paced(0.03, "12345"), paced(0.02, "12345")
    due = [10 + one + slow.unread_s(10 + one, group), 10 + other + fast.unread_s(10 + other, group)]
    apart = (due[0] - due[1]) / 0.04
    assert apart == pytest.approx(round(apart), abs=1e-6)
    assert all(0 < at - began <= 0.081 for at, began in zip(due, (10 + one, 10 + other), strict=True))


@given(
    st.lists(st.one_of(st.none(), st.tuples(st.text(min_size=1, max_size=12), st.sampled_from([0, 0.001, 1])))),
    st.integers(1, 20),
    GROUPS,
)
@example(steps=[("12345678", 0), ("12345678", 0)], max_chars=20, group=-(1 << 62) - 1)
def test_all_text_in_order_and_never_too_much_held(
    steps: list[tuple[str, float] | None], max_chars: int, group: int
) -> None:
    batcher, sent = Batcher(max_chars, 0.05), ""
    given_so_far = ""
    for now, step in enumerate(steps):
        if step is None:
            sent += batcher.flush()
            assert sent == given_so_far
        else:
            given_so_far += step[0]
            sent += fed(batcher, step[0], now, since=now - step[1])
            assert 0 <= batcher.unread_s(now, group) <= 0.0505
        held = given_so_far[len(sent) :]
        assert given_so_far.startswith(sent)
        assert len(held) < max_chars
        assert (batcher.due_at is None) == (not held)
    assert sent + batcher.flush() == given_so_far
