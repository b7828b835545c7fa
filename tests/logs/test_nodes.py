"""The seam to other nodes, where there are none."""

from __future__ import annotations

import pytest

from gateway.logs.log import Key, Position
from gateway.logs.nodes import Alone, Follower, NodeGone, Nodes
from protocol.frames import Entry


class Unused:
    def received(self, after: Position, entries: list[Entry]) -> None:
        raise AssertionError("nobody else writes")

    erased = missed = received


async def test_alone_knows_nobody_else() -> None:
    nodes: Nodes = Alone("me")
    follower: Follower = Unused()

    async def handler(payload: bytes) -> bytes:
        raise AssertionError("nobody asks")

    await nodes.open(handler)
    await nodes.follow(Key("ada", "c"), follower)
    assert nodes.others() == []
    assert nodes.is_lost("me") is False
    assert nodes.is_lost("another") is True
    with pytest.raises(NodeGone):
        await nodes.request("another", b"", 1.0)
    nodes.unfollow(Key("ada", "c"))
    await nodes.close()
