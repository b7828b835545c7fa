"""What is published on a conversation's channel, so that other nodes needn't read the log to follow it.

    an append    after_seq, after_epoch, epoch (8 bytes each, the most significant first), then its segment
    an erasure   nothing: an empty message

So the script that appends needs the segment once: what it publishes is the header and the segment, joined. The header
holds what the segment leaves out, and `after`, by which a follower sees that it missed something.
"""

from __future__ import annotations

from struct import Struct

from gateway.logs import segment
from gateway.logs.log import Position
from gateway.logs.segment import SegmentError
from protocol.frames import Entry

ERASED = b""

_HEADER = Struct(">QQQ")


def header(after: Position, epoch: int) -> bytes:
    """Stands before the segment of an append whose entries are of `epoch` and follow `after`."""
    return _HEADER.pack(after.seq, after.epoch, epoch)


def decode(payload: bytes, conversation_id: str) -> tuple[Position, list[Entry]]:
    """What a published append says. Raises `SegmentError`, also for `ERASED`."""
    if len(payload) < _HEADER.size:
        raise SegmentError(f"a published append of {len(payload)} bytes")
    after_seq, after_epoch, epoch = _HEADER.unpack_from(payload)
    entries = segment.decode(payload[_HEADER.size :], conversation_id, after_seq + 1, epoch)
    return Position(after_seq, after_epoch), entries
