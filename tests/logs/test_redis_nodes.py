"""Nodes on real servers: what they see of each other, and of the conversations that they follow."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import structlog
import trustme

from gateway.logs import redis_line, redis_published
from gateway.logs.log import Key, LogUnavailable
from gateway.logs.membership import BEAT_S, LEASE_S
from gateway.logs.nodes import NodeGone, Nodes
from gateway.logs.redis_keys import PARTITIONS, member, partition, slot_of
from gateway.logs.redis_link import Call, RedisLink
from gateway.logs.redis_nodes import NODES, RedisNodes
from tests.support.nodes import Follows, append, die, eventually, key, nobody_asks, node, publish
from tests.support.valkey import Valkey, cluster_url, free_port, valkey, valkey_cluster, valkey_with_replica


@pytest.fixture(params=["one", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "one":
        base = request.getfixturevalue("redis_server").url
    else:
        base = cluster_url(request.getfixturevalue("redis_cluster"))
    return f"{base}?prefix={request.node.name.split('[')[0]}"


def servers_of(request: pytest.FixtureRequest) -> list[Valkey]:
    clustered = "cluster" in request.node.name
    return request.getfixturevalue("redis_cluster") if clustered else [request.getfixturevalue("redis_server")]


def subscribers(server: Valkey, channel_part: str = "") -> list[str]:
    lines: list[str] = server.ask("CLIENT", "LIST", "TYPE", "PUBSUB").decode().splitlines()
    return [line for line in lines if channel_part in line]


# ------------------------------------------------------------ following


async def test_what_is_published_after_follow_returned_is_received(url: str) -> None:
    """Raced: a writer goes on all the time; the number of its last append is read after `follow` returned."""
    stop = False
    async with node(url, "a") as writing, node(url, "b") as reading:

        async def write(key: Key) -> int:
            seq = 0
            while not stop:
                seq += 1
                await publish(writing._link, key, append(key, seq))
            return seq

        keys = [key(number) for number in range(20)]
        writers = [asyncio.create_task(write(key)) for key in keys]
        followers = {key: Follows() for key in keys}
        since: dict[Key, int] = {}
        for one in keys:
            await reading.follow(one, followers[one])
            [since[one]] = await publish(writing._link, one, b"")  # counted as an append, but no entry
            await asyncio.sleep(0.003)
        stop = True
        last = dict(zip(keys, await asyncio.gather(*writers), strict=True))
        await eventually(lambda: all(followers[one].seqs[-1:] == [last[one]] for one in keys))
        for one in keys:
            first = followers[one].seqs[0]
            assert first <= since[one], "nothing that came after `follow` returned is missing"
            assert followers[one].seqs == list(range(first, last[one] + 1)), "in order, no gap, nothing twice"
            assert followers[one].misses == 0


async def test_a_thousand_conversations_share_one_connection_to_each_server(
    url: str, request: pytest.FixtureRequest
) -> None:
    servers = servers_of(request)
    before = sum(len(subscribers(server)) for server in servers)
    async with node(url, "a") as nodes:
        keys = [key(number) for number in range(1000)]
        followers = {key: Follows() for key in keys}
        await asyncio.gather(*(nodes.follow(key, followers[key]) for key in keys))
        assert sum(len(subscribers(server)) for server in servers) - before == len(servers)
        await asyncio.gather(*(publish(nodes._link, key, append(key, 1), append(key, 2, count=3)) for key in keys))
        await eventually(lambda: all(follows.seqs == [1, 2, 3, 4] for follows in followers.values()))
        for one in keys:
            assert {entry.conversation_id for entry in followers[one].entries} == {one.conversation_id}
            assert [position.seq for position in followers[one].after] == [0, 1]


async def test_what_is_no_longer_followed_ends_within_a_second_and_whoever_returns_before_pays_nothing(
    url: str, request: pytest.FixtureRequest
) -> None:
    async with node(url, "a") as nodes:
        follows, again = Follows(), Follows()
        name = member(key())
        channel = nodes._link.names.log(partition(name), name)

        def readers() -> int:
            return sum(server.ask("PUBSUB", "SHARDNUMSUB", channel)[1] for server in servers_of(request))

        await nodes.follow(key(), follows)
        nodes.unfollow(key())
        await publish(nodes._link, key(), append(key(), 1))
        await nodes.follow(key(), again)
        await publish(nodes._link, key(), append(key(), 2))
        await eventually(lambda: again.seqs == [2])
        assert follows.seqs == []
        assert again.misses == 0
        nodes.unfollow(key())
        nodes.unfollow(key("never followed"))
        assert readers() == 1
        assert await eventually(lambda: readers() == 0) < 1.2
        await nodes.follow(key(), follows)
        await publish(nodes._link, key(), append(key(), 3))
        await eventually(lambda: follows.seqs == [3])


async def test_a_follow_that_is_cancelled_follows_nothing(url: str, request: pytest.FixtureRequest) -> None:
    async with node(url, "a") as nodes:
        follows = Follows()
        following = asyncio.create_task(nodes.follow(key(), follows))
        await asyncio.sleep(0)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await publish(nodes._link, key(), append(key(), 1))
        await eventually(lambda: not nodes._hub._subscriptions.keys() - {nodes._channel_of("a")})
        assert follows.seqs == []


async def test_a_node_knows_what_others_follow(url: str) -> None:
    async with node(url, "a") as a, node(url, "b") as b:
        keys = [key(number) for number in range(5)]
        await b.follow(keys[1], Follows())
        await b.follow(keys[3], Follows())
        assert await a.followed(keys) == [False, True, False, True, False]
        assert await a.followed([]) == []


async def test_the_second_follower_replaces_the_first(url: str) -> None:
    async with node(url, "a") as nodes:
        first, second = Follows(), Follows()
        await asyncio.gather(nodes.follow(key(), first), nodes.follow(key(), second))
        await publish(nodes._link, key(), append(key(), 1))
        await eventually(lambda: second.seqs == [1])
        assert first.seqs == []


async def test_an_erasure_is_told_and_what_can_not_be_read_is_missed(url: str) -> None:
    async with node(url, "a") as nodes:
        follows = Follows()
        await nodes.follow(key(), follows)
        with structlog.testing.capture_logs() as lines:
            await publish(nodes._link, key(), redis_published.ERASED, b"rubbish", append(key(), 1))
            await eventually(lambda: follows.seqs == [1])
        assert (follows.erasures, follows.misses) == (1, 1)
        assert [line["log_level"] for line in lines] == ["warning"]


async def test_a_follower_that_breaks_costs_nobody_else_anything(url: str) -> None:
    class Breaks(Follows):
        def received(self, after: object, entries: object) -> None:
            raise RuntimeError("broken")

    async with node(url, "a") as nodes:
        follows = Follows()
        await nodes.follow(key("broken"), Breaks())
        await nodes.follow(key(), follows)
        with structlog.testing.capture_logs() as lines:
            await publish(nodes._link, key("broken"), append(key("broken"), 1))
            await publish(nodes._link, key(), append(key(), 1))
            await eventually(lambda: follows.seqs == [1] and lines)
        assert [line["log_level"] for line in lines] == ["error"]


# ------------------------------------------------------------ what goes wrong


async def test_a_killed_connection_is_made_anew_and_its_followers_are_told(
    url: str, request: pytest.FixtureRequest
) -> None:
    async with node(url, "a") as nodes:
        keys = [key(number) for number in range(200)]
        followers = {key: Follows() for key in keys}
        await asyncio.gather(*(nodes.follow(key, followers[key]) for key in keys))
        nodes.unfollow(keys[0])
        for server in servers_of(request):
            server.ask("CLIENT", "KILL", "TYPE", "PUBSUB")
        await asyncio.sleep(0)
        late = Follows()
        await nodes.follow(key("late"), late)
        await eventually(lambda: all(followers[key].misses == 1 for key in keys[1:]))
        await asyncio.gather(*(publish(nodes._link, key, append(key, 1)) for key in [*keys, key("late")]))
        await eventually(lambda: all(followers[key].seqs == [1] for key in keys[1:]) and late.seqs == [1])
        assert (late.misses, followers[keys[0]].misses, followers[keys[0]].seqs) == (0, 0, [])


async def test_a_server_that_stands_still_and_one_that_restarts_make_nobody_look_lost() -> None:
    with valkey() as server:
        url = f"{server.url}?socket_connect_timeout=0.5"
        async with node(url, "a") as a, node(url, "b") as b:
            lost: list[str] = []
            a.on_lost = b.on_lost = lost.append
            follows = Follows()
            await a.follow(key(), follows)
            await eventually(lambda: a.others() == ["b"] and b.others() == ["a"])
            server.pause()
            try:
                await asyncio.sleep(LEASE_S)
                assert a.is_lost("b") is None
                with pytest.raises(LogUnavailable):
                    await a.request("b", b"", 5.0)
                with pytest.raises(LogUnavailable):
                    await a.follow(key("other"), Follows())
            finally:
                server.resume()
            assert await eventually(lambda: follows.misses == 1) < 2.0
            await eventually(lambda: a.others() == ["b"] and b.others() == ["a"])
            server.kill()
            await eventually(lambda: a.is_lost("b") is None)
            server.start()
            assert await eventually(lambda: follows.misses == 2) < 2.0
            await eventually(lambda: a.others() == ["b"] and b.others() == ["a"])
            await publish(a._link, key(), append(key(), 1))
            await eventually(lambda: follows.seqs == [1])
            assert lost == []


async def test_when_another_server_becomes_the_primary_it_is_the_one_to_follow() -> None:
    with valkey_with_replica() as (first, second):
        url = f"redis://127.0.0.1:{first.port},127.0.0.1:{second.port}"
        async with node(url, "a") as a, node(url, "b") as b:
            lost: list[str] = []
            a.on_lost = b.on_lost = lost.append
            follows = Follows()
            await a.follow(key(), follows)
            second.ask("REPLICAOF", "NO", "ONE")
            first.ask("REPLICAOF", "127.0.0.1", second.port)
            await eventually(lambda: follows.misses == 1)
            with suppress(LogUnavailable):  # that link has still to find out
                await publish(b._link, key(), b"")
            await publish(b._link, key(), append(key(), 1))
            await eventually(lambda: follows.seqs == [1])
            await eventually(lambda: a.others() == ["b"] and b.others() == ["a"])
            assert lost == []


async def test_a_pause_of_this_process_is_not_the_servers_silence(
    redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "TICK_S", 0.02)
    async with node(f"{redis_server.url}?prefix=pause", "a") as nodes:
        follows = Follows()
        await nodes.follow(key(), follows)
        for _ in range(3):
            asyncio.get_running_loop().call_soon(time.sleep, 10 * 0.02)
            await asyncio.sleep(0.1)
        await publish(nodes._link, key(), append(key(), 1))
        await eventually(lambda: follows.seqs == [1])
        assert follows.misses == 0


async def test_all_of_it_works_with_a_password_and_tls() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with valkey("--requirepass", "hush") as server, authority.cert_pem.tempfile() as certificates:
        async with tls_in_front_of(server, context) as port:
            url = f"rediss://:hush@127.0.0.1:{port}?ssl_ca_certs={certificates}"
            async with node(url, "a") as a, node(url, "b") as b:
                follows = Follows()
                await a.follow(key(), follows)
                await publish(b._link, key(), append(key(), 1, text="x" * 1_000_000))
                await eventually(lambda: follows.seqs == [1])
                await a._link.call(Call(0, None, [], ["CLIENT", "KILL", "TYPE", "PUBSUB"]))
                await eventually(lambda: follows.misses == 1)
                await eventually(lambda: a.others() == ["b"])


@asynccontextmanager
async def tls_in_front_of(server: Valkey, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port on which the server speaks TLS, which this build of it can't itself."""
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        for task in (asyncio.create_task(pipe(reader, back)), asyncio.create_task(pipe(there, writer))):
            tasks.add(task)

    front = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield front.sockets[0].getsockname()[1]
    finally:
        front.close()
        await asyncio.wait(tasks, timeout=2)


