"""Gateways as processes, and raw clients, for all end-to-end tests."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import pytest

from tests.support.cluster import Cluster, cluster
from tests.support.process import GatewayProcess, gateway_process
from tests.support.valkey import Valkey, valkey
from tests.support.wire import Wire, bare_wire, wire

Connect = Callable[..., AbstractAsyncContextManager[Wire]]
Start = Callable[..., AbstractAsyncContextManager[GatewayProcess]]
StartCluster = Callable[..., AbstractAsyncContextManager[Cluster]]


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One for all tests of a worker that need no settings of their own; conversations are told apart by their ids."""
    started = GatewayProcess(tmp_path_factory.mktemp("gateway")).start()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One with small limits, for what takes a limit to be seen."""
    started = GatewayProcess(
        tmp_path_factory.mktemp("impatient"),
        first_token_timeout_s=0.8,
        token_timeout_s=0.8,
        function_timeout_s=0.5,
        heartbeat_s=0.3,
        max_queued=2,
        max_conversations_per_connection=2,
        max_frame_bytes=2048,
    ).start()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Valkey]:
    """One for all clusters of a worker that leave it alone."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def trio(redis_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[GatewayProcess]]:
    """Three nodes, for all tests of a worker that leave them running. Who gets a conversation's first message owns
    it; conversations are told apart by their ids."""
    made = Cluster(redis_server, tmp_path_factory.mktemp("trio"), max_context_tokens=100_000)
    try:
        asyncio.run(made.add(3))
        yield made.nodes
    except BaseException:
        made.kill()
        raise
    asyncio.run(made.stop())


@pytest.fixture
def start_cluster(redis_server: Valkey, tmp_path: Path) -> StartCluster:
    """Starts nodes of the test's own: `async with start_cluster(2, drain_s=5) as cluster`."""
    return lambda count, **settings: cluster(redis_server, tmp_path, count, **settings)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a gateway of the test's own: `async with start(log_url="sqlite:…") as gateway`."""
    return lambda **settings: gateway_process(tmp_path, **settings)


@pytest.fixture
def connect(gateway: GatewayProcess) -> Connect:
    """A connection to the shared gateway that has had its `welcome`."""
    return lambda *subprotocols, **options: wire(gateway.chat, *subprotocols, **options)


@pytest.fixture
def connect_bare(gateway: GatewayProcess) -> Connect:
    """A connection from which nothing was read yet."""
    return lambda *subprotocols, **options: bare_wire(gateway.chat, *subprotocols, **options)


@pytest.fixture
async def http(gateway: GatewayProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """Requests to the shared gateway, by path."""
    async with aiohttp.ClientSession(gateway.base, timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


@pytest.fixture
def new_id() -> Callable[[], str]:
    """Ids that no other test uses."""
    numbers = itertools.count(1)
    prefix = secrets.token_hex(6)
    return lambda: f"{prefix}-{next(numbers)}"
