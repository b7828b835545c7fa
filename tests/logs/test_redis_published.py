"""What followers on other nodes are sent."""

from __future__ import annotations

import pytest

from gateway.logs import redis_published
from gateway.logs.log import Append, Key, Position
from gateway.logs.segment import SegmentError
from protocol.frames import Entry, Message, Metadata, Token

NOW = 1_764_000_000_000


def entries(after: int, epoch: int) -> list[Entry]:
    meta = Metadata(NOW)
    return [
        Message(
            conversation_id="c",
            turn_id="t",
            seq=after + 1,
            epoch=epoch,
            metadata=meta,
            content="Grüße",
            message_id="m",
        ),
        Token(conversation_id="c", turn_id="t", seq=after + 2, epoch=epoch, metadata=meta, content="Hello"),
        Token(conversation_id="c", turn_id="t", seq=after + 3, epoch=epoch, metadata=meta, content=" you"),
    ]


@pytest.mark.parametrize(
    ("after", "epoch"), [(Position(0, 0), 0), (Position(7, 0), 1_764_000_000), (Position(1 << 40, 9), 1 << 62)]
)
def test_what_is_published_comes_out_again(after: Position, epoch: int) -> None:
    appended = entries(after.seq, epoch)
    payload = redis_published.encode(Append(Key("o", "c"), after, appended))
    assert redis_published.decode(payload, "c") == (after, appended)
    assert redis_published.decode(payload, "c", after.seq + 2) == (after, appended[2:])


@pytest.mark.parametrize("payload", [redis_published.ERASED, b"short", b"\0" * 24, b"\x94\0\0\0\xc4\0"])
def test_anything_else_is_no_append(payload: bytes) -> None:
    with pytest.raises(SegmentError):
        redis_published.decode(payload, "c")
