"""What happens to Redis, and what the streams of two nodes over it do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from benchmarks.show.audit import audit, report_findings
from benchmarks.show.follow import Follow, report_readers
from benchmarks.show.gateway_process import GatewayProcess, running_gateway, running_upstream
from benchmarks.show.report import Report
from benchmarks.show.valkey_process import ValkeyProcess, running_valkey
from benchmarks.show.waiting import until_told

TITLE = "Redis is slow, restarts with and without its data, fails over, is full: every turn ends exactly once"
STREAMS = 30
SCRIPT = "tokens=150 rate=10 size=8 script=unicode"
END_WITHIN_S = 60.0
READY_WITHIN_S = 15.0


class Servers(NamedTuple):
    url: str
    first: ValkeyProcess
    second: ValkeyProcess | None = None


Act = Callable[[Servers], Awaitable[None]]


@asynccontextmanager
async def _one() -> AsyncIterator[Servers]:
    async with running_valkey() as server:
        yield Servers(server.url, server)


@asynccontextmanager
async def _one_that_keeps() -> AsyncIterator[Servers]:
    async with running_valkey("--appendonly", "yes", "--appendfsync", "everysec") as server:
        yield Servers(server.url, server)


@asynccontextmanager
async def _with_replica() -> AsyncIterator[Servers]:
    async with (
        running_valkey() as primary,
        running_valkey("--replicaof", f"{primary.host} {primary.port}") as replica,
    ):
        if not await until_told(replica.replicates, READY_WITHIN_S):
            raise RuntimeError("the replica doesn't come up")
        url = f"redis://{primary.host}:{primary.port},{replica.host}:{replica.port}/0"
        yield Servers(url, primary, replica)


async def _slow(servers: Servers) -> None:
    servers.first.pause()
    await asyncio.sleep(2)
    servers.first.resume()


async def _restart(servers: Servers) -> None:
    await servers.first.kill()
    await asyncio.sleep(1.5)
    await servers.first.start()


async def _long_gone(servers: Servers) -> None:
    await servers.first.kill()
    await asyncio.sleep(8)
    await servers.first.start()


async def _fail_over(servers: Servers) -> None:
    assert servers.second is not None
    await servers.first.kill()
    await asyncio.sleep(1.5)
    await servers.second.ask("REPLICAOF", "NO", "ONE")


async def _fail_over_late(servers: Servers) -> None:
    """The replica doesn't get the last second."""
    assert servers.second is not None
    await servers.second.ask("REPLICAOF", "NO", "ONE")
    await asyncio.sleep(1)
    await servers.first.kill()
    await asyncio.sleep(1)


async def _emptied(servers: Servers) -> None:
    for _ in range(2):
        await servers.first.ask("FLUSHALL")
        await asyncio.sleep(1.5)


async def _full(servers: Servers) -> None:
    await servers.first.ask("CONFIG", "SET", "maxmemory", 1)
    await asyncio.sleep(4)
    await servers.first.ask("CONFIG", "SET", "maxmemory", 0)


class Fault(NamedTuple):
    name: str
    servers: Callable[[], AbstractAsyncContextManager[Servers]]
    act: Act
    not_ready: bool
    """A node has to say so while it lasts."""
    loses: bool
    """The log may lose entries: turns may be restarted for it."""


FAULTS = (
    Fault("stopped for 2 s", _one, _slow, not_ready=False, loses=False),
    Fault("restarted with its data", _one_that_keeps, _restart, not_ready=True, loses=False),
    Fault("gone for 8 s", _one_that_keeps, _long_gone, not_ready=True, loses=False),
    Fault("restarted without its data", _one, _restart, not_ready=True, loses=True),
    Fault("emptied twice", _one, _emptied, not_ready=False, loses=True),
    Fault("failed over to a replica", _with_replica, _fail_over, not_ready=True, loses=True),
    Fault("failed over, the last second lost", _with_replica, _fail_over_late, not_ready=False, loses=True),
    Fault("full for 4 s", _one, _full, not_ready=True, loses=False),
)


class Readiness:
    """What `/readyz` of the nodes said while something happened."""

    def __init__(self, nodes: list[GatewayProcess]) -> None:
        self._nodes = nodes
        self._over = False
        self.seen: list[set[int]] = [set() for _ in nodes]

    async def during(self, acting: Awaitable[None]) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            await acting
        finally:
            # Not cancelled: a request that is cancelled as it times out would only be one that timed out.
            self._over = True
            await watching

    async def _watch(self) -> None:
        while not self._over:
            for node, seen in zip(self._nodes, self.seen, strict=True):
                seen.add(await node.readiness())
            await asyncio.sleep(0.1)

    async def again(self) -> bool:
        """Whether all get ready in time."""

        async def all_ready() -> bool:
            return {await node.readiness() for node in self._nodes} == {200}

        return await until_told(all_ready, READY_WITHIN_S)


async def _suffer(report: Report, fault: Fault) -> None:
    names = {f"{fault.name.replace(' ', '-').replace(',', '')}-{number}" for number in range(STREAMS)}
    questions = {name: f"key={name} {SCRIPT}" for name in names}
    async with AsyncExitStack() as parts:
        servers = await parts.enter_async_context(fault.servers())
        upstream = await parts.enter_async_context(running_upstream())
        nodes = [
            await parts.enter_async_context(running_gateway(upstream=upstream.url, LOG_URL=servers.url))
            for _ in range(2)
        ]
        askers = await parts.enter_async_context(Follow(nodes[0].url, names, questions))
        await askers.until_streaming(10)
        readers = await parts.enter_async_context(Follow(nodes[1].url, names))
        await readers.until_streaming(10)
        readiness = Readiness(nodes)
        await readiness.during(fault.act(servers))
        ready = await readiness.again()
        await asyncio.gather(askers.wait(END_WITHIN_S), readers.wait(END_WITHIN_S))
        report.figure(f"Redis {fault.name}:", f"{STREAMS} streams; /readyz said {_told(readiness.seen)}")
        if fault.not_ready:
            report.check(all(503 in seen for seen in readiness.seen), f"Redis {fault.name}: both nodes say not ready")
        report.check(ready, f"Redis {fault.name}: then both are ready again")
        found = await audit(nodes[1].url, upstream, names)
        report_findings(report, found)
        if not fault.loses:
            report.check(found.restarted == 0, "no turn had to be restarted for it")
        report_readers(report, "the owner", askers, found)
        report_readers(report, "the other node", readers, found)
        report.none((line for node in nodes for line in node.complaints()), "no traceback in the nodes' logs")


def _told(seen: list[set[int]]) -> str:
    return " and ".join(", ".join(str(status or "nothing") for status in sorted(statuses)) for statuses in seen)


async def show(report: Report, _: str | None) -> None:
    for fault in FAULTS:
        await _suffer(report, fault)