async def test_nobody_there() -> None:
    with valkey() as server:
        link = RedisLink(server.url)
        await link.open()
        server.kill()
        nodes: Nodes = RedisNodes(link, "a")
        with pytest.raises(LogUnavailable, match="can't be reached"):
            await nodes.open(nobody_asks)
        with pytest.raises(LogUnavailable):
            await nodes.follow(key(), Follows())
        with pytest.raises(LogUnavailable):
            await nodes.request("b", b"", 1.0)
        server.start()
        await nodes.open(nobody_asks)
        await nodes.follow(key(), Follows())
        server.kill()
        with structlog.testing.capture_logs() as lines:
            await nodes.close()
            await nodes.close()
        assert "can't say that it left" in str(lines)
        await link.close()


async def test_full_memory_stops_no_beat() -> None:
    with valkey("--maxmemory", "1mb") as server:
        async with node(server.url, "a") as a, node(server.url, "b") as b:
            with pytest.raises(LogUnavailable, match="out of memory"):
                await publish(a._link, key(), b"")
            await asyncio.sleep(2 * BEAT_S + 0.1)
            assert (a.others(), b.others()) == (["b"], ["a"])


# ------------------------------------------------------------ who is there


async def test_a_node_that_dies_is_lost_within_the_lease_and_a_second_and_one_that_leaves_is_known_at_once(
    redis_server: Valkey,
) -> None:
    url = f"{redis_server.url}?prefix=dies"
    found: dict[str, list[str]] = {"a": [], "late": []}
    loop = asyncio.get_running_loop()
    async with node(url, "a") as a, node(url, "killed") as killed, node(url, "leaves") as leaves:
        a.on_lost = found["a"].append
        await eventually(lambda: sorted(a.others()) == ["killed", "leaves"])
        assert a.is_lost("a") is False
        assert a.is_lost("nobody") is None

        await die(killed)
        died = loop.time()
        await leaves.close()
        assert await eventually(lambda: a.is_lost("leaves")) < BEAT_S + 0.3
        asked = loop.time()
        with pytest.raises(NodeGone):
            await a.request("leaves", b"", 5.0)
        assert loop.time() - asked < 0.5

        async with node(url, "late") as late:
            late.on_lost = found["late"].append
            assert late.is_lost("leaves") is True
            assert late.is_lost("killed") is None
            with pytest.raises(NodeGone):
                await a.request("killed", b"", 5.0)
            assert loop.time() - died < 2.5, "nobody reads its channel"
            assert a.is_lost("killed") is False, "it may still come back"
            await eventually(lambda: a.is_lost("killed"))
            assert LEASE_S - BEAT_S < loop.time() - died < LEASE_S + 1.5
            await eventually(lambda: late.is_lost("killed"))
            assert a.is_lost("nobody") is True
            assert a.others() == ["late"]
            # When `late` opened, there was nobody to tell that `leaves` had gone.
            assert found == {"a": ["leaves", "killed"], "late": ["killed"]}


