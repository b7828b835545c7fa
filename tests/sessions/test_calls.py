"""Whole calls out of fragments, and what a model may not ask for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.model import CallFragment, ModelError
from gateway.sessions.calls import (
    DECLINED,
    MAX_ARGUMENTS_CHARS,
    MAX_CALLS,
    BrokenCalls,
    CallAssembler,
    WholeCall,
    approval,
    check_tools,
)
from gateway.settings.tools import Tools
from gateway.tools.toolbox import Toolbox
from protocol.codes import ErrorCode, Refusal
from protocol.frames import UNSET, FunctionSpec, Tool


def assembled(*fragments: tuple[int, str | None, str]) -> list[WholeCall] | BrokenCalls:
    assembler = CallAssembler()
    for index, name, arguments in fragments:
        assembler.add(CallFragment(index, None, name, arguments))
    return assembler.whole({})


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
        ([(0, None, "{}")], "a function's name has"),
        ([(0, "a b", "{}")], "a function's name has"),
        ([(0, "f" * 65, "{}")], "a function's name has"),
        ([(0, "f", "{")], "aren't valid JSON"),
        ([(0, "f", '{"a": NaN}')], "aren't valid JSON"),
        ([(0, "f", '{"a": "\\ud800"}')], "aren't valid JSON"),
        ([(0, "f", "[]")], "have to be a JSON object"),
        ([(0, "f", '{"a":' + "[" * 128 + "]" * 128 + "}")], "deeper than 128 levels"),
    ],
)
def test_what_is_given_back_to_the_model(fragments: list[Any], words: str) -> None:
    broken = assembled(*fragments, (7, "fine", "{}"))
    assert isinstance(broken, BrokenCalls)
    (problem,) = broken.problems
    assert words in problem
    asked, *answers = broken.messages("so far")
    assert (asked["role"], asked["content"], len(asked["tool_calls"])) == ("assistant", "so far", 2)
    assert [answer["tool_call_id"] for answer in answers] == [call["id"] for call in asked["tool_calls"]]
    assert words in answers[0]["content"]
    assert "not run" in answers[1]["content"]


@pytest.mark.parametrize(
    ("fragments", "words"),
    [
        ([(0, "f", "x" * MAX_ARGUMENTS_CHARS), (0, None, "x")], "longer than a million"),
        ([(0, "f" * (MAX_ARGUMENTS_CHARS + 1), "")], "longer than a million"),
        ([(index, "f", "") for index in range(MAX_CALLS + 1)], "more than 128 calls"),
    ],
)
def test_what_is_refused(fragments: list[Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        assembled(*fragments)
    assert (refused.value.code, refused.value.transient) == (ErrorCode.STREAM_ERROR, False)


SEARCH = Tool(FunctionSpec(name="search", parameters={"type": "object", "properties": {"n": {"type": "integer"}}}))


def test_arguments_are_checked_against_the_schema() -> None:
    assembler = CallAssembler()
    assembler.add(CallFragment(0, None, "search", '{"n": "three"}'))
    broken = assembler.whole({"search": SEARCH})
    assert isinstance(broken, BrokenCalls)
    assert "`n`" in broken.problems[0]


@pytest.mark.parametrize(
    ("result", "error", "word"),
    [
        (True, UNSET, (True, UNSET)),
        ({"approved": True}, UNSET, (True, UNSET)),
        (False, UNSET, (False, DECLINED)),
        ({"approved": False}, UNSET, (False, DECLINED)),
        (UNSET, "too dear", (False, "too dear")),
    ],
)
def test_a_users_word_on_a_call(result: Any, error: Any, word: Any) -> None:
    assert approval(result, error) == word


@pytest.mark.parametrize("result", [None, 1, "yes", {}, {"approved": "yes"}, []])
def test_what_is_no_word(result: Any) -> None:
    with pytest.raises(Refusal, match="true or false"):
        approval(result, UNSET)


def test_tools_of_clients_are_checked() -> None:
    toolbox = Toolbox(Tools())
    check_tools([SEARCH], toolbox)
    with pytest.raises(Refusal, match=r"`tools\[1\]\.function\.parameters`"):
        check_tools([SEARCH, Tool(FunctionSpec(name="f", parameters={"type": "nonsense"}))], toolbox)


@given(st.dictionaries(st.text(max_size=5), st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5)), st.data())
def test_however_the_arguments_are_cut(args: dict[str, Any], data: st.DataObject) -> None:
    text = orjson.dumps(args).decode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert assembled((0, "f", ""), *((0, None, piece) for piece in pieces)) == [("f", args)]
