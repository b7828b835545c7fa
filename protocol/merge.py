"""Merging what a reader missed (SPEC.md section 4): consecutive tokens of one turn and epoch become one frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from protocol.frames import Entry, Token

SLICE_BYTES = 65536
"""No merged frame is larger on the wire, and no slice much larger."""
FRAME_ROOM_BYTES = 1024
"""What the frame around a merged text may need: ids of 128 characters, numbers, braces."""
TOKEN_CHARS = 8192
"""Longer pieces from an upstream are split before they become entries: each character takes at most six bytes of
JSON, so an entry alone always fits into a slice."""


def split(text: str) -> Sequence[str]:
    """`text` in pieces of at most `TOKEN_CHARS`."""
    if len(text) <= TOKEN_CHARS:
        return (text,)
    return [text[start : start + TOKEN_CHARS] for start in range(0, len(text), TOKEN_CHARS)]


def merge(entries: Iterable[Entry], limit_bytes: int = SLICE_BYTES) -> list[Entry]:
    """The first entries that fit into `limit_bytes` of JSON (at least one), with runs of tokens merged.

    The last frame's `seq` tells how far it got.
    """
    merged: list[Entry] = []
    run: list[Token] = []
    room = limit_bytes - FRAME_ROOM_BYTES
    for entry in entries:
        room -= size_bytes(entry.content if isinstance(entry, Token) else entry)
        if room < 0 and (merged or run):
            break
        if isinstance(entry, Token):
            if run and (run[0].turn_id != entry.turn_id or run[0].epoch != entry.epoch):
                merged.append(joined(run))
                run = []
            run.append(entry)
        else:
            if run:
                merged.append(joined(run))
                run = []
            merged.append(entry)
    if run:
        merged.append(joined(run))
    return merged


_encode = msgspec.json.Encoder().encode


def size_bytes(value: Entry | str) -> int:
    """As JSON."""
    return len(_encode(value))


def joined(run: Sequence[Token]) -> Token:
    """One frame for consecutive tokens of one turn and epoch."""
    last = run[-1]
    if len(run) == 1:
        return last
    first = run[0]
    return Token(
        conversation_id=last.conversation_id,
        turn_id=last.turn_id,
        seq=last.seq,
        epoch=last.epoch,
        metadata=last.metadata,
        content="".join([token.content for token in run]),
        first_seq=first.first_seq or first.seq,
    )
