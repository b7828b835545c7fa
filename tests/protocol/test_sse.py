"""Event streams: the vectors whole, byte by byte and cut at every place; properties for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.sse import HEARTBEAT, Event, EventParser, EventTooLarge, event

CASES = json.loads((Path(__file__).parents[2] / "protocol/vectors/sse.json").read_text(encoding="utf-8"))


def read(parser: EventParser, pieces: list[bytes]) -> tuple[list[Event], bool]:
    """The events, and whether the parser gave up. One more empty read shows a failure that came with events."""
    events: list[Event] = []
    try:
        for piece in [*pieces, b""]:
            events += parser.feed(piece)
    except EventTooLarge:
        return events, True
    return events, False


def cuts(stream: bytes) -> list[list[bytes]]:
    in_two = [[stream[:i], stream[i:]] for i in range(len(stream) + 1)]
    return [[stream], [bytes([byte]) for byte in stream], *in_two]


@pytest.mark.parametrize("case", CASES["streams"], ids=lambda case: str(case["name"]))
def test_stream(case: dict[str, Any]) -> None:
    stream = case["text"].encode() if "text" in case else bytes.fromhex(case["hex"])
    expected = [Event(one["id"], one["data"], one.get("event", "message")) for one in case["events"]]
    for pieces in cuts(stream):
        parser = EventParser(case.get("max_event_bytes", 65536))
        assert read(parser, pieces) == (expected, case.get("too_large", False)), pieces
        assert parser.retry_ms == case.get("retry_ms")


@pytest.mark.parametrize("case", CASES["written"], ids=lambda case: str(case["cursor"]))
def test_written(case: dict[str, Any]) -> None:
    assert event(case["json"].encode(), case["cursor"]) == case["bytes"].encode()


steady = settings(deadline=None)
"""The machine may be busy."""

one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@steady
@given(
    frames=st.lists(st.tuples(one_line, st.none() | st.from_regex(r"\A[0-9]{1,4}(\.[0-9]{1,4})?\Z"))),
    pieces=st.lists(st.integers(1, 9)),
)
def test_what_is_written_is_read_however_it_is_cut(frames: list[tuple[str, str | None]], pieces: list[int]) -> None:
    stream = b"".join(HEARTBEAT + event(text.encode(), cursor) for text, cursor in frames)
    parser, events = EventParser(100_000), []
    for size in pieces:
        events += parser.feed(stream[:size])
        stream = stream[size:]
    events += parser.feed(stream)
    last, expected = "", []
    for text, cursor in frames:
        last = last if cursor is None else cursor
        expected.append(Event(last, text))
    assert events == expected
    assert parser.last_event_id == last


@steady
@given(stream=st.binary(max_size=80), sizes=st.lists(st.integers(1, 5)))
def test_any_bytes_give_the_same_events_in_any_pieces(stream: bytes, sizes: list[int]) -> None:
    pieces, rest = [], stream
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert read(EventParser(30), [stream]) == read(EventParser(30), [*pieces, rest])


def test_it_holds_no_more_than_its_bound() -> None:
    parser = EventParser(1000)
    for _ in range(1000):
        parser.feed(b"x")
    with pytest.raises(EventTooLarge):
        parser.feed(b"x")
    with pytest.raises(EventTooLarge):
        parser.feed(b"\n\ndata: a\n\n")
