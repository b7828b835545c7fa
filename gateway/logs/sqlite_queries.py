"""What a `SqliteLog` asks of its file. Each is one statement, so it sees one state, from whichever connection."""

from __future__ import annotations

import sqlite3
from operator import itemgetter
from typing import NamedTuple

import msgspec

from gateway.logs import segment
from gateway.logs.log import Key, OpenTurn, Position
from gateway.logs.packed import Staged, unpack
from protocol.frames import Entry

_decode_turns = msgspec.msgpack.Decoder(tuple[OpenTurn, ...]).decode

_SEGMENTS_AFTER = """
SELECT s.first_seq, s.epoch, s.entries FROM conversations c JOIN segments s ON s.conversation = c.id
WHERE c.owner = ? AND c.conversation_id = ? AND s.last_seq > ? ORDER BY s.last_seq
"""
_EPOCH_AT = """
SELECT s.epoch FROM conversations c JOIN segments s ON s.conversation = c.id
WHERE c.owner = ? AND c.conversation_id = ? AND s.last_seq >= ? AND s.first_seq <= ? ORDER BY s.last_seq LIMIT 1
"""
_CONVERSATION = "SELECT id, epoch, floor, open_turns FROM conversations WHERE owner = ? AND conversation_id = ?"
_LAST = "SELECT last_seq, epoch FROM segments WHERE conversation = ? ORDER BY last_seq DESC LIMIT 1"
_OPEN = "SELECT owner, conversation_id FROM conversations WHERE open_turns IS NOT NULL"
_OVER = """
SELECT owner, conversation_id FROM conversations
WHERE open_turns IS NULL AND erased = 0 AND updated_ms < ? LIMIT ?
"""


class Conversation(NamedTuple):
    """A row of `conversations`; see the schema in `sqlite_file`."""

    row: int
    epoch: int
    floor: int
    open_turns: tuple[OpenTurn, ...]


def find_conversation(db: sqlite3.Connection, key: Key) -> Conversation | None:
    found = db.execute(_CONVERSATION, key).fetchone()
    if found is None:
        return None
    row, epoch, floor, turns = found
    return Conversation(row, epoch, floor, () if turns is None else _decode_turns(turns))


def _key_of(db: sqlite3.Connection, row: int) -> Key:
    return Key(*db.execute("SELECT owner, conversation_id FROM conversations WHERE id = ?", (row,)).fetchone())


def last_in_segments(db: sqlite3.Connection, row: int) -> Position | None:
    found = db.execute(_LAST, (row,)).fetchone()
    return None if found is None else Position(*found)


def read_recent(db: sqlite3.Connection) -> tuple[dict[int, int], list[tuple[int, Staged]]]:
    """The bytes of each row of `recent`, and what isn't in segments, too, with its row; of each conversation in order.
    Only for the one connection that writes. Raises `SegmentError` and `MsgspecError`."""
    sizes: dict[int, int] = {}
    keys: dict[int, Key] = {}
    found: dict[int, list[tuple[int, int, list[Entry]]]] = {}
    for slot, packed in db.execute("SELECT id, appends FROM recent"):
        sizes[slot] = len(packed)
        base, appends = unpack(packed)
        for stored in appends:
            row, first_seq = stored.conversation, stored.first_seq
            key = keys.get(row) or keys.setdefault(row, _key_of(db, row))
            found.setdefault(row, []).append((first_seq, slot, stored.entries(key.conversation_id, base)))
    left: list[tuple[int, Staged]] = []
    for row, some in found.items():
        last = last_in_segments(db, row)
        moved = 0 if last is None else last.seq  # up to the end of an append
        some.sort(key=itemgetter(0))
        left += ((slot, (row, keys[row], entries)) for first_seq, slot, entries in some if first_seq > moved)
    return sizes, left


def read_segments(db: sqlite3.Connection, key: Key, after: int, limit_bytes: int) -> tuple[list[Entry], bool]:
    """Entries after `after` that are in segments, as far as `limit_bytes` goes, and whether those are all."""
    entries: list[Entry] = []
    for first_seq, epoch, stored in db.execute(_SEGMENTS_AFTER, (*key, after)):
        for entry in segment.decode(stored, key.conversation_id, first_seq, epoch, after):
            limit_bytes -= segment.content_bytes(entry)
            if limit_bytes < 0 and entries:
                return entries, False
            entries.append(entry)
    return entries, True


def epoch_in_segments(db: sqlite3.Connection, key: Key, seq: int) -> int | None:
    found = db.execute(_EPOCH_AT, (*key, seq, seq)).fetchone()
    return None if found is None else int(found[0])


def with_open_turns(db: sqlite3.Connection) -> list[Key]:
    return [Key(*found) for found in db.execute(_OPEN)]


def over_since(db: sqlite3.Connection, before_ms: int, most: int) -> list[Key]:
    """At most `most` conversations without open turns that were last written before `before_ms`."""
    return [Key(*found) for found in db.execute(_OVER, (before_ms, most))]
