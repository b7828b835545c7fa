"""The link to real servers: where commands go, what follows them, and what is said when they can't be served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_errors import Refused
from gateway.logs.redis_keys import PARTITIONS, slot_of
from gateway.logs.redis_lane import Command, Script
from gateway.logs.redis_link import Call, RedisLink
from tests.support.valkey import Valkey, cluster_url, free_port, valkey, valkey_cluster, valkey_with_replica

ECHO = Script("#!lua\nreturn {KEYS[1], ARGV[1]}")
PUSH = Script("#!lua\nreturn redis.call('RPUSH', KEYS[1], ARGV[1])")


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink(url)
    await link.open()
    try:
        yield link
    finally:
        await link.close()


def echo(link: RedisLink, partition: int, text: str = "x") -> Call:
    return Call(slot_of(partition), ECHO, [link.names.open(partition)], [text])


def command(tag: str | int, *parts: str | bytes | int) -> Call:
    return Call(slot_of(tag), None, [], parts)


@pytest.fixture(params=["one", "cluster"])
async def link(request: pytest.FixtureRequest) -> AsyncIterator[RedisLink]:
    if request.param == "one":
        url = request.getfixturevalue("redis_server").url
    else:
        url = cluster_url(request.getfixturevalue("redis_cluster"))
    async with linked(f"{url}?prefix={request.node.name.split('[')[0]}") as link:
        yield link


# ---------------------------------------------------------------- what is asked, and answered


async def test_calls_of_all_partitions_take_one_round_trip_to_each_server(link: RedisLink) -> None:
    calls = [echo(link, number, str(number)) for number in range(PARTITIONS)]
    await link.call_all(calls)  # the script is known now
    before = [server.writes.round_trips for server in link.servers]
    replies = await link.call_all(calls)
    assert replies == [[link.names.open(number), str(number).encode()] for number in range(PARTITIONS)]
    assert [server.writes.round_trips for server in link.servers] == [count + 1 for count in before]
    assert len(link.servers) == (3 if link.clustered else 1)


async def test_what_is_asked_at_once_shares_round_trips(link: RedisLink) -> None:
    server = link.server(slot_of(1))
    await link.call(echo(link, 1), read=True)
    before = server.reads.round_trips
    replies = await asyncio.gather(*(link.call(echo(link, 1, str(number)), read=True) for number in range(500)))
    assert [reply[1] for reply in replies] == [str(number).encode() for number in range(500)]
    assert server.reads.round_trips - before <= 8


async def test_whoever_asks_again_the_moment_he_is_answered_is_served(link: RedisLink) -> None:
    lane = link.server(slot_of(1)).writes
    async with asyncio.timeout(5):
        for _ in range(100):
            await lane.ask([Command([b"PING"])])


async def test_writes_happen_in_the_order_asked_for(link: RedisLink) -> None:
    key = link.names.tagged("order", "list")
    calls = [Call(slot_of("order"), PUSH, [key], [number]) for number in range(300)]
    assert await asyncio.gather(*map(link.call, calls)) == list(range(1, 301))
    stored = await link.call(command("order", "LRANGE", key, 0, -1), read=True)
    assert stored == [str(number).encode() for number in range(300)]


async def test_a_script_that_the_server_forgot_is_sent_again(link: RedisLink) -> None:
    key = link.names.tagged("forgot", "list")
    calls = [Call(slot_of("forgot"), PUSH, [key], [number]) for number in range(3)]
    await link.call_all(calls)
    await link.call(command("forgot", "SCRIPT", "FLUSH"))
    assert await link.call_all(calls) == [4, 5, 6]
    stored = await link.call(command("forgot", "LRANGE", key, 0, -1))
    assert stored == [b"0", b"1", b"2"] * 2


async def test_a_cancelled_caller_costs_no_connection_and_no_other_caller(link: RedisLink) -> None:
    await link.call(echo(link, 1))
    before = await link.call(command(1, "CLIENT", "ID"))
    tasks = [asyncio.create_task(link.call(echo(link, 1, str(number)))) for number in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert [result[1] for result in results[1::2]] == [b"1", b"3", b"5", b"7", b"9"]
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert await link.call(command(1, "CLIENT", "ID")) == before


async def test_a_connection_that_the_server_closed_is_replaced(link: RedisLink) -> None:
    mine = await link.call(command(1, "CLIENT", "ID"))
    await link.call(command(1, "CLIENT", "KILL", "ID", mine, "SKIPME", "no"))
    await asyncio.sleep(0.05)
    assert await link.call(command(1, "CLIENT", "ID")) != mine


@pytest.mark.parametrize("failure", [RuntimeError("the handler is closed"), KeyError("bug")])
async def test_whatever_goes_wrong_nobody_waits_for_ever(failure: Exception, link: RedisLink) -> None:
    """uvloop raises `RuntimeError` where a transport was closed and nobody has seen it yet."""
    await link.call(echo(link, 1))
    [idle] = link.server(slot_of(1)).writes._idle

    async def send(*_: object) -> None:
        raise failure

    idle.send_packed_command = send  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        with pytest.raises(LogUnavailable):
            await link.call(echo(link, 1))
        assert (await link.call(echo(link, 1)))[1] == b"x"


async def test_a_bug_is_told_from_an_outage(link: RedisLink) -> None:
    key = link.names.tagged("bug", "text")
    await link.call(command("bug", "SET", key, "x"))
    for call in (Call(slot_of("bug"), PUSH, [key], ["x"]), command("bug", "NOSUCH")):
        with pytest.raises(Refused, match="refuses a command"):
            await link.call(call)


async def test_a_closed_link_is_unavailable(link: RedisLink) -> None:
    with pytest.raises(RuntimeError):
        await link.open()
    await link.close()
    with pytest.raises(LogUnavailable, match="isn't open"):
        await link.call(echo(link, 1))
    with pytest.raises(LogUnavailable, match="isn't open"):
        assert link.servers
    await link.open()
    assert await link.call(echo(link, 1))


# ---------------------------------------------------------------- what goes wrong


async def test_nobody_there() -> None:
    port = free_port()
    with pytest.raises(LogUnavailable, match=f"Redis at 127.0.0.1:{port} can't be reached") as problem:
        await RedisLink(f"redis://user:hush@127.0.0.1:{port},127.0.0.1:{port}").open()
    assert "hush" not in str(problem.value)


async def test_a_server_with_a_password() -> None:
    with valkey("--requirepass", "hush") as server:
        address = f"127.0.0.1:{server.port}"
        for url in (f"redis://{address}", f"redis://:wrong-hush@{address}"):
            with pytest.raises(LogUnavailable, match="credentials") as problem:
                await RedisLink(url).open()
            assert "hush" not in str(problem.value)
        async with linked(f"redis://:hush@{address}") as link:
            assert await link.call(echo(link, 1))


async def test_a_server_that_stands_still_fails_what_waits_and_serves_what_comes_later() -> None:
    with valkey() as server:
        async with linked(f"{server.url}?socket_timeout=0.3") as link:
            await link.call(echo(link, 1))
            server.pause()
            try:
                waiting = await asyncio.gather(*(link.call(echo(link, 1)) for _ in range(5)), return_exceptions=True)
            finally:
                server.resume()
            assert [str(problem) for problem in waiting] == [f"Redis at 127.0.0.1:{server.port} doesn't answer"] * 5
            assert await link.call(echo(link, 1))


async def test_a_server_that_comes_back_is_used_again() -> None:
    with valkey() as server:
        async with linked(server.url) as link:
            await link.call(echo(link, 1))
            server.kill()
            for _ in range(2):
                with pytest.raises(LogUnavailable, match="can't be reached"):
                    await link.call(echo(link, 1))
            server.start()
            assert await link.call(echo(link, 1))


async def test_of_several_hosts_the_primary_is_used_also_when_another_becomes_it() -> None:
    with valkey_with_replica() as (first, second):
        url = f"redis://127.0.0.1:{free_port()},127.0.0.1:{second.port},127.0.0.1:{first.port}"
        async with linked(url) as link:
            key = link.names.tagged("x", "list")
            assert await link.call(Call(slot_of("x"), PUSH, [key], ["a"])) == 1
            first.ask("WAIT", 1, 5000)
            second.ask("REPLICAOF", "NO", "ONE")
            first.ask("REPLICAOF", "127.0.0.1", second.port)
            with pytest.raises(LogUnavailable, match=r"is a replica|can't be reached"):
                await link.call(Call(slot_of("x"), PUSH, [key], ["b"]))
            assert await link.call(Call(slot_of("x"), PUSH, [key], ["b"])) == 2
        async with linked(second.url) as link:
            assert await link.call(command("x", "LLEN", key)) == 2
        with pytest.raises(LogUnavailable, match="is a replica"):
            async with linked(first.url) as link:
                await link.call(Call(slot_of("x"), PUSH, [key], ["b"]))


async def test_a_policy_that_evicts_is_warned_of(redis_server: Valkey) -> None:
    with valkey("--maxmemory-policy", "allkeys-lru") as server, structlog.testing.capture_logs() as lines:
        async with linked(server.url):
            pass
        async with linked(redis_server.url):
            pass
    assert [(line["log_level"], line["policy"]) for line in lines] == [("warning", "allkeys-lru")]


# ---------------------------------------------------------------- a cluster that changes


def move_slot(servers: list[Valkey], slot: int, source: Valkey, target: Valkey) -> None:
    """Hands a slot without keys over."""
    name = target.ask("CLUSTER", "MYID")
    for server in (target, source, *servers):
        server.ask("CLUSTER", "SETSLOT", slot, "NODE", name)


async def test_a_slot_that_moved_is_followed_and_one_that_is_moving_asked_for() -> None:
    with valkey_cluster() as servers:
        async with linked(cluster_url(servers[:1])) as link:
            slot = slot_of("a")
            key = link.names.tagged("a", "list")
            by_name = {f"127.0.0.1:{server.port}": server for server in servers}
            source = by_name[link.server(slot).name]
            target = next(server for server in servers if server is not source)
            source_id, target_id = source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID")
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            push = Call(slot, PUSH, [key], ["a"])
            assert await link.call_all([push, push]) == [1, 2], "at the new place, as it isn't at the old one"
            assert link.server(slot).name == f"127.0.0.1:{source.port}"
            move_slot(servers, slot, source, target)
            assert await link.call_all([push, echo(link, 1), push]) == [3, [link.names.open(1), b"x"], 4]
            assert link.server(slot).name == f"127.0.0.1:{target.port}"
