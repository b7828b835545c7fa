"""The link to Redis or Valkey (7 or later): the one place that knows where a key's server is and how to reach it.

One server, a primary with replicas, and a cluster look the same from here: a *server* is whatever serves a slot now.
On one server, or one primary, that is the same for every slot. `gateway.logs.redis_url` says how it is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import structlog
from redis import exceptions
from redis.asyncio.cluster import NodesManager
from redis.asyncio.connection import Connection

from gateway.logs import redis_url
from gateway.logs.log import LogUnavailable
from gateway.logs.redis_connect import Connector
from gateway.logs.redis_errors import explained, state_of
from gateway.logs.redis_keys import Names
from gateway.logs.redis_lane import Command, Lane, Part, Reply, Script, give_up
from gateway.logs.redis_url import Address

OLDEST = 7
"""The major version that brought scripts with flags and sharded channels."""
WRITERS, READERS = 1, 2
"""Connections to each server. One for what changes something, so that it happens in the order asked for."""
TRIES = 5
"""How often a command follows its slot to another server before the caller hears of it."""
TRY_AGAIN_S = 0.05

log_lines = structlog.get_logger(__name__)


class Call(NamedTuple):
    """One script, or with `script` None one command. Its keys are all of one slot."""

    slot: int
    script: Script | None
    keys: Sequence[bytes]
    args: Sequence[Part]
    """For a command: all of it, with its name."""


class Server:
    """One that serves some slots: the lanes to it, and how to get a connection of one's own."""

    def __init__(self, name: str, connect: Any, timeout_s: float) -> None:
        self.name = name
        self.writes = Lane(name, connect, connections=WRITERS, timeout_s=timeout_s)
        self.reads = Lane(name, connect, connections=READERS, timeout_s=timeout_s)
        self._connect = connect

    async def connect(self) -> Connection:
        """A connected connection (RESP2, no time-outs but its health check), for instance to subscribe on. The
        caller closes it. Raises `LogUnavailable`."""
        connection: Connection = await self._connect()
        return connection

    async def close(self) -> None:
        await self.writes.close()
        await self.reads.close()


