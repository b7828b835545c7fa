"""Three nodes and Redis on four machines (network namespaces), and packets between one node and Redis are dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks.show.audit import audit, report_findings
from benchmarks.show.follow import Follow, report_readers
from benchmarks.show.gateway_process import GatewayProcess, UpstreamProcess, running_gateway, running_upstream
from benchmarks.show.netns import OURS, Machine, machines
from benchmarks.show.report import Report
from benchmarks.show.valkey_process import running_valkey
from benchmarks.show.waiting import until_told

TITLE = "a node cut off from Redis for 10 s: both ways, and each way alone"
NODES = 3
STREAMS = 30
SCRIPT = "tokens=200 rate=10 size=8 script=unicode"
CUT_S = 10.0
END_WITHIN_S = 60.0
READY_WITHIN_S = 15.0

Cut = Callable[[Machine, str], Awaitable[None]]


async def _both_ways(node: Machine, redis: str) -> None:
    await node.drop_to(redis)
    await node.drop_from(redis)


CUTS: dict[str, Cut] = {
    "both ways": _both_ways,
    "node to Redis": Machine.drop_to,
    "Redis to node": Machine.drop_from,
}


async def _is(node: GatewayProcess, status: int, within_s: float) -> bool:
    async def told() -> bool:
        return await node.readiness() == status

    return await until_told(told, within_s)


async def _cut_off(
    report: Report, kind: str, machine: Machine, redis: str, nodes: list[GatewayProcess], upstream: UpstreamProcess
) -> None:
    """`machine` is that of the first node, which owns all streams; readers are on the first two."""
    names = {f"{kind.replace(' ', '-')}-{number}" for number in range(STREAMS)}
    await upstream.forget()
    async with AsyncExitStack() as parts:
        questions = {name: f"key={name} {SCRIPT}" for name in names}
        askers = await parts.enter_async_context(Follow(nodes[0].url, names, questions))
        await askers.until_streaming(10)
        readers = await parts.enter_async_context(Follow(nodes[1].url, names))
        await readers.until_streaming(10)
        started = asyncio.get_running_loop().time()
        await CUTS[kind](machine, redis)
        try:
            not_ready = await _is(nodes[0], 503, within_s=CUT_S)
            others = [await node.readiness() for node in nodes[1:]]
            await asyncio.sleep(max(0.0, started + CUT_S - asyncio.get_running_loop().time()))
        finally:
            await machine.heal()
        report.check(not_ready, f"{kind}: the node that is cut off says that it isn't ready")
        report.check(set(others) == {200}, f"{kind}: the others stay ready")
        report.check(await _is(nodes[0], 200, within_s=READY_WITHIN_S), f"{kind}: healed, it is ready again")
        await asyncio.gather(askers.wait(END_WITHIN_S), readers.wait(END_WITHIN_S))
        report.figure(f"{kind}:", f"{STREAMS} streams, cut for {CUT_S:.0f} s")
        found = await audit(nodes[2].url, upstream, names)
        report_findings(report, found)
        report.check(found.restarted == STREAMS, "every turn of the node that was cut off went on elsewhere")
        report_readers(report, "the node that was cut off", askers, found)
        report_readers(report, "another node", readers, found)


async def show(report: Report, _: str | None) -> None:
    async with AsyncExitStack() as parts:
        redis, *places = await parts.enter_async_context(machines(1 + NODES))
        valkey = await parts.enter_async_context(running_valkey(host=redis.host, prefix=redis.prefix))
        upstream = await parts.enter_async_context(running_upstream(OURS))
        nodes = [
            await parts.enter_async_context(
                running_gateway(
                    upstream=upstream.url, prefix=place.prefix, HOST=place.host, INSECURE="true", LOG_URL=valkey.url
                )
            )
            for place in places
        ]
        for kind in CUTS:
            await _cut_off(report, kind, places[0], redis.host, nodes, upstream)
        report.none((line for node in nodes for line in node.complaints()), "no traceback in the nodes' logs")
