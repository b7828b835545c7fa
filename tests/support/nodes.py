"""Nodes that see each other over a real Redis, and what follows conversations on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gateway.logs import redis_published
from gateway.logs.log import Append, Key, Position
from gateway.logs.nodes import Handler
from gateway.logs.redis_keys import member, partition, slot_of
from gateway.logs.redis_lane import Script
from gateway.logs.redis_link import Call, RedisLink
from gateway.logs.redis_nodes import RedisNodes
from protocol.frames import Entry, Metadata, Token

# As an append does: one step that counts and publishes.
_PUBLISH = Script("#!lua\nredis.call('SPUBLISH', KEYS[2], ARGV[1])\nreturn redis.call('INCR', KEYS[1])")


class Follows:
    """A follower that remembers what it was told."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.after: list[Position] = []
        self.erasures = 0
        self.misses = 0

    def received(self, after: Position, entries: list[Entry]) -> None:
        self.after.append(after)
        self.entries += entries

    def erased(self) -> None:
        self.erasures += 1

    def missed(self) -> None:
        self.misses += 1

    @property
    def seqs(self) -> list[int]:
        return [entry.seq for entry in self.entries]


def key(number: int | str = "c") -> Key:
    return Key("ada", str(number))


async def publish(link: RedisLink, key: Key, *payloads: bytes) -> list[int]:
    """Publishes on a conversation's channel; tells the number of each since the first."""
    name = member(key)
    number = partition(name)
    keys = [link.names.tagged(str(number), f"count:{key.conversation_id}"), link.names.log(number, name)]
    return await link.call_all([Call(slot_of(number), _PUBLISH, keys, [payload]) for payload in payloads])


def append(key: Key, seq: int, text: str = "x", count: int = 1) -> bytes:
    """What an append of `count` tokens from `seq` on publishes."""
    tokens: list[Entry] = [
        Token(
            conversation_id=key.conversation_id,
            turn_id="t",
            seq=seq + offset,
            epoch=0,
            metadata=Metadata(1),
            content=text,
        )
        for offset in range(count)
    ]
    return redis_published.encode(Append(key, Position(seq - 1, 0), tokens))


async def nobody_asks(payload: bytes) -> bytes:
    raise AssertionError("nobody asks")


@asynccontextmanager
async def node(url: str, node_id: str, handler: Handler = nobody_asks) -> AsyncIterator[RedisNodes]:
    link = RedisLink(url)
    await link.open()
    try:
        nodes = RedisNodes(link, node_id)
        await nodes.open(handler)
        try:
            yield nodes
        finally:
            await nodes.close()
    finally:
        await link.close()


async def die(nodes: RedisNodes) -> None:
    """As `kill -9` does: no more beats, and the kernel closes the connections."""
    assert nodes._beats is not None
    nodes._beats.cancel()
    await asyncio.wait([nodes._beats])
    nodes._beats = None
    await nodes._hub.close()


async def eventually(what: Callable[[], Any], within_s: float = 5.0) -> float:
    """Waits until `what` is true, and tells for how long."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.01)
    return loop.time() - start
