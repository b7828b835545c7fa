"""What only the shared log has: owners, what other nodes may do, tombstones, and how it lies in Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from msgspec import structs

from gateway.logs import redis_appends, redis_published
from gateway.logs import redis_log as redis_logs
from gateway.logs.log import Append, Claim, Head, Key, OpenTurn, Position
from gateway.logs.redis_keys import PARTITIONS, key_of, member, partition, slot_of
from gateway.logs.redis_link import Call
from gateway.logs.redis_log import TOMBSTONE_S, RedisLog
from protocol.frames import Done, Entry, Message, Metadata, Token
from tests.support.valkey import cluster_url

C = Key("tenant/user", "c")
START = Position(0, 0)
NOW = 1_764_000_000_000
TURN = (OpenTurn("t1", 1),)
_numbers = itertools.count()

NewNode = Callable[[], Awaitable[RedisLog]]
"""Another node on the same log, open."""


@pytest.fixture(params=["one", "cluster"])
async def new_node(request: pytest.FixtureRequest) -> AsyncIterator[NewNode]:
    if request.param == "one":
        url = request.getfixturevalue("redis_server").url
    else:
        url = cluster_url(request.getfixturevalue("redis_cluster"))
    url = f"{url}?prefix=redis-log-{next(_numbers)}"
    nodes: list[RedisLog] = []

    async def make() -> RedisLog:
        nodes.append(RedisLog(url, retention_s=60))
        await nodes[-1].open()
        return nodes[-1]

    yield make
    for node in nodes:
        await node.close()


@pytest.fixture
async def a(new_node: NewNode) -> RedisLog:
    return await new_node()


@pytest.fixture
async def b(new_node: NewNode) -> RedisLog:
    return await new_node()


def message(seq: int, turn: str = "t1", epoch: int = 0) -> Entry:
    return Message(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        epoch=epoch,
        metadata=Metadata(NOW),
        content="question",
        message_id=f"m-{turn}",
    )


def token(seq: int, epoch: int = 0, text: str = "word") -> Entry:
    return Token(conversation_id="c", turn_id="t1", seq=seq, epoch=epoch, metadata=Metadata(NOW), content=text)


def done(seq: int, epoch: int = 0, turn: str = "t1") -> Entry:
    return Done(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        epoch=epoch,
        metadata=Metadata(NOW),
        finish_reason="stop",
        usage=None,
        text_length=0,
    )


async def write(log: RedisLog, after: Position, *entries: Entry, key: Key = C) -> bool:
    [verdict] = await log.commit([Append(key, after, entries)])
    return verdict


async def ask(log: RedisLog, *command: str | bytes | int, key: Key = C) -> Any:
    return await log.link.call(Call(slot_of(partition(member(key))), None, [], command))


def meta(log: RedisLog, key: Key = C) -> bytes:
    return log.link.names.meta(partition(member(key)), member(key))


async def everything(log: RedisLog) -> list[Entry]:
    return await log.read(C, 0, 1 << 20)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("owner", ["", "a", "tenant/user", "a:b:c", "{x}", "é\udc80", "a b\n"])
def test_a_conversations_name_is_its_owner_and_id(owner: str) -> None:
    key = Key(owner, "c.1-_")
    assert key_of(member(key)) == key
    assert 0 <= partition(member(key)) < PARTITIONS


def test_partitions_are_even_and_stay_what_they_are() -> None:
    counts = [0] * PARTITIONS
    for number in range(PARTITIONS * 100):
        counts[partition(member(Key("o", f"c{number}")))] += 1
    assert min(counts) > 50
    assert max(counts) < 150
    assert partition(member(C)) == 40, "another number would look for stored conversations elsewhere"


# ---------------------------------------------------------------- whose it is


async def test_one_of_two_nodes_owns_it(a: RedisLog, b: RedisLog) -> None:
    claims = await asyncio.gather(a.claim(C), b.claim(C))
    [owner] = {claim.owner for claim in claims} - {None}
    assert [claim.owner for claim in claims].count(None) == 1
    mine, other = (a, b) if owner == a.node_id else (b, a)
    assert await mine.claim(C) == Claim(Head())
    assert not await write(other, START, message(1))
    assert await write(mine, START, message(1))
    assert await other.claim(C) == Claim(Head(1, 0, open_turns=TURN), mine.node_id)
    assert not await write(other, Position(1, 0), token(2))
    assert await write(mine, Position(1, 0), token(2))
    assert await everything(other) == [message(1), token(2)]
    assert await write(other, START, message(1), token(2)), "what is there is there, whoever asks"


async def test_many_claims_at_once_give_one_owner(new_node: NewNode) -> None:
    nodes = [await new_node() for _ in range(5)]
    keys = [Key("o", f"c{number}") for number in range(40)]
    for key in keys:
        claims = await asyncio.gather(*(node.claim(key) for node in nodes for _ in range(2)))
        owners = {claim.owner for claim in claims} - {None}
        assert len(owners) == 1
        assert [claim.owner for claim in claims].count(None) == 2


async def test_a_released_conversation_is_whoever_claims_it(a: RedisLog, b: RedisLog) -> None:
    await a.claim(C)
    await write(a, START, message(1))
    await b.release(C)
    assert (await b.claim(C)).owner == a.node_id, "another node's release has no effect"
    assert await a.unfinished(a.node_id) == [C]
    assert await a.unfinished("") == []
    await a.release(C)
    assert await a.unfinished("") == await b.unfinished() == [C]
    assert await b.claim(C) == Claim(Head(1, 0, open_turns=TURN)), "and it goes on as if it had been its own"
    assert await b.unfinished("") == await b.unfinished(a.node_id) == []
    assert await b.unfinished(b.node_id) == [C]
    assert not await write(a, Position(1, 0), token(2))
    assert await write(b, Position(1, 0), token(2), done(3))
    assert await b.unfinished() == []


async def test_owners_are_those_with_open_turns(a: RedisLog, b: RedisLog, new_node: NewNode) -> None:
    keys = [Key("o", f"c{number}") for number in range(6)]
    for number, key in enumerate(keys):
        mine = (a, b)[number % 2]
        await mine.claim(key)
        entries = [structs.replace(entry, conversation_id=key.conversation_id) for entry in (message(1), token(2))]
        assert await write(mine, START, *entries, key=key)
    assert await a.owners() == {a.node_id, b.node_id}
    c = await new_node()
    assert (await c.claim(keys[0], instead_of=a.node_id)).owner is None
    await a.release(keys[2])
    await a.erase(keys[4])
    assert await a.owners() == {b.node_id, c.node_id}
    assert await a.unfinished(a.node_id) == []
    assert await a.unfinished("") == [keys[2]]
    await c.claim(keys[2])
    for key in (keys[0], keys[2]):
        epoch = 5 if key is keys[0] else 0
        assert await write(
            c, Position(2, 0), structs.replace(done(3, epoch), conversation_id=key.conversation_id), key=key
        )
    assert await a.owners() == {b.node_id}
    assert sorted(await a.unfinished(b.node_id)) == keys[1::2]
    await asyncio.gather(*(b.release(key) for key in keys[1::2]))
    assert await a.owners() == set()
    assert sorted(await a.unfinished("")) == keys[1::2]


async def test_a_lost_owners_conversation_begins_a_new_epoch(a: RedisLog, b: RedisLog) -> None:
    await a.claim(C)
    await write(a, START, message(1), token(2))
    assert (await b.claim(C, instead_of="somebody else")).owner == a.node_id
    taken = Claim(Head(2, 0, True, TURN), lost=True)
    assert await b.claim(C, instead_of=a.node_id) == taken
    assert await b.claim(C) == taken, "also if the answer got lost"
    assert await b.unfinished(b.node_id) == [C]
    # The zombie wakes. It can't write a single entry, whatever it tries.
    for after, entry in ((2, token(3)), (2, token(3, epoch=7)), (2, done(3)), (0, message(1, epoch=7))):
        assert not await write(a, Position(after, 0), entry)
    await a.release(C)
    assert await a.claim(C) == Claim(Head(2, 0, True, TURN), b.node_id)
    assert not await write(b, Position(2, 0), token(3)), "the old epoch is over"
    assert await write(b, Position(2, 0), token(3, epoch=7))
    assert await b.claim(C) == Claim(Head(3, 7, open_turns=TURN))
    assert await everything(a) == [message(1), token(2), token(3, epoch=7)]


async def test_of_two_that_take_a_lost_one_over_one_gets_it(a: RedisLog, new_node: NewNode) -> None:
    await a.claim(C)
    await write(a, START, message(1))
    others = [await new_node() for _ in range(4)]
    claims = await asyncio.gather(*(node.claim(C, instead_of=a.node_id) for node in others))
    assert sorted((claim.owner is None, claim.lost) for claim in claims) == [(False, False)] * 3 + [(True, True)]


async def test_what_was_taken_over_and_released_is_still_stale_but_not_lost(a: RedisLog, b: RedisLog) -> None:
    await a.claim(C)
    await write(a, START, message(1))
    await b.claim(C, instead_of=a.node_id)
    await b.release(C)
    assert await a.claim(C) == Claim(Head(1, 0, True, TURN))
    assert not await write(a, Position(1, 0), token(2))
    assert await write(a, Position(1, 0), token(2, epoch=1))


async def test_ones_own_conversation_whose_tail_was_lost_can_be_given_a_new_epoch(a: RedisLog) -> None:
    await a.claim(C)
    assert await a.claim(C, instead_of=a.node_id) == Claim(Head(stale=True), lost=True)
    assert not await write(a, START, message(1))
    assert await write(a, START, message(1, epoch=9))
    assert await a.claim(C, instead_of=a.node_id) == Claim(Head(1, 9, True, TURN), lost=True)


async def test_a_claim_of_what_never_comes_to_be_leaves_nothing(a: RedisLog, b: RedisLog) -> None:
    await a.claim(C)
    assert await a.head(C) == Head()
    assert 0 < await ask(a, "PTTL", meta(a)) <= 3_600_000
    await a.release(C)
    assert await ask(a, "EXISTS", meta(a)) == 0
    await a.claim(C)
    await write(a, START, message(1))
    assert await ask(a, "PTTL", meta(a)) == -1
    await a.release(C)
    assert await b.claim(C) == Claim(Head(1, 0, open_turns=TURN))


# ---------------------------------------------------------------- erasing


async def test_a_tombstone_keeps_the_last_epoch_for_a_time(a: RedisLog, b: RedisLog) -> None:
    await a.claim(C)
    await write(a, START, message(1, epoch=5))
    assert not await b.erase(C), "it is another node's"
    assert await a.head(C) == Head(1, 5, open_turns=TURN)
    assert await a.erase(C)
    assert await a.erase(C)
    assert await a.head(C) == Head(0, 5, True)
    assert await a.unfinished() == []
    left_ms = await ask(a, "PTTL", meta(a))
    assert TOMBSTONE_S * 1000 - 60_000 < left_ms <= TOMBSTONE_S * 1000
    assert not await write(a, Position(1, 5), token(2, epoch=5))
    assert not await write(a, START, message(1, epoch=5))
    assert await b.claim(C) == Claim(Head(0, 5, True)), "it is nobody's"
    await b.release(C)
    assert await ask(a, "PTTL", meta(a)) > 0
    assert await b.claim(C) == Claim(Head(0, 5, True))
    assert await write(b, START, message(1, epoch=6))
    assert await ask(a, "PTTL", meta(a)) == -1
    assert await everything(a) == [message(1, epoch=6)]


async def test_a_longer_retention_keeps_tombstones_longer(new_node: NewNode, a: RedisLog) -> None:
    log = RedisLog("redis://h", retention_s=2 * TOMBSTONE_S)
    assert log._tombstone_ms == 2 * TOMBSTONE_S * 1000


async def test_expiry_on_two_nodes_erases_each_once(a: RedisLog, b: RedisLog) -> None:
    keys = [Key("o", f"c{number}") for number in range(60)]
    for key in keys:
        entries = [structs.replace(entry, conversation_id=key.conversation_id) for entry in (message(1), done(2))]
        assert await write(a, START, *entries, key=key)
    erased = await asyncio.gather(a.expire(NOW + 1), b.expire(NOW + 1))
    assert sorted(erased[0] + erased[1]) == sorted(keys)


async def test_what_a_living_node_owns_is_its_to_expire(
    a: RedisLog, b: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_logs, "EXPIRE_AT_ONCE", 2)
    monkeypatch.setattr(redis_appends, "partition", lambda _: 0)
    keys = [Key("o", f"c{number}") for number in range(9)]
    for number, key in enumerate(keys):
        if number % 3:
            assert (await b.claim(key)).owner is None
        entries = [structs.replace(entry, conversation_id=key.conversation_id) for entry in (message(1), done(2))]
        assert await write(b, START, *entries, key=key)
    assert sorted(await a.expire(NOW + 1, leave_to=["x", b.node_id])) == keys[::3]
    assert len(await b.expire(NOW + 1, leave_to=["x"])) == 6


async def test_a_conversation_that_goes_on_while_it_expires_stays(a: RedisLog) -> None:
    await write(a, START, message(1), done(2))
    [place] = [a._opened().place(C)]
    aged = await ask(a, "ZRANGE", a.link.names.aged(place.partition), 0, -1, "WITHSCORES")
    assert aged == [place.member, str(NOW).encode()]
    await write(a, Position(2, 0), message(3, "t2"))
    assert await a._erase([C], NOW + 1) == [0]
    assert await ask(a, "ZCARD", a.link.names.aged(place.partition)) == 0
    assert len(await everything(a)) == 3


# ---------------------------------------------------------------- how it lies there


async def test_what_is_stored_of_an_append_is_what_is_published(a: RedisLog) -> None:
    place = a._opened().place(C)
    connection = await a.link.server(place.slot).connect()
    try:
        await connection.send_command("SSUBSCRIBE", place.log)
        await connection.read_response()
        await a.claim(C)
        appends = [
            Append(C, START, [message(1), token(2)]),
            Append(C, Position(2, 0), [token(3), token(4)]),
            Append(C, Position(4, 0), [done(5, epoch=7)]),
        ]
        for append in appends:
            assert await a.commit([append]) == [True]
        assert not await write(a, Position(4, 0), token(5))
        await a.erase(C)
        messages = [(await connection.read_response())[2] for _ in range(4)]
    finally:
        await connection.disconnect()
    assert messages.pop() == redis_published.ERASED
    assert [redis_published.decode(payload, "c") for payload in messages] == [
        (append.after, append.entries) for append in appends
    ]


async def test_an_append_is_one_entry_of_the_stream(a: RedisLog) -> None:
    await a.claim(C)
    await write(a, START, message(1), token(2))
    await write(a, Position(2, 0), token(3))
    await write(a, Position(3, 0), token(4, epoch=7), token(5, epoch=7))
    place = a._opened().place(C)
    stored = await ask(a, "XRANGE", place.log, "-", "+")
    assert [entry[0] for entry in stored] == [b"0-2", b"0-3", b"7-5"]
    fields = await ask(a, "HGETALL", place.meta)
    assert dict(zip(fields[::2], fields[1::2], strict=True)) == {
        b"f": f"7-5 {a.node_id}+".encode(),
        b"e": b"0:1 7:4",
        b"n": b"1",
        b"t:t1": b"1",
    }


async def test_a_long_read_is_bounded_and_goes_on(a: RedisLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.logs.redis_log.READ_SEGMENTS", 10)
    await a.claim(C)
    await write(a, START, message(1))
    for seq in range(2, 60):
        await write(a, Position(seq - 1, 0), token(seq))
    first = await everything(a)
    assert 10 <= len(first) < 40
    entries = first
    while more := await a.read(C, len(entries), 1 << 20):
        entries += more
    assert entries == [message(1), *map(token, range(2, 60))]


async def test_a_commit_of_many_takes_one_round_trip(a: RedisLog) -> None:
    keys = [Key("o", f"c{number}") for number in range(600)]

    def batch(after: int, *entries: Entry) -> list[Append]:
        return [
            Append(
                key,
                Position(after, 0),
                [structs.replace(entry, conversation_id=key.conversation_id) for entry in entries],
            )
            for key in keys
        ]

    assert all(await a.commit(batch(0, message(1))))
    await asyncio.gather(*map(a.claim, keys))
    assert all(await a.commit(batch(1, token(2))))  # the scripts are known now
    before = [server.writes.round_trips for server in a.link.servers]
    assert all(await a.commit(batch(2, token(3))))
    assert [server.writes.round_trips for server in a.link.servers] == [count + 1 for count in before]
    stored = await asyncio.gather(*(a.head(key) for key in keys))
    assert set(stored) == {Head(3, 0, open_turns=TURN)}


async def test_a_large_commit_is_cut_into_calls(a: RedisLog) -> None:
    await a.claim(C)
    text = "x" * 300_000
    big = [message(1), *(token(seq, text=text) for seq in range(2, 6))]
    appends = [Append(C, Position(seq - 1, 0), [entry]) for seq, entry in enumerate(big, 1)]
    others = [Append(Key(f"o{number}", "c"), START, [message(1), token(2, text=text)]) for number in range(5)]
    assert all(await a.commit([*appends, *others]))
    assert await a.read(C, 0, 1 << 21) == big


async def test_a_conversation_with_foreign_data_costs_no_other_one(a: RedisLog) -> None:
    await ask(a, "SET", meta(a), "foreign")
    with pytest.raises(RuntimeError, match="WRONGTYPE"):
        await write(a, START, message(1))
    other = Key("somebody", "c")
    assert await write(a, START, message(1), key=other)
