from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.edge.intake import SLICE_BYTES, Hold, Intake


class Transport:
    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Reader:
    """Consumes into `pieces`; does what `then` says after a piece."""

    def __init__(self) -> None:
        self.transport: Any = Transport()
        self.pieces: list[bytes] = []
        self.then: Any = lambda: None
        self.intake = Intake(self.transport, self.consume)

    def consume(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.then()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_large_read_is_consumed_over_several_turns_with_the_transport_held() -> None:
    reader, data = Reader(), bytes(range(256)) * (5 * SLICE_BYTES // 512)
    reader.intake.feed(data)
    assert [len(piece) for piece in reader.pieces] == [SLICE_BYTES]
    assert not reader.transport.reading
    await turns(4)
    assert b"".join(reader.pieces) == data
    assert reader.transport.reading


@pytest.mark.parametrize("size", [10, 3 * SLICE_BYTES])
async def test_a_hold_stops_after_the_piece_and_a_release_goes_on(size: int) -> None:
    reader, data = Reader(), b"x" * size
    reader.then = lambda: reader.intake.hold(Hold.HANDLER)
    reader.intake.feed(data)
    await turns(4)
    assert len(reader.pieces) == 1
    assert not reader.transport.reading
    reader.intake.feed(b"late")  # a transport may have had it in hand
    reader.then = lambda: None
    reader.intake.release(Hold.HANDLER)
    assert len(reader.pieces) == 1, "not within the call"
    await turns(8)
    assert b"".join(reader.pieces) == data + b"late"
    assert reader.transport.reading


async def test_hold_and_release_within_a_piece() -> None:
    reader, data = Reader(), b"x" * 3 * SLICE_BYTES

    def there_and_back() -> None:
        reader.intake.hold(Hold.HANDLER)
        reader.intake.release(Hold.HANDLER)

    reader.then = there_and_back
    reader.intake.feed(data)
    await turns(8)
    assert b"".join(reader.pieces) == data
    assert reader.transport.reading


async def test_reading_needs_every_reason_gone() -> None:
    reader = Reader()
    reader.intake.hold(Hold.HANDLER)
    reader.intake.hold(Hold.OUTPUT)
    reader.intake.release(Hold.HANDLER)
    assert not reader.transport.reading
    reader.intake.release(Hold.HANDLER | Hold.OUTPUT)
    assert reader.transport.reading


async def test_nothing_is_consumed_after_drop() -> None:
    reader = Reader()
    reader.intake.feed(b"x" * 3 * SLICE_BYTES)
    reader.intake.drop()
    await turns(4)
    assert len(reader.pieces) == 1
