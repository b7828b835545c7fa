"""The stored form of one commit of a `SqliteLog`: a row of its table `recent`.

    commit    = MessagePack: [base, append, …]                          base: Unix milliseconds
    append    = [conversation, first_seq, epoch, segment]               see segment.py
              | [conversation, seq, epoch, "", turn_id, timestamp - base, text]    a single token

`conversation` is the row id. Nearly all appends are single tokens; a hundred of them fit into one page of the file.
Rows of schema 1 have no `base` and nothing but segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from gateway.logs import segment
from gateway.logs.log import Key
from protocol.frames import Entry, Metadata, Token

Staged: TypeAlias = tuple[int, Key, Sequence[Entry]]
"""An append on its way: the row id of its conversation, and its entries, at least one and all of one epoch."""


class Stored(Struct, array_like=True, frozen=True):
    """One append."""

    conversation: int
    first_seq: int
    epoch: int
    segment: bytes
    turn_id: str = ""
    timestamp: int = 0
    text: str = ""

    def entries(self, conversation_id: str, base: int) -> list[Entry]:
        """Raises `SegmentError`."""
        if self.segment:
            return segment.decode(self.segment, conversation_id, self.first_seq, self.epoch)
        return [
            Token(
                conversation_id=conversation_id,
                turn_id=self.turn_id,
                seq=self.first_seq,
                epoch=self.epoch,
                metadata=Metadata(base + self.timestamp),
                content=self.text,
            )
        ]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int | Stored]).decode


def pack(staged: Sequence[Staged]) -> bytes:
    base = 0
    appends: list[Any] = [base]
    for conversation, _, entries in staged:
        entry = entries[0]
        if len(entries) == 1 and type(entry) is Token and entry.metadata.client is None and entry.first_seq is None:
            timestamp = entry.metadata.timestamp
            if not base:
                base = appends[0] = timestamp
            appends.append((conversation, entry.seq, entry.epoch, b"", entry.turn_id, timestamp - base, entry.content))
        else:
            appends.append((conversation, entry.seq, entry.epoch, segment.encode(entries)))
    try:
        return _encode(appends)
    except (OverflowError, UnicodeEncodeError):  # half a surrogate pair in a token's text: legal in JSON
        return _encode([(row, some[0].seq, some[0].epoch, segment.encode(some)) for row, _, some in staged])


def unpack(packed: bytes) -> tuple[int, list[Stored]]:
    """The base and the appends of one commit. Raises `MsgspecError`."""
    base = 0
    appends: list[Stored] = []
    for item in _decode(packed):
        if isinstance(item, int):
            base = item
        else:
            appends.append(item)
    return base, appends