# ------------------------------------------------------------ a cluster that changes


@pytest.fixture(scope="module")
def changing() -> Iterator[list[Valkey]]:
    """Three primaries and a replica of the first, for tests that find their way by what the link says."""
    with valkey_cluster(3, replicas=1) as servers:
        yield servers


def on(nodes: RedisNodes, server: Valkey, *, but: int | None = None) -> int:
    """A partition that this server serves."""
    name = f"127.0.0.1:{server.port}"
    return next(n for n in range(PARTITIONS) if nodes._link.server(slot_of(n)).name == name and slot_of(n) != but)


def key_in(number: int) -> Key:
    return next(one for n in range(10_000) if partition(member(one := key(n))) == number)


def hand_over(slot: int, source: Valkey, target: Valkey) -> None:
    """Makes `target` serve the slot. What is stored in it isn't taken along: the harder case."""
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
    target.ask("CLUSTER", "SETSLOT", slot, "NODE", target.ask("CLUSTER", "MYID"))


async def test_slots_that_move_take_their_followers_and_the_nodes_along(changing: list[Valkey]) -> None:
    async def echo(payload: bytes) -> bytes:
        return payload

    servers = changing[:3]
    one, another = (cluster_url(some) + "?prefix=slots" for some in (servers[:1], servers))
    async with node(one, "a", echo) as a, node(another, "b", echo) as b:
        lost: list[str] = []
        a.on_lost = b.on_lost = lost.append
        nodes_slot = slot_of(NODES)
        moving = key_in(on(a, servers[0], but=nodes_slot))
        staying = key_in(on(a, servers[2], but=nodes_slot))
        follows, unmoved = Follows(), Follows()
        await a.follow(moving, follows)
        await a.follow(staying, unmoved)
        hand_over(slot_of(partition(member(moving))), servers[0], servers[1])
        await eventually(lambda: follows.misses == 1)
        await publish(b._link, moving, append(moving, 1))
        await publish(b._link, staying, append(staying, 1))
        await eventually(lambda: (follows.seqs, unmoved.seqs) == ([1], [1]))
        assert unmoved.misses == 0

        before = a._link.server(nodes_slot).name
        holder = next(one for one in servers if f"127.0.0.1:{one.port}" == before)
        hand_over(nodes_slot, holder, next(one for one in servers if one is not holder))
        await eventually(lambda: a._link.server(nodes_slot).name != before)
        assert await asyncio.gather(a.request("b", b"x", 5.0), b.request("a", b"y", 5.0)) == [b"x", b"y"]
        await eventually(lambda: a.others() == ["b"] and b.others() == ["a"])
        assert lost == []


