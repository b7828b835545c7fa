"""The log while its server dies, stands still, is full, or is replaced: nothing is written twice or in part."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trustme
from msgspec import structs

from gateway.logs.journal import Journal
from gateway.logs.log import Append, Claim, Head, Key, LogUnavailable, OpenTurn, Position
from gateway.logs.redis_keys import PARTITIONS
from gateway.logs.redis_log import RedisLog
from protocol.frames import Entry, Message, Metadata, Token
from tests.support.faults import ask
from tests.support.relay import relay
from tests.support.valkey import Valkey, cluster_url, free_port, until, valkey, valkey_cluster, valkey_with_replica

C = Key("tenant/user", "c")
START = Position(0, 0)
NOW = 1_764_000_000_000
TURN = (OpenTurn("t1", 1),)


def message(seq: int, epoch: int = 0, at: int = NOW) -> Entry:
    return Message(
        conversation_id="c",
        turn_id="t1",
        seq=seq,
        epoch=epoch,
        metadata=Metadata(at),
        content="question",
        message_id="m",
    )


def token(seq: int, epoch: int = 0, text: str = "word") -> Entry:
    return Token(conversation_id="c", turn_id="t1", seq=seq, epoch=epoch, metadata=Metadata(NOW), content=text)


async def write(log: RedisLog, after: Position, *entries: Entry, key: Key = C) -> bool:
    own = [structs.replace(entry, conversation_id=key.conversation_id) for entry in entries]
    [verdict] = await log.commit([Append(key, after, own)])
    return verdict


async def everything(log: RedisLog, key: Key = C) -> list[Entry]:
    return await log.read(key, 0, 1 << 22)


async def again(what: Callable[[], Awaitable[bool]], within_s: float = 15) -> bool:
    """As the journal does it: until the log can."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await what()
            except LogUnavailable:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisLog]:
    log = RedisLog(url)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


# ---------------------------------------------------------------- one server of a cluster


async def test_a_server_that_stands_still_holds_up_only_the_conversations_that_are_on_it() -> None:
    with valkey_cluster() as servers:
        for server in servers:
            server.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with opened(f"{cluster_url(servers)}?socket_timeout=1.5") as log:
            keys = [Key("o", f"c{number}") for number in range(50)]
            by_server = {log.domain(key): key for key in keys}
            assert len(by_server) == 3
            journal = Journal(log)
            journal.start()
            feeds = [(await journal.feeds.own(key)).feed for key in by_server.values()]
            still, *others = servers
            stuck = next(feed for feed in feeds if str(still.port) in log.domain(feed.key))
            still.pause()
            try:
                for feed in feeds:
                    ask(feed)
                async with asyncio.timeout(1):
                    await asyncio.gather(*(feed.when_committed(1) for feed in feeds if feed is not stuck))
                async with asyncio.timeout(5):
                    while stuck.log_available:
                        await asyncio.sleep(0.01)
                assert [feed.log_available for feed in feeds].count(True) == len(others)
                assert (journal.available, stuck.committed) == (False, 0)
            finally:
                still.resume()
            async with asyncio.timeout(10):
                await stuck.when_committed(1)
            await journal.close()
            assert journal.available


# ---------------------------------------------------------------- the server ends


async def test_a_server_that_is_killed_and_keeps_its_data_loses_nothing() -> None:
    with valkey("--appendonly", "yes", "--appendfsync", "always") as server:
        async with opened(server.url) as log:
            await log.claim(C)
            assert await write(log, START, message(1), token(2))
            server.kill()
            append = write(log, Position(2, 0), token(3))
            for call in (log.ping(), log.head(C), log.read(C, 0, 1), log.claim(C), append):
                with pytest.raises(LogUnavailable, match="can't be reached"):
                    await call
            server.start()
            assert await again(lambda: write(log, Position(2, 0), token(3)))
            assert await log.claim(C) == Claim(Head(3, 0, open_turns=TURN))
            assert await everything(log) == [message(1), token(2), token(3)]
            await log.ping()


async def test_a_server_that_comes_back_without_its_data_takes_nothing_that_follows_what_is_gone() -> None:
    with valkey() as server:
        async with opened(server.url) as log:
            await log.claim(C)
            assert await write(log, START, message(1), token(2))
            server.kill()
            server.start()
            assert not await again(lambda: write(log, Position(2, 0), token(3)))
            claim = await log.claim(C)
            assert (claim.owner, claim.lost, claim.head.seq, claim.head.stale) == (None, False, 0, True)
            epoch = claim.head.epoch
            assert time.time() - 60 < epoch <= time.time() + 1
            assert not await write(log, START, message(1, epoch=epoch))
            async with opened(server.url) as other:  # a node that starts after the loss
                for number in range(20):
                    head = (await other.claim(Key("o", f"c{number}"))).head
                    assert (head.seq, head.stale) == (0, True)
                    assert abs(head.epoch - epoch) <= 2
            assert await write(log, START, message(1, epoch=epoch + 1))
            await log.release(C)
            await log.erase(C)