class RedisLink:
    """`open` before anything else. Everything that awaits raises `LogUnavailable`, and is safe to cancel."""

    def __init__(self, url: str) -> None:
        """Raises `ValueError` with one line for people."""
        self._url = redis_url.parse(url)
        self.names = Names(self._url.prefix)
        self.clustered = False
        self._connector = Connector(self._url)
        self._map: NodesManager | None = None
        self._servers: dict[str, Server] = {}
        self._only: Server | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.refreshes = 0
        """How often the slots were asked for. A cluster's slots may have moved when it went up."""

    def __str__(self) -> str:
        return str(self._url)

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Finds out what the URL leads to."""
        if self._only is not None or self._map is not None:
            raise RuntimeError("the link is open already")
        try:
            facts = await self._facts()
            self._check(facts)
            self.clustered = facts.get("cluster_enabled") == "1"
            await self._find_servers()
        except BaseException:
            await self.close()
            raise

    async def _facts(self) -> dict[str, str]:
        """What INFO says of the server, its memory, and whether it is part of a cluster."""
        connection = await self._connector.to_any()
        facts: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._url.command_s):
                for section in ("server", "memory", "cluster"):
                    await connection.send_command("INFO", section)
                    for line in (await connection.read_response()).decode().splitlines():
                        name, colon, value = line.partition(":")
                        if colon:
                            facts[name] = value
        except (OSError, TimeoutError, exceptions.RedisError) as problem:
            raise explained(problem, str(self)) from None
        finally:
            await give_up(connection)
        return facts

    def _check(self, facts: dict[str, str]) -> None:
        version = facts.get("redis_version", "0")
        if int(version.partition(".")[0]) < OLDEST:
            raise LogUnavailable(f"Redis at {self} is of version {version}; version {OLDEST} or later is needed")
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log_lines.warning(
                "Redis may evict conversations when its memory is full; set maxmemory-policy to noeviction",
                server=str(self),
                policy=policy,
            )

    async def _find_servers(self) -> None:
        if self.clustered:
            if self._url.database:
                raise LogUnavailable(f"Redis at {self} is a cluster, which has only database 0")
            self._map = self._connector.slot_map()
            await self.refresh()
        else:
            self._only = Server(str(self), self._connector.to_primary, self._url.command_s)
            self._servers = {"": self._only}

    async def close(self) -> None:
        """Closes every connection. What waits for an answer gets `LogUnavailable`."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        servers, self._servers, self._only = self._servers, {}, None
        for server in servers.values():
            await server.close()
        slots, self._map = self._map, None
        if slots is not None:
            await slots.aclose()
            await slots.aclose("startup_nodes")
        await self._connector.close()

    # ------------------------------------------------------------ servers

    @property
    def servers(self) -> list[Server]:
        """All that serve slots now: every primary of a cluster, else the one server."""
        if self._only is not None:
            return [self._only]
        if self._map is None:
            raise LogUnavailable(f"the connection to Redis at {self} isn't open")
        # Slots of one primary mostly share a list.
        one_slot_each = {id(nodes): slot for slot, nodes in self._map.slots_cache.items()}
        return list(dict.fromkeys(self.server(slot) for slot in one_slot_each.values()))

    def server(self, slot: int) -> Server:
        """The one that serves `slot` now. Raises `LogUnavailable` when there is none."""
        if self._only is not None:
            return self._only
        if self._map is None:
            raise LogUnavailable(f"the connection to Redis at {self} isn't open")
        try:
            node = self._map.slots_cache[slot][0]
        except (KeyError, IndexError):
            raise LogUnavailable(f"Redis at {self} belongs to a cluster that is down") from None
        return self._at(Address(node.host, int(node.port)))

    def _at(self, address: Address) -> Server:
        server = self._servers.get(str(address))
        if server is None:
            connect = partial(self._connector.to, address)
            server = self._servers[str(address)] = Server(str(address), connect, self._url.command_s)
        return server

    async def refresh(self) -> None:
        """Asks a cluster anew who serves what. Many at once ask together."""
        if self._map is None:
            return
        await asyncio.shield(self._refresh_begun(self._map))

    def _refresh_begun(self, slots: NodesManager) -> asyncio.Task[None]:
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh(slots), name="redis slots")
            self._refreshing.add_done_callback(self._refreshed)
        return self._refreshing

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled() and (problem := task.exception()) is not None:
            log_lines.warning("the cluster doesn't say who serves what", problem=str(problem))

    async def _refresh(self, slots: NodesManager) -> None:
        try:
            async with asyncio.timeout(self._url.command_s):
                await slots.initialize()
        except (OSError, TimeoutError, exceptions.RedisError, exceptions.RedisClusterException) as problem:
            raise explained(problem, str(self)) from None
        self.refreshes += 1
        serving = {str(Address(nodes[0].host, int(nodes[0].port))) for nodes in slots.slots_cache.values()}
        for name in [name for name in self._servers if name not in serving]:
            await self._servers.pop(name).close()

    # ------------------------------------------------------------ asking

    async def call(self, call: Call, *, read: bool = False) -> Reply:
        """The reply to one call. `read`: it changes nothing, and needs no order among others."""
        [reply] = await self.call_all([call], read=read)
        return reply

    async def call_all(self, calls: Sequence[Call], *, read: bool = False) -> list[Reply]:
        """The replies to `calls`: those to one server in one round trip, the servers side by side.

        Raises `LogUnavailable` when a single one fails; some of the others may have been executed then.
        """
        replies: list[Reply] = [None] * len(calls)
        todo, asking, tries = list(range(len(calls))), dict[int, Address](), 0
        while True:
            problems = await self._ask(calls, todo, asking, replies, read=read)
            if not problems:
                return replies
            todo, asking, tries = sorted(problems), {}, tries + 1
            if tries == TRIES or not await self._follow(problems, asking):
                raise explained(problems[todo[0]], self._name_of(calls[todo[0]].slot)) from None

    async def _ask(
        self, calls: Sequence[Call], todo: list[int], asking: dict[int, Address], replies: list[Reply], *, read: bool
    ) -> dict[int, Exception]:
        """Asks `todo`, puts their replies into `replies`, and returns what failed."""
        groups: dict[Server, list[int]] = {}
        for at in todo:
            server = self._at(asking[at]) if at in asking else self.server(calls[at].slot)
            groups.setdefault(server, []).append(at)
        results = await asyncio.gather(
            *(
                (server.reads if read else server.writes).ask([_command(calls[at], at in asking) for at in group])
                for server, group in groups.items()
            ),
            return_exceptions=True,
        )
        failed: dict[int, Exception] = {}
        for group, result in zip(groups.values(), results, strict=True):
            if isinstance(result, BaseException):
                if not isinstance(result, Exception):
                    raise result
                failed |= dict.fromkeys(group, result)
                continue
            for at, reply in zip(group, result, strict=True):
                if isinstance(reply, Exception):
                    failed[at] = reply
                else:
                    replies[at] = reply
        return failed

    async def _follow(self, problems: dict[int, Exception], asking: dict[int, Address]) -> bool:
        """Whether it may help to ask again at once, after what went wrong; notes who is to be asked instead."""
        if self._map is None:
            return False
        wait_s = 0.0
        for at, problem in problems.items():
            match problem:
                case exceptions.MovedError():
                    await self._map.move_slot(problem)
                    self._refresh_begun(self._map)
                case exceptions.AskError():
                    asking[at] = Address(problem.host, problem.port)
                case exceptions.TryAgainError():
                    wait_s = TRY_AGAIN_S
                case _:
                    # A server that is gone may have been replaced: the caller's next try finds out.
                    if isinstance(problem, LogUnavailable) or state_of(problem) is not None:
                        self._refresh_begun(self._map)
                    return False
        await asyncio.sleep(wait_s)
        return True

    def _name_of(self, slot: int) -> str:
        try:
            return self.server(slot).name
        except LogUnavailable:
            return str(self)


def _command(call: Call, asking: bool) -> Command:
    parts = call.args if call.script is None else (len(call.keys), *call.keys, *call.args)
    return Command(parts, call.script, asking)
