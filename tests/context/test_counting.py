"""Counting tokens: exact where it can be, quick on hostile text, never a download."""

from __future__ import annotations

import asyncio
import gzip
import threading
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.context import counting
from gateway.context.counting import ENTRY_BYTES, PIECE_CHARS, TokenCounter, encoding_for, pieces

PROSE = (
    "The quick brown fox isn't lazy; it naps — 1234 times a day, naïvely. Größe! 你好，世界 🙂"
    "\n\n  def f(x): return x\n"
)


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-4.5-preview", "o200k_base"),
        ("gpt-5.4-mini", "o200k_base"),
        ("o3", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("ft:gpt-3.5-turbo:me", "cl100k_base"),
        ("llama3", "o200k_base"),
        ("demo", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_encoding_for(model: str, encoding: str) -> None:
    assert encoding_for(model) == encoding


@pytest.mark.parametrize(
    ("model", "text", "tokens"),
    [
        # "tiktoken is great!" is 6 tokens in OpenAI's cookbook, for both encodings.
        ("gpt-4", "tiktoken is great!", 6),
        ("gpt-4o", "tiktoken is great!", 6),
        ("gpt-4", "お誕生日おめでとう", 9),
        ("gpt-4o", "お誕生日おめでとう", 8),
        ("gpt-4", "antidisestablishmentarianism", 6),
        ("gpt-4", "2 + 2 = 4", 7),
        ("gpt-4o", "", 0),
        ("gpt-4o", "a", 1),
    ],
)
def test_published_counts(model: str, text: str, tokens: int) -> None:
    assert TokenCounter(model).count(text) == tokens


def test_special_tokens_are_text() -> None:
    assert TokenCounter().count("<|endoftext|>") > 1


def test_lone_surrogates_are_counted() -> None:
    assert TokenCounter().count("\ud800") > 0


@pytest.mark.parametrize("model", ["gpt-4", "gpt-4o"])
def test_prose_in_pieces_counts_as_whole(model: str) -> None:
    counter = TokenCounter(model)
    text = PROSE * 1200
    assert len(text) > 5 * PIECE_CHARS
    whole = len(counting._ENCODINGS.get(counter.encoding).encode(text, disallowed_special=()))
    assert counter.count(text) == whole


@pytest.mark.parametrize("model", ["gpt-4", "gpt-4o"])
@pytest.mark.parametrize("character", [" ", " \t", "a", "^", "\n", "中"])
def test_long_runs_are_counted(model: str, character: str) -> None:
    # tiktoken alone fails on a million spaces before a letter, and is slow on the others.
    assert TokenCounter(model).count(character * (400_000 // len(character)) + "x") > 2000


def test_tiktoken_still_needs_pieces() -> None:
    encoding = counting._ENCODINGS.get("o200k_base")
    with pytest.raises(ValueError, match="Regex error"):
        encoding.encode(" " * 1_000_000 + "x", disallowed_special=())


@given(st.text(alphabet=" ab\n.é", max_size=300), st.integers(1, 40))
def test_pieces_are_the_text(text: str, limit_chars: int) -> None:
    cut = list(pieces(text, limit_chars))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= limit_chars for piece in cut)


def test_a_count_is_remembered_and_forgotten() -> None:
    counter = TokenCounter(cache_bytes=3 * ENTRY_BYTES)
    counter.count("one")
    for text in ("two", "three", "one", "four"):
        counter.count(text)
    held = [text for text in ("one", "two", "three", "four") if counting._digest(text) in counter._counts]
    assert held == ["one", "three", "four"]


def test_a_remembered_count_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = TokenCounter()
    text = PROSE * 3
    first = counter.count(text)
    monkeypatch.setattr(counting, "pieces", lambda _: pytest.fail("counted again"))
    assert counter.count(text) == first


def test_no_cache_at_all() -> None:
    assert TokenCounter(cache_bytes=0).count("one two") == 2


async def test_count_many() -> None:
    counter = TokenCounter()
    assert await counter.count_many([]) == []
    assert await counter.count_many(["one two", ""]) == [2, 0]
    long = PROSE * 200
    assert await counter.count_many([long, "one two"]) == [counter.count(long), 2]


async def test_long_text_is_counted_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = TokenCounter()
    threads: list[str] = []
    count = counter.count
    monkeypatch.setattr(
        counter, "count", lambda text: (threads.append(threading.current_thread().name), count(text))[1]
    )
    await counter.count_many(["short"])
    await counter.count_many(["long " * 1000])
    assert threads[0] == threading.main_thread().name
    assert threads[1] != threading.main_thread().name


async def test_preload_loads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    read = counting._read
    loader = counting._Loader()
    monkeypatch.setattr(counting, "_ENCODINGS", loader)
    monkeypatch.setattr(counting, "_read", lambda name: (loads.append(name), read(name))[1])
    counter = TokenCounter("gpt-4")
    counter.preload()
    counter.preload()
    counts = await asyncio.gather(*(counter.count_many([f"text {n}"]) for n in range(4)))
    counter.preload()
    assert counts == [[3]] * 4
    assert loads == ["cl100k_base"]


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"YQ== 0\n"), gzip.compress(b"x" * 99)[:-9]],
    ids=["not gzip", "other content", "cut short"],
)
def test_a_damaged_vocabulary_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "o200k_base.tiktoken.gz").write_bytes(content)
    monkeypatch.setattr(counting, "files", lambda _: tmp_path)
    with pytest.raises(counting.VocabularyDamaged, match="install the package again"):
        counting._read("o200k_base")


def test_the_licence_is_there() -> None:
    assert "OpenAI" in files("gateway.context").joinpath("vocab", "LICENSE").read_text()
