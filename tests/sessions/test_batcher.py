"""The batcher: nothing is lost or reordered, nothing is held longer than it may be, and reads are spared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sessions.batcher import Batcher


def fed(batcher: Batcher, text: str, now: float, since: float | None = None) -> str:
    batcher.add([text], now if since is None else since, now)
    return batcher.take()


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
    batcher.add(["ab", "cdefgh", "ijklmnopq"], 1, 1)
    assert batcher.take() == "abcdefghijklmnopq"


def test_the_oldest_character_says_when_it_is_due() -> None:
    batcher = Batcher(10, 0.05)
    fed(batcher, "first", 1.0)
    assert batcher.due_at is None
    fed(batcher, "b", 2.0)
    fed(batcher, "c", 2.04)
    assert batcher.due_at == pytest.approx(2.05)
    fed(batcher, "0123456789", 2.045)
    assert batcher.due_at is None
    fed(batcher, "d", 2.06)
    assert batcher.due_at == pytest.approx(2.11)
    batcher.flush()
    assert batcher.due_at is None


def test_what_has_waited_to_be_read_goes_out_at_once() -> None:
    batcher = Batcher(10, 0.05)
    fed(batcher, "first", 1.0)
    assert fed(batcher, "b", 1.04, since=1.0) == "b"
    assert fed(batcher, "c", 1.08) == ""


@pytest.mark.parametrize(
    ("every_s", "piece", "unread_s"),
    [
        pytest.param(0.02, "12345", 0.04, id="ten characters are there after two pieces"),
        pytest.param(0.002, "12345", 0.004, id="a fast model"),
        pytest.param(0.02, "1", 0.05, id="never longer than the batch may wait"),
        pytest.param(1.0, "1234", 0.05, id="a slow model"),
    ],
)
def test_when_reading_is_worth_while(every_s: float, piece: str, unread_s: float) -> None:
    batcher = Batcher(10, 0.05)
    assert batcher.unread_s() == 0.0  # no pace is known yet
    now = 10.0
    for _ in range(8):
        fed(batcher, piece, now, since=now - every_s)
        now += every_s
    assert batcher.unread_s() == pytest.approx(unread_s)


def test_what_is_held_makes_the_next_read_come_sooner() -> None:
    batcher = Batcher(10, 0.05)
    fed(batcher, "12345", 10.0)
    fed(batcher, "12345", 10.02)
    assert batcher.unread_s() == pytest.approx(0.02)


@given(
    st.lists(st.one_of(st.none(), st.tuples(st.text(min_size=1, max_size=12), st.sampled_from([0, 0.001, 1])))),
    st.integers(1, 20),
)
def test_all_text_in_order_and_never_too_much_held(steps: list[tuple[str, float] | None], max_chars: int) -> None:
    batcher, sent = Batcher(max_chars, 0.05), ""
    given_so_far = ""
    for now, step in enumerate(steps):
        if step is None:
            sent += batcher.flush()
            assert sent == given_so_far
        else:
            given_so_far += step[0]
            sent += fed(batcher, step[0], now, since=now - step[1])
            assert 0 <= batcher.unread_s() <= 0.05
        held = given_so_far[len(sent) :]
        assert given_so_far.startswith(sent)
        assert len(held) < max_chars
        assert (batcher.due_at is None) == (not held)
    assert sent + batcher.flush() == given_so_far
