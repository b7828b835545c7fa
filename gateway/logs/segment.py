"""The stored form of consecutive entries of one conversation and one epoch: a *segment*.

    segment   = version byte, then MessagePack: [row, …]
    row       = [turn_id, [timestamp, difference, …], [text, …]]   a run of tokens of one turn
              | {"type": …, …}                                     any other entry: its frame
              | binary                                             an entry that MessagePack can't hold, as JSON

`conversation_id`, `seq` and `epoch` are those of the segment, so a token costs its text and two or three bytes more.
Tokens share a row and yet stay entries of their own: decoding gives back exactly what was encoded. A frame's map
names its fields, so a field that is added with a default can be read from old segments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, TypeAlias

import msgspec
from msgspec import structs

from protocol.frames import Entry, Metadata, Token

VERSION = 1
LEAST_BYTES = 8
"""What the shortest token counts in `content_bytes`, so that a limit in bytes is a limit in entries, too."""

_TokenRun: TypeAlias = tuple[str, list[int], list[str]]
_HEAD = bytes((VERSION,))
_Row: TypeAlias = _TokenRun | bytes | Entry
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[_Row]] = msgspec.msgpack.Decoder(list[_Row])


class SegmentError(Exception):
    """Stored bytes that aren't a segment, or one of a later version."""


def encode(entries: Sequence[Entry]) -> bytes:
    """The segment of `entries`, which are consecutive and of one epoch."""
    try:
        packed = _encoder.encode(_rows(entries))
    except (OverflowError, UnicodeEncodeError):
        # A whole number over 64 bits or half a surrogate pair, somewhere in arguments or results: legal in JSON.
        packed = _encoder.encode([_as_any(entry) for entry in entries])
    return _HEAD + packed


def _rows(entries: Sequence[Entry]) -> list[Any]:
    rows: list[Any] = []
    turn_id, timestamp = None, 0
    timestamps: list[int] = []
    texts: list[str] = []
    for entry in entries:
        if type(entry) is Token and (metadata := entry.metadata).client is None and entry.first_seq is None:
            if entry.turn_id != turn_id:
                turn_id, timestamp = entry.turn_id, metadata.timestamp
                timestamps, texts = [timestamp], [entry.content]
                rows.append((turn_id, timestamps, texts))
                continue
            timestamps.append(metadata.timestamp - timestamp)
            timestamp = metadata.timestamp
            texts.append(entry.content)
        else:
            turn_id = None
            rows.append(structs.replace(entry, conversation_id="", seq=0, epoch=0))
    return rows


def _as_any(entry: Entry) -> Entry | bytes:
    try:
        _encoder.encode(entry)
    except (OverflowError, UnicodeEncodeError):
        return json.dumps(msgspec.to_builtins(entry)).encode()
    return structs.replace(entry, conversation_id="", seq=0, epoch=0)


def decode(segment: bytes, conversation_id: str, first_seq: int, epoch: int, after: int = 0) -> list[Entry]:
    """The entries of `segment` whose `seq` is over `after`; those before it cost next to nothing.

    Raises `SegmentError`.
    """
    if segment[:1] != bytes((VERSION,)):
        raise SegmentError(f"a segment of version {segment[:1].hex() or 'none'}; version {VERSION} is known")
    entries: list[Entry] = []
    seq = first_seq
    try:
        for row in _decoder.decode(memoryview(segment)[1:]):
            if isinstance(row, tuple):
                entries += _tokens(row, conversation_id, seq, epoch, max(0, after + 1 - seq))
                seq += len(row[2])
                continue
            if seq > after:
                frame = msgspec.convert(json.loads(row), Entry) if isinstance(row, bytes) else row
                entries.append(structs.replace(frame, conversation_id=conversation_id, seq=seq, epoch=epoch))
            seq += 1
    except (msgspec.MsgspecError, ValueError) as problem:
        raise SegmentError(str(problem)) from problem
    return entries


def _tokens(run: _TokenRun, conversation_id: str, seq: int, epoch: int, skip: int) -> Iterator[Token]:
    turn_id, timestamps, texts = run
    stamped = zip(accumulate(timestamps), texts, strict=True)
    for number, (timestamp, text) in enumerate(islice(stamped, skip, None), seq + skip):
        yield Token(
            conversation_id=conversation_id,
            turn_id=turn_id,
            seq=number,
            epoch=epoch,
            metadata=Metadata(timestamp),
            content=text,
        )


def content_bytes(entry: Entry) -> int:
    """What an entry counts towards the limit of a read: the UTF-8 text of a token, the stored size of another."""
    if type(entry) is Token:
        text = entry.content
        return max(LEAST_BYTES, len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")))
    return len(encode((entry,)))


def cut(entries: Iterable[Entry], limit_bytes: int) -> list[Entry]:
    """The first of `entries` that fit into `limit_bytes`, and at least one if there are any."""
    fitting: list[Entry] = []
    for entry in entries:
        limit_bytes -= content_bytes(entry)
        if limit_bytes < 0 and fitting:
            break
        fitting.append(entry)
    return fitting


def split(entries: Sequence[Entry], limit_bytes: int) -> Iterator[Sequence[Entry]]:
    """Cuts consecutive entries into the pieces that become segments: of one epoch and about `limit_bytes` each.

    A token counts its characters here, not its bytes: it runs for every token, and what matters is the order of size.
    """
    start, room_bytes, epoch = 0, limit_bytes, entries[0].epoch if entries else 0
    for index, entry in enumerate(entries):
        size_bytes = LEAST_BYTES + len(entry.content) if type(entry) is Token else content_bytes(entry)
        room_bytes -= size_bytes
        if (room_bytes < 0 and index > start) or entry.epoch != epoch:
            yield entries[start:index]
            start, room_bytes, epoch = index, limit_bytes - size_bytes, entry.epoch
    if start < len(entries):
        yield entries[start:]