async def test_a_loss_is_forgotten_once_no_cursor_can_be_so_old() -> None:
    with valkey() as server:
        async with opened(server.url) as log:
            partition = log._opened().place(C).partition
            server.ask("SET", log.link.names.since(partition), 1_000_000_000)
            assert await log.claim(C) == Claim(Head())


async def test_starting_again_is_no_loss() -> None:
    with valkey() as server:
        async with opened(server.url):
            pass
        async with opened(server.url) as log:
            assert await log.claim(C) == Claim(Head())
            assert set(await log._of_partitions(range(PARTITIONS), "GET", log.link.names.since)) == {b"0"}


async def test_a_commit_whose_answer_was_lost_is_repeated(redis_server: Valkey) -> None:
    async with (
        relay(redis_server.port) as slow,
        opened(f"redis://127.0.0.1:{slow.port}?prefix=lost-answer&socket_timeout=0.3") as log,
    ):
        await log.claim(C)
        assert await write(log, START, message(1))
        assert await write(log, Position(1, 0), token(2))
        for entries in ([token(3)], [token(4), token(5)], [message(6)]):
            after = Position(entries[0].seq - 1, 0)
            slow.answers.clear()
            with pytest.raises(LogUnavailable, match="doesn't answer"):
                await write(log, after, *entries)
            slow.answers.set()
            assert (await log.head(C)).seq == entries[-1].seq
            assert await write(log, after, *entries)
        assert await everything(log) == [message(1), *map(token, (2, 3, 4, 5)), message(6)]


async def test_a_server_that_stands_still_is_noticed_and_what_it_did_later_is_found() -> None:
    with valkey() as server:
        async with opened(f"{server.url}?socket_timeout=1") as log:
            await log.claim(C)
            assert await write(log, START, message(1))
            server.pause()
            try:
                calls = write(log, Position(1, 0), token(2)), log.ping(), log.read(C, 0, 1)
                problems = await asyncio.gather(*calls, return_exceptions=True)
            finally:
                server.resume()
            assert [str(problem) for problem in problems] == [f"Redis at 127.0.0.1:{server.port} doesn't answer"] * 3
            # The server takes the append that it had before it sees that its client has gone.
            assert await again(lambda: write(log, Position(1, 0), token(2)))
            assert await everything(log) == [message(1), token(2)]


# ---------------------------------------------------------------- the server refuses


async def test_a_full_server_is_not_ready_and_can_be_freed_by_erasing() -> None:
    with valkey() as server:
        async with opened(server.url) as log:
            await log.claim(C)
            big = [message(1), *(token(seq, text="x" * 100_000) for seq in range(2, 30))]
            assert await write(log, START, *big)
            server.ask("CONFIG", "SET", "maxmemory", server.info("memory")["used_memory"] - 1_000_000)
            for call in (log.ping(), write(log, Position(29, 0), token(30)), log.claim(Key("o", "new"))):
                with pytest.raises(LogUnavailable, match="is out of memory"):
                    await call
            assert await everything(log) == big
            assert (await log.head(C)).seq == 29
            await log.release(C)
            await log.erase(C)
            until(lambda: server.info("memory")["used_memory"] < server.info("memory")["maxmemory"])
            await log.ping()
            assert (await log.claim(C)).head == Head(0, 0, True)
            assert await write(log, START, message(1, epoch=1))


async def test_a_full_server_still_removes_what_has_expired() -> None:
    with valkey() as server:
        async with opened(server.url) as log:
            assert await write(log, START, token(1, text="x" * 2_000_000))
            server.ask("CONFIG", "SET", "maxmemory", server.info("memory")["used_memory"] - 1_000_000)
            with pytest.raises(LogUnavailable):
                await log.ping()
            assert await log.expire(NOW + 1) == [C]
            until(lambda: server.info("memory")["used_memory"] < server.info("memory")["maxmemory"])
            await log.ping()


@pytest.mark.parametrize(
    ("refusing", "says"),
    [
        (("CONFIG", "SET", "min-replicas-to-write", 1), "too few replicas"),
        (("REPLICAOF", "127.0.0.1", 1), "is a replica"),
    ],
)
async def test_a_server_that_takes_no_writes_is_not_ready(refusing: tuple[str | int, ...], says: str) -> None:
    with valkey() as server:
        async with opened(server.url) as log:
            await log.ping()
            server.ask(*refusing)
            for call in (log.ping(), write(log, START, message(1)), log.claim(C)):
                with pytest.raises(LogUnavailable, match=says):
                    await call


