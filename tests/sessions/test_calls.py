"""Whole calls out of fragments, and what a model may not ask for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.model import CallFragment, ModelError
from gateway.sessions.calls import MAX_ARGUMENTS_CHARS, MAX_CALLS, CallAssembler, WholeCall
from protocol.codes import ErrorCode


def assembled(*fragments: tuple[int, str | None, str]) -> list[WholeCall]:
    assembler = CallAssembler()
    for index, name, arguments in fragments:
        assembler.add(CallFragment(index, None, name, arguments))
    return assembler.whole()


@pytest.mark.parametrize(
    ("fragments", "calls"),
    [
        ([], []),
        ([(0, "f", "")], [("f", {})]),
        ([(0, "f", "  ")], [("f", {})]),
        ([(0, "f", '{"a"'), (0, None, ":1}")], [("f", {"a": 1})]),
        ([(0, "f", "{}"), (0, "again", "")], [("f", {})]),
        ([(0, "", '{"a":'), (0, "late", "1}")], [("late", {"a": 1})]),
        ([(2, "g", "{"), (0, "f", "{"), (2, None, "}"), (0, None, "}")], [("f", {}), ("g", {})]),
    ],
)
def test_whole(fragments: list[Any], calls: list[Any]) -> None:
    assert assembled(*fragments) == calls


@pytest.mark.parametrize(
    ("fragments", "words"),
    [
        ([(0, None, "{}")], "without naming"),
        ([(0, "f", "{")], "aren't valid JSON"),
        ([(0, "f", '{"a": NaN}')], "aren't valid JSON"),
        ([(0, "f", '{"a": "\\ud800"}')], "aren't valid JSON"),
        ([(0, "f", "[]")], "aren't a JSON object"),
        ([(0, "f" * 500, "1")], "f" * 64 + " aren't"),
        ([(0, "f", '{"a":' + "[" * 128 + "]" * 128 + "}")], "deeper than 128 levels"),
        ([(0, "f", "x" * MAX_ARGUMENTS_CHARS), (0, None, "x")], "longer than a million"),
        ([(0, "f" * (MAX_ARGUMENTS_CHARS + 1), "")], "longer than a million"),
        ([(index, "f", "") for index in range(MAX_CALLS + 1)], "more than 128 calls"),
    ],
)
def test_what_is_refused(fragments: list[Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        assembled(*fragments)
    assert (refused.value.code, refused.value.transient) == (ErrorCode.STREAM_ERROR, False)


@given(st.dictionaries(st.text(max_size=5), st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5)), st.data())
def test_however_the_arguments_are_cut(args: dict[str, Any], data: st.DataObject) -> None:
    text = orjson.dumps(args).decode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert assembled((0, "f", ""), *((0, None, piece) for piece in pieces)) == [("f", args)]
