"""The demo model's summaries: facts taken over word for word, within the words that are allowed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.models.demo_summary import REQUEST, summary_of, wants_summary


def question(new: str, earlier: str = "(none yet)", words: int = 60) -> str:
    return f"Earlier summary:\n{earlier}\n\nNew messages:\n{new}\n\nThe new summary, in at most {words} words:"


@pytest.mark.parametrize(
    ("new", "kept"),
    [
        ("User: Hi there! My dog is called Rex.\nAssistant: Nice. " + "Blah blah. " * 30, "- My dog is called Rex."),
        ("User: Rooms 12 and 14 are ours.\nUser: " + "hm " * 30, "- Rooms 12 and 14 are ours."),
        ('User: look\nFunction result: {"seats": 3}\nAssistant: ' + "ok " * 30, '- Result: {"seats": 3}'),
        ("User: /fast my code is 4711\nAssistant: " + "ok. " * 20, "- my code is 4711"),
        ("User: 預算是48500元。\nAssistant: " + "ok. " * 20, "- 預算是48500元。"),
    ],
)
def test_what_is_kept(new: str, kept: str) -> None:
    assert kept in summary_of(question(new, words=20), None).splitlines()


def test_an_old_fact_outlives_new_talk() -> None:
    kept = summary_of(question("User: What do you think of rivers?\n" * 20, "- The code is 4711.", words=8), None)
    assert kept == "- The code is 4711."


def test_nothing_is_said_twice() -> None:
    kept = summary_of(
        question("User: The code is 4711.\nUser: the code is 4711.\n" + "x " * 30, "The code is 4711."), None
    )
    assert kept.lower().count("4711") == 1


@example("", "0" * 49, 10, 16)
@example("User: " + "預" * 500, "", 10, 16)
@given(st.text(max_size=500), st.text(max_size=100), st.integers(10, 50), st.integers(16, 100))
def test_it_keeps_within_its_limits(new: str, earlier: str, words: int, max_tokens: int) -> None:
    kept = summary_of(question(new, earlier, words), max_tokens)
    assert len(kept.encode()) <= 3 * max_tokens
    assert len(kept.split()) <= 2 * words
    assert summary_of(question(new, earlier, words), max_tokens) == kept


def test_only_a_request_for_a_summary_is_one() -> None:
    assert wants_summary([{"role": "system", "content": REQUEST + " …"}])
    assert not wants_summary([{"role": "user", "content": REQUEST}])
    assert not wants_summary([{"role": "system", "content": "be brief"}])
    assert not wants_summary([])
