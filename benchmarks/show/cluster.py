"""Three nodes behind a proxy that has no stickiness, 300 streams, and every ten seconds a node less for a while.

Killed without a word, or stopped in an orderly way, as a deployment does it to one node after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks.show.audit import Findings, audit, report_findings
from benchmarks.show.gateway_process import GatewayProcess, running_gateway, running_upstream
from benchmarks.show.haproxy import running_haproxy
from benchmarks.show.report import Report, median
from benchmarks.show.streams import Streams
from benchmarks.show.valkey_process import running_valkey

TITLE = "3 nodes, a proxy without stickiness, 300 streams, kill -9 every 10 s for 2 minutes"
ROLLING_TITLE = "the same, each node in turn stopped by SIGTERM and started again, twice"
NODES = 3
STREAMS, CONNECTIONS = 300, 30
SCRIPT = "tokens=100 rate=10 size=8 script=unicode"
EVERY_S, KILLS, STOPS = 10.0, 12, 6
DOWN_S = 3.0
RAMP_S = 10.0
END_WITHIN_S = 90.0

Take = Callable[[GatewayProcess], Awaitable[None]]


class Away:
    """Takes one node after the other away, and starts each again a little later."""

    def __init__(self, nodes: list[GatewayProcess], streams: Streams, take: Take):
        self._nodes, self._streams, self._take = nodes, streams, take
        self.times = 0
        self.least_open = STREAMS

    async def run(self, times: int, on_each: Callable[[int], object]) -> None:
        started = time.monotonic()
        while self.times < times:
            node = self._nodes[self.times % len(self._nodes)]
            await self._until(started + (self.times + 1) * EVERY_S)
            await self._take(node)
            self.times += 1
            on_each(self.times)
            await asyncio.sleep(DOWN_S)
            await node.start()

    async def _until(self, when: float) -> None:
        while (left_s := when - time.monotonic()) > 0:
            self.least_open = min(self.least_open, len(self._streams.open))
            await asyncio.sleep(min(0.5, left_s))


async def show(report: Report, _: str | None) -> None:
    await _show(report, "kill -9", GatewayProcess.kill, KILLS)


async def show_rolling(report: Report, _: str | None) -> None:
    found = await _show(report, "SIGTERM", GatewayProcess.stop, STOPS)
    report.check("NODE_LOST" not in found.failed, "no turn was lost by it, however often it had to move: NODE_LOST 0")


async def _show(report: Report, what: str, take: Take, times: int) -> Findings:
    async with AsyncExitStack() as parts:
        valkey = await parts.enter_async_context(running_valkey())
        upstream = await parts.enter_async_context(running_upstream())
        nodes = [
            await parts.enter_async_context(running_gateway(upstream=upstream.url, LOG_URL=valkey.url))
            for _ in range(NODES)
        ]
        proxy = await parts.enter_async_context(running_haproxy([node.url for node in nodes]))
        streams = Streams(proxy, SCRIPT, count=STREAMS, connections=CONNECTIONS)
        away = Away(nodes, streams, take)
        try:
            await streams.start(RAMP_S)
            await asyncio.sleep(RAMP_S)
            before, cpu_s = streams.tokens, valkey.cpu_s()
            with report.progress() as progress:
                task = progress.add_task(what, total=times)
                await away.run(times, lambda done: progress.update(task, completed=done))
            spent_s, tokens = valkey.cpu_s() - cpu_s, streams.tokens - before
            await streams.finish(END_WITHIN_S)
        finally:
            await streams.close()
        report.figure(what, f"{away.times}, one every {EVERY_S:.0f} s, each back after {DOWN_S:.0f} s")
        report.figure("streams open at any moment", f"at least {away.least_open} of {STREAMS}")
        _figures(report, streams)
        report.figure("CPU of Valkey", f"{1e6 * spent_s / max(1, tokens):.1f} µs a token entry")
        names = [answered.conversation_id for answered in streams.answered] + sorted(streams.open)
        found = await audit(nodes[0].url, upstream, names)
        report_findings(report, found)
        _compare(report, streams, found)
        report.none((line for node in nodes for line in node.complaints()), "no traceback in the nodes' logs")
        return found


def _figures(report: Report, streams: Streams) -> None:
    report.figure("token entries read", f"{streams.tokens:,}")
    report.figure("reconnects of clients", f"{streams.reconnects:,}")
    report.figure("messages refused and sent again", streams.refused or "none")
    for kind, seconds in (("its node went", streams.pauses.restarted), ("only its connection", streams.pauses.cut)):
        if seconds:
            told = f"median {median(seconds):.2f} s, worst {max(seconds):.2f} s ({len(seconds):,} streams)"
            report.figure(f"to the next token, {kind}", told)
    report.figure("snapshots seen by clients", sum(answered.snapshots for answered in streams.answered))
    report.none(streams.open, "clients whose turn didn't end: 0")
    report.none(streams.problems, "in the clients' eyes no gap, no duplicate, every `text_length` right")


def _compare(report: Report, streams: Streams, found: Findings) -> None:
    """What clients have read while nodes died is what the log says now."""
    different = []
    for answered in streams.answered:
        ledger = found.ledgers[answered.conversation_id]
        if ledger.messages and answered.error is None and answered.text != ledger.text(ledger.messages[-1]):
            different.append(answered.conversation_id)
    report.none(different, "clients whose text isn't what the log has: 0")
