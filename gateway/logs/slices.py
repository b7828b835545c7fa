"""What a reader is sent at once: merged frames after one place in a log."""

from __future__ import annotations

from msgspec import Struct

from gateway.logs.log import Position
from protocol.frames import Entry
from protocol.merge import merge


class Slice(Struct, frozen=True):
    """Merged frames after one cursor. Shared by all readers at that place, so it is encoded once per framing."""

    frames: list[Entry]
    encoded: dict[str, list[bytes]]
    whole: bool
    """Nothing more could be added to it, however far the log goes on."""
    upto: Position
    """Of its last entry."""


def slice_of(entries: list[Entry]) -> Slice:
    """The first frames of `entries`, as far as one slice goes."""
    if len(entries) == 1:
        [last] = entries
        return Slice(entries, {}, False, Position(last.seq, last.epoch))
    frames = merge(entries)
    last = frames[-1]
    return Slice(frames, {}, last.seq < entries[-1].seq, Position(last.seq, last.epoch))


NOTHING_NEW = Slice([], {}, False, Position(0, 0))