async def test_a_server_that_cannot_save_is_not_ready() -> None:
    with valkey("--save", "3600 1") as server:
        async with opened(server.url) as log:
            assert await write(log, START, message(1))
            # A folder by the name of the snapshot can't be replaced by it.
            (server.folder / "dump.rdb" / "x").mkdir(parents=True)
            server.ask("BGSAVE")
            until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err")
            for call in (log.ping(), write(log, Position(1, 0), token(2))):
                with pytest.raises(LogUnavailable, match="can't save"):
                    await call


async def test_scripts_that_the_server_forgot_are_sent_again(redis_server: Valkey) -> None:
    async with opened(f"{redis_server.url}?prefix=forgot") as log:
        await log.claim(C)
        assert await write(log, START, message(1))
        for seq in range(2, 6):
            redis_server.ask("SCRIPT", "FLUSH")
            assert await write(log, Position(seq - 1, 0), token(seq))
        redis_server.ask("SCRIPT", "FLUSH")
        assert await everything(log) == [message(1), *map(token, range(2, 6))]


# ---------------------------------------------------------------- another server


async def test_sentinel_names_the_replica_that_took_over() -> None:
    with valkey_with_replica() as (primary, replica):
        config = (
            f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1",
            "sentinel down-after-milliseconds mymaster 400",
            "sentinel failover-timeout mymaster 2000",
        )
        sentinel = Valkey(*config, sentinel=True)
        try:
            sentinel.start()
            until(lambda: sentinel.ask("SENTINEL", "REPLICAS", "mymaster"))
            url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/mymaster"
            async with opened(url) as log:
                await log.claim(C)
                assert await write(log, START, message(1), token(2))
                primary.ask("WAIT", 1, 5000)
                primary.kill()
                with pytest.raises(LogUnavailable):
                    await write(log, Position(2, 0), token(3))
                assert await again(lambda: write(log, Position(2, 0), token(3)))
                assert await everything(log) == [message(1), token(2), token(3)]
                assert await log.claim(C) == Claim(Head(3, 0, open_turns=TURN))
                assert replica.info("replication")["role"] == "master"
            with pytest.raises(LogUnavailable, match="knows no primary"):
                await RedisLog(f"redis+sentinel://127.0.0.1:{sentinel.port}/other").open()
        finally:
            sentinel.stop()


async def test_a_replica_that_lacked_the_end_refuses_what_follows_it() -> None:
    with valkey_with_replica() as (primary, replica):
        async with opened(f"redis://127.0.0.1:{primary.port},127.0.0.1:{replica.port}") as log:
            await log.claim(C)
            assert await write(log, START, message(1), token(2))
            primary.ask("WAIT", 1, 5000)
            replica.ask("REPLICAOF", "NO", "ONE")
            assert await write(log, Position(2, 0), token(3)), "only the old primary has it"
            primary.kill()
            assert not await again(lambda: write(log, Position(3, 0), token(4)))
            assert await log.claim(C) == Claim(Head(2, 0, open_turns=TURN)), "it is still ours"
            # Either what was lost is written again, just as it was,
            assert await write(log, Position(2, 0), token(3))
            # or it is given up, and a new epoch begins.
            assert (await log.claim(C, instead_of=log.node_id)).head == Head(3, 0, True, TURN)
            assert not await write(log, Position(3, 0), token(4))
            assert await write(log, Position(3, 0), token(4, epoch=1))
            assert await log.epoch_at(C, 4) == 1


# ---------------------------------------------------------------- a cluster that changes


