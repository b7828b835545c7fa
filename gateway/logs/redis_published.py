"""What Redis stores of one append, and publishes to the nodes that follow the conversation: the same bytes.

    an append    MessagePack: [after_seq, after_epoch, epoch, segment], the segment as in `segment`
    an erasure   nothing: an empty message, on the channel only

So the script that appends needs the segment once. The first three say what the segment leaves out, and `after`, by
which a follower sees that it missed something.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from gateway.logs import segment
from gateway.logs.log import Append, Position
from gateway.logs.segment import SegmentError
from protocol.frames import Entry

ERASED = b""

_Packed: TypeAlias = tuple[int, int, int, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


def encode(append: Append) -> bytes:
    seq, epoch = append.after
    return _encode((seq, epoch if seq else 0, append.entries[0].epoch, segment.encode(append.entries)))


def decode(payload: bytes, conversation_id: str, after: int = 0) -> tuple[Position, list[Entry]]:
    """The position that the append follows, and its entries whose `seq` is over `after`. Raises `SegmentError`, also
    for `ERASED`."""
    try:
        after_seq, after_epoch, epoch, stored = _decode(payload)
    except msgspec.MsgspecError as problem:
        raise SegmentError(str(problem)) from problem
    return Position(after_seq, after_epoch), segment.decode(stored, conversation_id, after_seq + 1, epoch, after)
