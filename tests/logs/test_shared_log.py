"""The shared log and the nodes together: what one node commits is what another one's follower is told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from gateway.logs.log import Append, Key, Position
from gateway.logs.redis_log import RedisLog
from gateway.logs.redis_nodes import RedisNodes
from protocol.frames import Done, Entry, FunctionCall, FunctionResult, Message, Metadata, Token, Usage
from tests.support.nodes import Follows, eventually, nobody_asks
from tests.support.valkey import cluster_url

NOW = 1_764_000_000_000
ALL_BYTES = 1 << 30
START = Position(0, 0)
_numbers = itertools.count()


class Node:
    """A gateway, as far as its log goes."""

    def __init__(self, url: str) -> None:
        self.log = RedisLog(url)
        self.nodes = RedisNodes(self.log.link, self.log.node_id)

    async def write(self, key: Key, after: Position, *entries: Entry) -> bool:
        [written] = await self.log.commit([Append(key, after, entries)])
        return written


@pytest.fixture(params=["one", "cluster"])
async def new_node(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[], Awaitable[Node]]]:
    if request.param == "one":
        url = request.getfixturevalue("redis_server").url
    else:
        url = cluster_url(request.getfixturevalue("redis_cluster"))
    url = f"{url}?prefix=shared-{next(_numbers)}"
    async with AsyncExitStack() as stack:

        async def make() -> Node:
            node = Node(url)
            await node.log.open()
            stack.push_async_callback(node.log.close)
            await node.nodes.open(nobody_asks)
            stack.push_async_callback(node.nodes.close)
            return node

        yield make


@pytest.fixture
async def writer(new_node: Callable[[], Awaitable[Node]]) -> Node:
    return await new_node()


@pytest.fixture
async def reader(new_node: Callable[[], Awaitable[Node]]) -> Node:
    return await new_node()


def key(number: int | str = "c") -> Key:
    return Key("tenant/user", str(number))


def token(seq: int, text: str = "word ", epoch: int = 0, conversation_id: str = "c") -> Entry:
    return Token(
        conversation_id=conversation_id, turn_id="t1", seq=seq, epoch=epoch, metadata=Metadata(NOW + seq), content=text
    )


def whole_turn(epoch: int = 0) -> list[Entry]:
    """An entry of every kind that is stored in a way of its own."""
    meta = Metadata(NOW)
    return [
        Message(
            conversation_id="c",
            turn_id="t1",
            seq=1,
            epoch=epoch,
            metadata=Metadata(NOW, client={"a": [1, None]}),
            content="Grüße 👩‍👩‍👧",
            message_id="m",
        ),
        token(2, "", epoch),
        token(3, "x" * 100_000, epoch),
        FunctionCall(
            conversation_id="c",
            turn_id="t1",
            seq=4,
            epoch=epoch,
            metadata=meta,
            call_id="k",
            name="f",
            args={"n": 1 << 80, "half": "\ud800"},
            runs="client",
            round=1,
        ),
        FunctionResult(
            conversation_id="c",
            turn_id="t1",
            seq=5,
            epoch=epoch,
            metadata=meta,
            call_id="k",
            name="f",
            result=[1.5, {}],
        ),
        token(6, "end", epoch),
        Done(
            conversation_id="c",
            turn_id="t1",
            seq=7,
            epoch=epoch,
            metadata=meta,
            finish_reason="stop",
            usage=Usage(3, 4),
            text_length=100_003,
        ),
    ]


@pytest.mark.parametrize("epoch", [0, 1_764_000_000])
async def test_a_follower_is_told_exactly_what_was_committed(writer: Node, reader: Node, epoch: int) -> None:
    follows, entries = Follows(), whole_turn(epoch)
    await reader.nodes.follow(key(), follows)
    after = START
    for entry in entries[:3]:
        assert await writer.write(key(), after, entry)
        after = Position(entry.seq, epoch)
    assert await writer.write(key(), after, *entries[3:])
    await eventually(lambda: len(follows.entries) == len(entries))
    assert follows.entries == entries == await reader.log.read(key(), 0, ALL_BYTES)
    assert follows.after == [START, *(Position(seq, epoch) for seq in (1, 2, 3))]
    assert (follows.erasures, follows.misses) == (0, 0)


async def test_of_one_commit_each_follower_gets_its_own(writer: Node, reader: Node) -> None:
    keys = [key(number) for number in range(100)]
    followers = {one: Follows() for one in keys}
    await asyncio.gather(*(reader.nodes.follow(one, followers[one]) for one in keys))
    for round_ in range(3):
        seq = 2 * round_
        batch = [
            Append(
                one,
                Position(seq, 0),
                [token(seq + n, one.conversation_id, conversation_id=one.conversation_id) for n in (1, 2)],
            )
            for one in keys
        ]
        assert all(await writer.log.commit(batch))
    await eventually(lambda: all(follows.seqs == [1, 2, 3, 4, 5, 6] for follows in followers.values()))
    for one in keys:
        assert {(e.conversation_id, e.content) for e in followers[one].entries} == {(one.conversation_id,) * 2}


async def test_what_the_log_refuses_nobody_is_told(writer: Node, reader: Node) -> None:
    follows = Follows()
    await reader.nodes.follow(key(), follows)
    assert await writer.write(key(), START, token(1), token(2))
    assert not await writer.write(key(), START, token(1, "other"))
    assert not await writer.write(key(), Position(2, 9), token(3, epoch=9))
    await writer.log.claim(key())
    assert not await reader.write(key(), Position(2, 0), token(3, "of another node"))
    assert await writer.write(key(), Position(2, 0), token(3))
    await eventually(lambda: follows.seqs == [1, 2, 3])
    assert follows.entries == [token(1), token(2), token(3)]


async def test_an_erased_and_an_expired_conversation_are_told(writer: Node, reader: Node) -> None:
    erased, expired = Follows(), Follows()
    await reader.nodes.follow(key("erased"), erased)
    await reader.nodes.follow(key("expired"), expired)
    assert await writer.write(key("erased"), START, token(1, conversation_id="erased"))
    assert await writer.write(key("expired"), START, token(1, conversation_id="expired"))
    await writer.log.erase(key("erased"))
    assert await writer.log.expire(NOW + 60_000) == [key("expired")]
    await eventually(lambda: erased.erasures and expired.erasures)
    await writer.log.erase(key("erased"))
    assert await writer.write(key("erased"), START, token(1, epoch=1, conversation_id="erased"))
    await eventually(lambda: len(erased.entries) == 2)
    assert (erased.erasures, expired.erasures) == (1, 1)


class Reads(Follows):
    """Follows, reads the log once, and from then on has all of it, as a feed does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Entry] = []
        self.level = False

    def received(self, after: Position, entries: list[Entry]) -> None:
        super().received(after, entries)
        if self.level:
            self.add(after, entries)

    def add(self, after: Position, entries: list[Entry]) -> None:
        assert after.seq <= len(self.seen), "no gap"
        self.seen += [entry for entry in entries if entry.seq > len(self.seen)]


