"""Makes connections to Redis servers, and finds the one that is the primary."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from redis import exceptions
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_errors import explained
from gateway.logs.redis_lane import give_up
from gateway.logs.redis_url import Address, RedisUrl

HEALTH_CHECK_S = 10
"""A connection that was idle for so long is tried with a PING before it is used."""
# A peer that vanished is noticed while nothing is sent after 10 + 3 * 3 s, and while something is after 8 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 8000}


class Connector:
    """All that raise here raise `LogUnavailable`, and are safe to cancel."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        self._arguments: dict[str, Any] = {
            "username": url.username,
            "password": url.password,
            "socket_connect_timeout": url.connect_s,
            "socket_keepalive": True,
            "socket_keepalive_options": {
                getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
            },
            "health_check_interval": HEALTH_CHECK_S,
            "protocol": 2,
            **(url.tls or {}),
        }
        self._sentinel: Sentinel | None = None

    async def to(self, address: Address) -> Connection:
        """A connection to this server, whatever it is. Its reads and writes have no time-out of their own."""
        cls = SSLConnection if self._url.tls is not None else Connection
        connection = cls(
            host=address.host, port=address.port, db=self._url.database, socket_timeout=None, **self._arguments
        )
        try:
            async with asyncio.timeout(self._url.connect_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as problem:
            await give_up(connection)
            if isinstance(problem, (OSError, TimeoutError, ValueError, exceptions.RedisError)):
                raise explained(problem, str(address)) from None
            raise
        return connection

    async def to_primary(self) -> Connection:
        """A connection to the server that takes writes: the one that the Sentinels name, or the first of the URL's
        hosts that says that it is the primary."""
        if self._url.sentinel_of is not None:
            return await self._if_primary(await self._discovered(self._url.sentinel_of))
        first_problem: LogUnavailable | None = None
        for address in self._url.addresses:
            try:
                if len(self._url.addresses) == 1:
                    return await self.to(address)  # a replica refuses writes by itself
                return await self._if_primary(address)
            except LogUnavailable as problem:
                first_problem = first_problem or problem
        assert first_problem is not None
        raise first_problem

    async def to_any(self) -> Connection:
        """As `to_primary`; but where several hosts are named, the first that answers: they may be a cluster's."""
        if self._url.sentinel_of is not None:
            return await self.to_primary()
        first_problem: LogUnavailable | None = None
        for address in self._url.addresses:
            try:
                return await self.to(address)
            except LogUnavailable as problem:
                first_problem = first_problem or problem
        assert first_problem is not None
        raise first_problem

    async def _if_primary(self, address: Address) -> Connection:
        connection = await self.to(address)
        try:
            async with asyncio.timeout(self._url.connect_s):
                await connection.send_command("ROLE")
                role = (await connection.read_response())[0]
            if role == b"master":
                return connection
            problem = LogUnavailable(f"Redis at {address} is a replica, which takes no writes")
        except (OSError, TimeoutError, exceptions.RedisError) as failure:
            problem = explained(failure, str(address))
        except BaseException:
            await give_up(connection)
            raise
        await give_up(connection)
        raise problem

    async def _discovered(self, name: str) -> Address:
        """What the Sentinels say, asked one after the other."""
        if self._sentinel is None:
            arguments = self._arguments | {
                "username": self._url.sentinel_username,
                "password": self._url.sentinel_password,
                "socket_timeout": self._url.connect_s,
                "ssl": self._url.tls is not None,
                "retry": Retry(NoBackoff(), 0),  # there are others to ask
            }
            self._sentinel = Sentinel(self._url.addresses, sentinel_kwargs=arguments)  # type: ignore[no-untyped-call]
        try:
            return Address(*await self._sentinel.discover_master(name))
        except (OSError, TimeoutError, exceptions.RedisError) as problem:
            if isinstance(problem, exceptions.ConnectionError) and "No master found" in str(problem):
                raise LogUnavailable(f"{self._url} knows no primary that is up") from None
            raise explained(problem, str(self._url)) from None

    def slot_map(self) -> NodesManager:
        """redis-py's own view of the cluster, empty until it is initialized."""
        arguments = self._arguments | {
            "socket_timeout": self._url.connect_s,
            "connection_class": SSLConnection if self._url.tls is not None else Connection,
        }
        nodes = [ClusterNode(address.host, address.port, **arguments) for address in self._url.addresses]
        return NodesManager(nodes, require_full_coverage=False, connection_kwargs=arguments)

    async def close(self) -> None:
        if self._sentinel is not None:
            await self._sentinel.aclose()
            self._sentinel = None
