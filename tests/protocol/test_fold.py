"""The fold against the golden vectors, and what must not depend on how a log was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.fold import PIECES, Fold
from protocol.frames import Done, Entry, FunctionSpec, Message, Metadata, Options, Token, Tool
from protocol.merge import merge

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors" / "fold.json"
PLACE: dict[str, Any] = {"conversation_id": "c", "turn_id": "t", "metadata": Metadata(1)}
CASES = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]


def entries_of(case: dict[str, Any]) -> list[Entry]:
    return [msgspec.convert(frame, Entry) for frame in case["log"]]


def seen(fold: Fold) -> tuple[Any, Any]:
    return msgspec.to_builtins(fold.messages()), msgspec.to_builtins(fold.running())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    fold = Fold()
    fold.apply_all(entries_of(case))
    assert seen(fold) == (case["messages"], case["turn"])
    last = case["log"][-1] if case["log"] else {}
    assert (fold.seq, fold.epoch) == (last.get("seq", 0), last.get("epoch", 0))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("limit_bytes", [1025, 1100, 65536])
def test_a_fold_of_merged_slices_is_the_same(case: dict[str, Any], limit_bytes: int) -> None:
    log, fold = entries_of(case), Fold()
    while fold.seq < len(log) and log[fold.seq].seq == fold.seq + 1:
        fold.apply_all(merge(log[fold.seq :], limit_bytes))
    fold.apply_all(entry for entry in log if entry.seq > fold.seq)
    assert seen(fold) == (case["messages"], case["turn"])


def test_lookups() -> None:
    case = next(case for case in CASES if case["name"].startswith("rounds"))
    fold = Fold()
    fold.apply_all(entries_of(case))
    turn = fold.turns["a"]
    assert fold.by_call_id("k1") is fold.by_call_id("k2") is fold.by_message_id("m_a") is turn
    assert (fold.by_call_id("k3"), fold.by_message_id("m_b")) == (None, None)
    assert (turn.rounds, turn.keep_seq, turn.open_calls, fold.open_turns()) == (2, 7, [], ())


def test_only_a_turn_that_isnt_over_needs_its_tools() -> None:
    fold = Fold()
    options = Options(model="m", tools=[Tool(function=FunctionSpec(name="f"))], system="s")
    question = Message(**PLACE, seq=1, content="hi", message_id="m", options=options)
    fold.apply(question)
    assert fold.turns["t"].message is question
    fold.apply(Done(**PLACE, seq=2, finish_reason="stop", usage=None, text_length=0))
    assert fold.turns["t"].message.options == Options(model="m", system="s")
    assert question.options == options, "readers may still have it"


@given(st.lists(st.text(max_size=5), max_size=3 * PIECES))
def test_text_is_whole_however_many_pieces_it_came_in(texts: list[str]) -> None:
    fold = Fold()
    fold.apply(Message(**PLACE, seq=1, content="hi", message_id="m"))
    for seq, text in enumerate(texts, 2):
        fold.apply(Token(**PLACE, seq=seq, content=text))
    whole = "".join(texts)
    assert fold.turns["t"].content == whole
    assert len(fold.turns["t"].pieces) <= PIECES
    fold.apply(Done(**PLACE, seq=len(texts) + 2, finish_reason="stop", usage=None, text_length=len(whole)))
    assert (fold.turns["t"].text, fold.turns["t"].pieces) == (whole, ())