async def test_what_is_no_longer_followed_when_its_slot_moves_ends_there(redis_server: Valkey) -> None:
    async with node(f"{redis_server.url}?prefix=moves", "a") as nodes:
        await nodes.follow(key(), Follows())
        nodes.unfollow(key())
        hub = nodes._hub
        line = next(iter(hub._lines.values()))
        for slot in list(line.wanted):
            for subscription in line.give_away(slot):
                line.want(subscription)
        assert len(hub._subscriptions) == 2
        await eventually(lambda: len(hub._subscriptions) == 1)


async def test_followers_and_nodes_outlive_a_failover_asked_for_and_the_death_of_a_primary(
    changing: list[Valkey],
) -> None:
    servers, first, replica = changing, changing[0], changing[3]
    async with AsyncExitStack() as stack:
        url = cluster_url(servers) + "?prefix=outlive"
        a, b = [await stack.enter_async_context(node(url, node_id)) for node_id in ("a", "b")]
        lost: list[str] = []
        a.on_lost = b.on_lost = lost.append
        one = key_in(on(a, first))
        follows = Follows()
        await a.follow(one, follows)
        name = member(one)
        channel = a._link.names.log(partition(name), name)
        replica.ask("CLUSTER", "FAILOVER")
        await eventually(lambda: replica.ask("PUBSUB", "SHARDNUMSUB", channel)[1] == 1 and follows.misses)
        await publish(b._link, one, append(one, 1))
        await eventually(lambda: follows.seqs == [1])

        await eventually(lambda: first.info("replication")["master_link_status"] == "up")
        misses = follows.misses
        replica.kill()
        await eventually(lambda: follows.misses > misses, within_s=15)
        async with asyncio.timeout(10):
            while follows.seqs == [1]:
                with suppress(LogUnavailable):  # that link may hear later that the primary is gone
                    await publish(b._link, one, append(one, 2))
                    await asyncio.sleep(0.1)
        assert set(follows.seqs) == {1, 2}
        await eventually(lambda: a.others() == ["b"] and b.others() == ["a"])
        assert lost == []


async def test_two_gateways_with_one_server_do_not_see_each_other(redis_server: Valkey) -> None:
    async with node(f"{redis_server.url}?prefix=one", "a") as a, node(f"{redis_server.url}?prefix=two", "a") as b:
        follows = Follows()
        await a.follow(key(), follows)
        await publish(b._link, key(), append(key(), 1))
        await publish(a._link, key(), append(key(), 2))
        await eventually(lambda: follows.seqs == [2])
        assert a.others() == b.others() == []


async def test_a_free_port_is_no_server() -> None:
    link = RedisLink(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(LogUnavailable):
        await link.open()
    nodes = RedisNodes(link, "a")
    with pytest.raises(LogUnavailable):
        await nodes.open(nobody_asks)
