"""What Redis stores of one append, and publishes to the nodes that follow the conversation: the same bytes.

MessagePack: [after_seq, after_epoch, epoch, segment]      `segment` as in gateway/logs/segment.py
             nil                                           on a channel only: the conversation was erased
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from gateway.logs import segment
from gateway.logs.log import Append, Position
from gateway.logs.segment import SegmentError
from protocol.frames import Entry

ERASED = b"\xc0"

_Packed: TypeAlias = tuple[int, int, int, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


def pack(append: Append) -> bytes:
    seq, epoch = append.after
    return _encode((seq, epoch if seq else 0, append.entries[0].epoch, segment.encode(append.entries)))


def unpack(packed: bytes, conversation_id: str, after: int = 0) -> tuple[Position, list[Entry]]:
    """The position that the append follows, and its entries whose `seq` is over `after`. Raises `SegmentError`."""
    try:
        seq, after_epoch, epoch, stored = _decode(packed)
    except msgspec.MsgspecError as problem:
        raise SegmentError(str(problem)) from problem
    return Position(seq, after_epoch), segment.decode(stored, conversation_id, seq + 1, epoch, after)
