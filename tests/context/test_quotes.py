"""What is kept of old messages word for word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context.counting import TokenCounter
from gateway.context.quotes import (
    HEADING,
    MAX_WORDS,
    Quote,
    chosen,
    joined_summary,
    quotes,
    split_summary,
    without_repeats,
)
from gateway.context.summary import Summarizer, SummaryFailed
from tests.support.scripted import END, ScriptedModel

COUNTER = TokenCounter()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("User: My daughter Ingrid is six. Thanks!", ["User: My daughter Ingrid is six."]),
        ("User: It is QX-7741.\nUntil 2027-03-01.", ["User: It is QX-7741.", "User: Until 2027-03-01."]),
        ("User: hm\nAssistant: It is 12:00.", ["Assistant: It is 12:00."]),
        ('Function result: {"seats": 3}', ['Function result: {"seats": 3}']),
        ('Assistant calls f({"a":1})\nUser: ok', []),
        ("User: Fine. I'm glad. Where should we begin?", []),
        ("User: 預算是48500元。好的。", ["User: 預算是48500元。好的。"]),
        ("User: number 7 " + "word " * MAX_WORDS, []),
        ("User: call   me\tAda   Lovelace", ["User: call me Ada Lovelace"]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences_with_names_and_numbers(text: str, lines: list[str]) -> None:
    assert [quote.line for quote in quotes(text)] == lines


def test_what_people_told_weighs_more_than_what_models_said_and_a_question_less() -> None:
    told, said, asked = quotes("User: It is 7.\nAssistant: It is 7.\nUser: Is it 7?")
    assert told.worth > asked.worth > said.worth


def test_of_equal_worth_the_earlier_stays_and_more_worth_wins() -> None:
    old, new, best = Quote("a", 1), Quote("b", 1), Quote("c", 2)
    assert chosen([old, new], [5, 5], 9) == ["a"]
    assert chosen([old, new, best], [5, 5, 5], 10) == ["a", "c"]
    assert chosen([old, old, Quote("A", 1)], [1, 1, 1], 9) == ["a"]
    assert chosen([old], [5], 0) == []


@given(st.text(max_size=80), st.lists(st.text("ab: -", min_size=1, max_size=9).map(str.strip).filter(bool), max_size=4))
def test_a_summary_comes_apart_as_it_was_joined(prose: str, lines: list[str]) -> None:
    prose = " ".join(prose.split())
    assert split_summary(joined_summary(prose, lines)) == (prose, lines)


def test_what_was_added_under_the_quotes_is_no_quote() -> None:
    assert split_summary(f"prose\n\n{HEADING}\n- User: 1\nSome were left out.") == (
        "prose\nSome were left out.",
        ["User: 1"],
    )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I go. I go. I go", "I go. I go"),
        ("1. A ship.\n2. A ship.\n\nB.", "1. A ship.\n\nB."),
        ("plain text", "plain text"),
        ("", ""),
    ],
)
def test_without_repeats(text: str, kept: str) -> None:
    assert without_repeats(text) == kept


def talk(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "and so on " * 20}]


async def test_a_fact_outlives_a_model_that_forgets_everything() -> None:
    fact = "My daughter Ingrid is allergic to cashews, contract QX-7741."
    summarizer = Summarizer(ScriptedModel([["They talked."], END]), "weak")
    kept = ""
    for number in range(30):
        turns = [talk(fact if number == 0 else f"Room {number} is mine."), talk("and then?")]
        kept = await summarizer.extend(kept, turns, COUNTER, limit_tokens=100, chunk_tokens=1000)
        assert f"- User: {fact}" in kept.splitlines()
        assert kept.startswith("They talked.")
        assert COUNTER.count(kept) <= 100


@pytest.mark.parametrize("earlier", ["", "before", joined_summary("before", ["User: Ada has 3 cats."])])
async def test_facts_are_quoted_also_when_the_model_fails(earlier: str) -> None:
    with pytest.raises(SummaryFailed) as failed:
        await Summarizer(ScriptedModel([END]), "weak").extend(
            earlier, [talk("The code is 4711."), talk("ok")], COUNTER, limit_tokens=100, chunk_tokens=1000
        )
    prose, quoted = split_summary(earlier)
    assert split_summary(failed.value.so_far) == (prose, [*quoted, "User: The code is 4711."])


async def test_the_model_is_asked_for_what_the_quotes_leave() -> None:
    model = ScriptedModel([["ok"], END])
    earlier = joined_summary("before", ["User: Ada has 3 cats."])
    await Summarizer(model, "m").extend(earlier, [talk("hi")], COUNTER, limit_tokens=100, chunk_tokens=1000)
    (request,) = model.requests
    assert request.max_tokens == 100 - COUNTER.count(joined_summary("", ["User: Ada has 3 cats."]))
    assert request.messages[1]["content"].startswith("Earlier summary:\nbefore\n\nNew messages:\n")
