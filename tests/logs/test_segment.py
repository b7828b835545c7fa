"""What is stored is read back exactly, and a token costs little more than its text."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import segment
from protocol.frames import (
    ENTRY_TYPES,
    Compacted,
    Context,
    Done,
    Entry,
    Error,
    ErrorBody,
    FunctionCall,
    FunctionResult,
    FunctionSpec,
    Message,
    Metadata,
    Options,
    Restart,
    Token,
    Tool,
    Usage,
)

NOW = 1_764_000_000_000


def common(seq: int = 1, epoch: int = 0) -> dict[str, Any]:
    return {
        "conversation_id": "c",
        "turn_id": "t1",
        "seq": seq,
        "epoch": epoch,
        "metadata": Metadata(NOW + seq),
    }


def tokens(count: int, first: int = 1, text: str = " word", epoch: int = 0) -> list[Token]:
    return [Token(**common(seq, epoch), content=text) for seq in range(first, first + count)]


OPTIONS = Options(
    model="m",
    system="Be brief.\0",
    tools=[
        Tool(FunctionSpec("look_up", "d", {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}, True))
    ],
)
EVERY_KIND: dict[str, Entry] = {
    "message": Message(**common(), content="hi", message_id="m1"),
    "message, every field": Message(
        conversation_id="c",
        turn_id="t1",
        seq=1,
        metadata=Metadata(NOW, {"app": {"tab": [1, None, 2.5]}}),
        content="ça va 👋\0",
        message_id="m",
        interrupt=True,
        options=OPTIONS,
        ref="r",
        duplicate=True,
    ),
    "message, empty options": Message(**common(), content="hi", message_id="m1", options=Options(tools=[])),
    "token": Token(**common(), content="\ud83d\udc4b".encode("utf-16", "surrogatepass").decode("utf-16")),
    "token, empty": Token(**common(), content=""),
    "token that stands for several": Token(**common(9), content="ab", first_seq=1),
    "function_call": FunctionCall(
        **common(), call_id="k", name="f", args={"a": [1, {"b": None}]}, runs="client", round=2
    ),
    "function_call, a long number": FunctionCall(
        **common(), call_id="k", name="f", args={"n": 10**40, "x": -(2**63) - 1}, runs="gateway", round=1
    ),
    "function_result": FunctionResult(**common(), call_id="k", name="f", result={"ok": True}),
    "function_result, null": FunctionResult(**common(), call_id="k", name="f", result=None),
    "function_result, neither": FunctionResult(**common(), call_id="k", name="f"),
    "function_result, binary": FunctionResult(**common(), call_id="k", name="f", result=b"\x00\xff"),
    "function_result, half a surrogate pair": FunctionResult(**common(), call_id="k", name="f", result="a\ud83d"),
    "function_result, error": FunctionResult(**common(), call_id="k", name="f", error=""),
    "context": Context(**common(), compacted=Compacted(10, 2, 9000, 500)),
    "restart": Restart(**common(), attempt=2, keep_seq=7),
    "done": Done(**common(), finish_reason="stop", usage=Usage(5, 7), text_length=3),
    "done, no usage": Done(**common(), finish_reason="cancelled", usage=None, text_length=0),
    "error": Error(**common(), error=ErrorBody("NODE_LOST", "It's gone.", True)),
}


def test_the_table_has_every_kind_of_entry() -> None:
    assert {type(entry) for entry in EVERY_KIND.values()} == set(ENTRY_TYPES)


@pytest.mark.parametrize("entry", EVERY_KIND.values(), ids=EVERY_KIND.keys())
@pytest.mark.parametrize("epoch", [0, 1_764_000_000])
def test_an_entry_comes_back_as_it_was(entry: Entry, epoch: int) -> None:
    entry = msgspec.structs.replace(entry, epoch=epoch)
    assert segment.decode(segment.encode([entry]), "c", entry.seq, epoch) == [entry]


kinds = st.sampled_from(list(EVERY_KIND.values()))
some_tokens = st.builds(
    lambda turn, at, text: Token(conversation_id="c", turn_id=turn, seq=0, metadata=Metadata(at), content=text),
    st.sampled_from(["t1", "t2"]),
    st.integers(min_value=0, max_value=2**52),  # clocks go back, too
    st.text(max_size=5),
)


@given(st.lists(kinds | some_tokens, min_size=1, max_size=30), st.integers(1, 10**9), st.data())
def test_any_sequence_comes_back_whole_and_from_any_entry_on(
    drawn: list[Entry], first: int, data: st.DataObject
) -> None:
    entries: list[Entry] = [msgspec.structs.replace(e, seq=first + i, epoch=3) for i, e in enumerate(drawn)]
    stored = segment.encode(entries)
    skip = data.draw(st.integers(0, len(entries)))
    assert segment.decode(stored, "c", first, 3) == entries
    assert segment.decode(stored, "c", first, 3, after=first + skip - 1) == entries[skip:]


def test_a_token_costs_its_text_and_at_most_three_bytes() -> None:
    few, many = len(segment.encode(tokens(100))), len(segment.encode(tokens(1100)))
    assert (many - few) / 1000 <= len(" word") + 3


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (b"", "version none"),
        (b"\x02\x90", "version 02"),
        (b"\x01", "truncated"),
        (b"\x01\x91\xa1x", "Expected"),
        (segment.encode(tokens(3))[:-2], "truncated"),
        (bytes((segment.VERSION,)) + msgspec.msgpack.encode([("t1", [1, 2], ["a"])]), "shorter"),
        (bytes((segment.VERSION,)) + msgspec.msgpack.encode([b"{"]), "Expecting"),
    ],
)
def test_damage_is_noticed(stored: bytes, says: str) -> None:
    with pytest.raises(segment.SegmentError, match=says):
        segment.decode(stored, "c", 1, 0)


def test_a_token_counts_its_utf8_bytes() -> None:
    sizes = [segment.content_bytes(token) for token in (tokens(1, text="")[0], tokens(1, text="é" * 10)[0])]
    assert sizes == [segment.LEAST_BYTES, 20]
    assert segment.content_bytes(EVERY_KIND["message, every field"]) > 100


@pytest.mark.parametrize(("limit_bytes", "fit"), [(0, 1), (9, 1), (19, 1), (20, 2), (29, 2), (1000, 5)])
def test_cut_takes_what_fits_and_at_least_one(limit_bytes: int, fit: int) -> None:
    entries = tokens(5, text="ten bytes.")
    assert segment.cut(entries, limit_bytes) == entries[:fit]
    assert segment.cut([], limit_bytes) == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=40), st.integers(1, 60))
def test_split_loses_nothing_and_keeps_epochs_apart(shape: list[tuple[int, int]], limit_bytes: int) -> None:
    entries: list[Token] = []
    epoch = 0
    for seq, (step, length) in enumerate(shape, 1):
        epoch += step // 2
        entries += tokens(1, seq, "x" * length, epoch)
    pieces = list(segment.split(entries, limit_bytes))
    assert [entry for piece in pieces for entry in piece] == entries
    for piece in pieces:
        assert len({entry.epoch for entry in piece}) == 1
        assert (
            len(piece) == 1
            or sum(segment.LEAST_BYTES + len(entry.content) for entry in piece if isinstance(entry, Token))
            <= limit_bytes
        )
