"""The batcher: nothing is lost or reordered, and nothing is held longer than it may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sessions.batcher import Batcher


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
    assert [batcher.add(piece, 0) for piece in pieces] == sent
    assert batcher.flush() == held
    assert batcher.flush() == ""


def test_the_oldest_character_says_when_it_is_due() -> None:
    batcher = Batcher(10, 0.05)
    batcher.add("first", 1.0)
    assert batcher.due_at is None
    batcher.add("b", 2.0)
    batcher.add("c", 2.04)
    assert batcher.due_at == pytest.approx(2.05)
    batcher.add("0123456789", 2.045)
    assert batcher.due_at is None
    batcher.add("d", 2.06)
    assert batcher.due_at == pytest.approx(2.11)
    batcher.flush()
    assert batcher.due_at is None


@given(st.lists(st.one_of(st.none(), st.text(min_size=1, max_size=12))), st.integers(1, 20))
def test_all_text_in_order_and_never_too_much_held(steps: list[str | None], max_chars: int) -> None:
    batcher, sent = Batcher(max_chars, 0.05), ""
    given_so_far = ""
    for now, step in enumerate(steps):
        if step is None:
            sent += batcher.flush()
            assert sent == given_so_far
        else:
            given_so_far += step
            sent += batcher.add(step, now)
        held = given_so_far[len(sent) :]
        assert given_so_far.startswith(sent)
        assert len(held) < max_chars
        assert (batcher.due_at is None) == (not held)
    assert sent + batcher.flush() == given_so_far
