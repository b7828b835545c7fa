"""Words for searching: what becomes one word, and what becomes the same word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context.words import KIN_WEIGHT, query_of, stem, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("create_pull_request", ["creat", "pull", "request"]),
        ("createPullRequest", ["creat", "pull", "request"]),
        ("HTTPServerStatus", ["http", "server", "statu"]),
        ("Please show me the files", ["show", "fil"]),
        ("v2 of issue-42", ["v2", "issu", "42"]),
        ("Größe der Räume", ["größe", "der", "räume"]),
        ("東京の天気", ["東京", "京の", "の天", "天気"]),
        ("天", ["天"]),
        ("Tokyo東京2020", ["tokyo", "東京", "2020"]),
        ("погода в Москве", ["погода", "в", "москве"]),
        ("", []),
        ("___", []),
    ],
)
def test_words_of(text: str, words: list[str]) -> None:
    expected = [word if word != "statu" else stem("status") for word in words]
    assert words_of(text) == expected


@pytest.mark.parametrize(
    "same",
    [
        ("create", "creates", "created", "creating"),
        ("query", "queries"),
        ("directory", "directories"),
        ("stop", "stopped", "stopping"),
        ("add", "added", "adding", "adds"),
        ("merge", "merged", "merging", "merges"),
        ("call", "called", "calls"),
    ],
)
def test_forms_of_a_word_are_one(same: tuple[str, ...]) -> None:
    assert len({stem(word) for word in same}) == 1


@pytest.mark.parametrize("word", ["is", "ing", "red", "bed", "status", "class", "this", "über", "日本", "a1", "naïve"])
def test_what_is_no_ending_stays(word: str) -> None:
    assert stem(word) == word


@given(st.text(max_size=200))
def test_any_text_gives_words(text: str) -> None:
    assert all((word and word == word.lower()) or not word.isascii() for word in words_of(text))


def test_a_query_knows_kindred_words_and_shapes() -> None:
    query = query_of("Read https://example.org at 15:30 from notes.txt in that folder")
    assert query[stem("folder")] == query["url"] == query["file"] == query["time"] == 1.0
    assert query[stem("directory")] == KIN_WEIGHT
    assert "url" not in query_of("read it")