async def test_a_conversation_whose_slot_moves_is_never_written_in_part() -> None:
    with valkey_cluster() as servers:
        async with opened(cluster_url(servers)) as log:
            place = log._opened().place(C)
            await log.claim(C)
            assert await write(log, START, message(1), token(2))
            by_name = {f"127.0.0.1:{server.port}": server for server in servers}
            source = by_name[log.link.server(place.slot).name]
            target, third = (server for server in servers if server is not source)
            target.ask("CLUSTER", "SETSLOT", place.slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
            source.ask("CLUSTER", "SETSLOT", place.slot, "MIGRATING", target.ask("CLUSTER", "MYID"))
            assert await write(log, Position(2, 0), token(3)), "all its keys are still there"
            keys = source.ask("CLUSTER", "GETKEYSINSLOT", place.slot, 100)
            source.ask("MIGRATE", "127.0.0.1", target.port, place.meta, 0, 5000)
            for call in (write(log, Position(3, 0), token(4)), log.claim(C), log.erase(C)):
                with pytest.raises(LogUnavailable, match="is moving these keys"):
                    await call
            for key in set(keys) - {place.meta}:
                source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            writing = asyncio.create_task(again(lambda: write(log, Position(3, 0), token(4))))
            await asyncio.sleep(0.1)
            for server in (target, source, third):
                server.ask("CLUSTER", "SETSLOT", place.slot, "NODE", target.ask("CLUSTER", "MYID"))
            assert await writing
            assert await everything(log) == [message(1), token(2), token(3), token(4)]
            assert await log.unfinished(log.node_id) == [C]
            await log.ping()


async def test_a_part_of_a_cluster_that_died_is_replaced_and_the_others_go_on() -> None:
    with valkey_cluster(3, replicas=1) as servers:
        async with opened(f"{cluster_url(servers)}?socket_timeout=1&socket_connect_timeout=0.5") as log:
            first = f"127.0.0.1:{servers[0].port}"
            keys = [Key("o", f"c{number}") for number in range(60)]
            batch = [
                Append(key, START, [structs.replace(message(1), conversation_id=key.conversation_id)]) for key in keys
            ]
            assert all(await log.commit(batch))
            servers[0].ask("WAIT", 1, 5000)
            servers[0].kill()
            there = [key for key in keys if log.link.server(log._opened().place(key).slot).name == first]
            elsewhere = [key for key in keys if key not in there]
            for call in (log.ping(), log.commit(batch), log.head(there[0])):
                with pytest.raises(LogUnavailable):
                    await call
            assert (await log.head(elsewhere[0])).seq == 1
            assert await write(log, Position(1, 0), token(2), key=elsewhere[0])
            assert await again(lambda: write(log, Position(1, 0), token(2), key=there[0]))
            assert all(await log.commit(batch)), "all of it is there"
            assert sorted(await log.unfinished()) == sorted(keys)
            await log.ping()


# ---------------------------------------------------------------- TLS


@pytest.fixture
def authority(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """What a server needs, and the path of the certificate that a client has to trust."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    return context, str(tmp_path / "ca.pem")


async def test_tls(redis_server: Valkey, authority: tuple[ssl.SSLContext, str]) -> None:
    context, ca_path = authority
    async with relay(redis_server.port, context) as tls:
        async with opened(f"rediss://127.0.0.1:{tls.port}?ssl_ca_certs={ca_path}&prefix=tls") as log:
            await log.claim(C)
            assert await write(log, START, message(1), token(2, text="x" * 1_000_000))
            assert [entry.seq for entry in await everything(log)] == [1, 2]
        for url, says in (
            (f"rediss://127.0.0.1:{tls.port}", "certificate verify failed"),
            (f"rediss://127.0.0.1:{tls.port}?ssl_ca_certs=/no/such/file", "No such file"),
            (f"redis://127.0.0.1:{tls.port}", "can't be reached"),
            (f"rediss://127.0.0.1:{redis_server.port}?ssl_ca_certs={ca_path}&socket_connect_timeout=0.3", "Redis at"),
        ):
            with pytest.raises(LogUnavailable, match=says):
                await RedisLog(url).open()


async def test_a_cluster_over_tls(redis_cluster: list[Valkey], authority: tuple[ssl.SSLContext, str]) -> None:
    context, ca_path = authority

    def announce(ports: list[int]) -> None:
        """Servers tell clients, and each other, these ports as theirs."""
        for server, port in zip(redis_cluster, ports, strict=True):
            server.ask("CONFIG", "SET", "cluster-announce-port", port)
        told = {port or server.port for server, port in zip(redis_cluster, ports, strict=True)}
        for server in redis_cluster:
            until(lambda server=server: {part[2][1] for part in server.ask("CLUSTER", "SLOTS")} == told)

    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(relay(server.port, context)) for server in redis_cluster]
        announce([one.port for one in relays])
        try:
            url = f"rediss://127.0.0.1:{relays[0].port}?ssl_ca_certs={ca_path}&prefix=tls-cluster"
            log = await stack.enter_async_context(opened(url))
            keys = [Key("o", f"c{number}") for number in range(60)]
            for key in keys:
                assert await write(log, START, message(1), key=key)
            assert sorted(await log.unfinished()) == sorted(keys)
            assert {server.name for server in log.link.servers} == {f"127.0.0.1:{one.port}" for one in relays}
        finally:
            announce([0] * len(redis_cluster))
