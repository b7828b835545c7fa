"""Merging: however a log is cut into slices, a reader gets the same text, in order, in frames that fit."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import JSON
from protocol.frames import Done, Entry, Message, Metadata, Token
from protocol.merge import FRAME_ROOM_BYTES, SLICE_BYTES, TOKEN_CHARS, merge, split

# Costly in JSON in each way: escaped (6 bytes a character), astral (4), quotes, and plain.
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\x00", "\x1f", "\u2028", '"\\', "🙂", "x", "é"]).flatmap(
        lambda char: st.integers(1, TOKEN_CHARS // len(char)).map(lambda count: char * count)
    ),
)


def place(seq: int, turn: int, epoch: int) -> dict[str, Any]:
    name = f"t_{turn}".ljust(40, "x")
    return {"conversation_id": "c" * 128, "turn_id": name, "seq": seq, "epoch": epoch, "metadata": Metadata(1 << 41)}


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    entries: list[Entry] = []
    turn = epoch = 0
    for seq in range(1, draw(st.integers(1, 40)) + 1):
        kind = draw(st.sampled_from(["token"] * 8 + ["message", "done", "turn", "epoch"]))
        turn += kind == "turn"
        epoch += kind == "epoch"
        where = place(seq, turn, epoch)
        if kind == "message":
            entries.append(Message(**where, content=draw(texts), message_id="m"))
        elif kind == "done":
            entries.append(Done(**where, finish_reason="stop", usage=None, text_length=0))
        else:
            entries.append(Token(**where, content=draw(texts)))
    return entries


def said(entries: list[Entry]) -> list[tuple[str, int, str]]:
    """What a reader makes of the entries: runs of text by turn and epoch, and everything else."""
    runs: list[tuple[str, int, str]] = []
    for entry in entries:
        if not isinstance(entry, Token):
            runs.append((repr(entry), 0, ""))
        elif runs and runs[-1][:2] == (entry.turn_id, entry.epoch):
            runs[-1] = (entry.turn_id, entry.epoch, runs[-1][2] + entry.content)
        else:
            runs.append((entry.turn_id, entry.epoch, entry.content))
    return runs


@given(logs(), st.data(), st.one_of(st.just(SLICE_BYTES), st.integers(0, 20_000)))
def test_slices_from_any_cursor_to_the_end(log: list[Entry], data: st.DataObject, limit_bytes: int) -> None:
    start = at = data.draw(st.integers(0, len(log) - 1))
    frames: list[Entry] = []
    while at < len(log):
        made = merge(log[at:], limit_bytes)
        for frame in made:
            first = frame.first_seq if isinstance(frame, Token) and frame.first_seq else frame.seq
            assert first == at + 1
            at = frame.seq
            assert frame.metadata == log[at - 1].metadata
            if isinstance(frame, Token):
                assert len(JSON.encode(frame)) <= SLICE_BYTES
        if len(made) > 1 and limit_bytes > FRAME_ROOM_BYTES:
            content = sum(len(JSON.encode(frame)) for frame in made)
            assert content <= limit_bytes + len(made) * FRAME_ROOM_BYTES
        frames += made
    assert said(frames) == said(log[start:])


@given(logs())
def test_merging_merged_frames_changes_nothing(log: list[Entry]) -> None:
    once = merge(log, 1 << 30)
    assert merge(once, 1 << 30) == once


def test_a_lone_token_and_an_oversized_entry_are_left_as_they_are() -> None:
    token = Token(**place(1, 0, 0), content="x")
    huge = Message(**place(2, 0, 0), content="y" * (2 * SLICE_BYTES), message_id="m")
    assert merge([token]) == [token]
    assert merge([huge, token]) == [huge]
    assert merge([token, huge]) == [token]
    assert merge([]) == []


@given(st.text(max_size=40), st.integers(0, 3 * TOKEN_CHARS))
def test_split(text: str, length: int) -> None:
    text = (text * (length // max(1, len(text)) + 1))[:length]
    pieces = split(text)
    assert "".join(pieces) == text
    assert all(len(piece) <= TOKEN_CHARS for piece in pieces)
    assert len(pieces) == max(1, -(-len(text) // TOKEN_CHARS))