async def test_following_first_and_then_reading_misses_nothing_whenever_it_begins(writer: Node, reader: Node) -> None:
    """The rule that all readers live by: follow, then read the log, then add what was received."""
    readers: dict[Key, Reads] = {key(number): Reads() for number in range(30)}
    written = dict.fromkeys(readers, 0)
    stop = False

    async def write() -> None:
        while not stop:
            batch = [
                Append(one, Position(seq, 0), [token(seq + n, conversation_id=one.conversation_id) for n in (1, 2)])
                for one, seq in written.items()
            ]
            assert all(await writer.log.commit(batch))
            for one in written:
                written[one] += 2

    async def attach(one: Key, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        follows = readers[one]
        await reader.nodes.follow(one, follows)
        follows.seen = await reader.log.read(one, 0, ALL_BYTES)
        follows.level = True
        for after in follows.after:
            follows.add(after, [entry for entry in follows.entries if after.seq < entry.seq <= after.seq + 2])

    writing = asyncio.create_task(write())
    await asyncio.gather(*(attach(one, number / 200) for number, one in enumerate(readers)))
    stop = True
    await writing
    await eventually(lambda: all(len(readers[one].seen) == written[one] for one in readers))
    for one, follows in readers.items():
        assert [entry.seq for entry in follows.seen] == list(range(1, written[one] + 1))
