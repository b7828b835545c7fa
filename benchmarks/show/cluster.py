"""Three nodes behind a proxy that has no stickiness, 300 streams, and a node killed every ten seconds."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from benchmarks.show.audit import Findings, audit, report_findings
from benchmarks.show.gateway_process import GatewayProcess, running_gateway, running_upstream
from benchmarks.show.haproxy import running_haproxy
from benchmarks.show.report import Report, median
from benchmarks.show.streams import Streams
from benchmarks.show.valkey_process import running_valkey

TITLE = "3 nodes, a proxy without stickiness, 300 streams, kill -9 every 10 s for 2 minutes"
NODES = 3
STREAMS, CONNECTIONS = 300, 30
SCRIPT = "tokens=100 rate=10 size=8 script=unicode"
KILL_EVERY_S, KILLS = 10.0, 12
DOWN_S = 3.0
RAMP_S = 10.0
END_WITHIN_S = 90.0


class Killer:
    """Kills one node after the other, and starts each again a little later."""

    def __init__(self, nodes: list[GatewayProcess], streams: Streams) -> None:
        self._nodes, self._streams = nodes, streams
        self.kills = 0
        self.least_open = STREAMS

    async def run(self, on_kill: object) -> None:
        assert callable(on_kill)
        started = time.monotonic()
        while self.kills < KILLS:
            node = self._nodes[self.kills % len(self._nodes)]
            await self._until(started + (self.kills + 1) * KILL_EVERY_S)
            self._streams.killed_at = time.monotonic()
            await node.kill()
            self.kills += 1
            on_kill(self.kills)
            await asyncio.sleep(DOWN_S)
            await node.start()

    async def _until(self, when: float) -> None:
        while (left_s := when - time.monotonic()) > 0:
            self.least_open = min(self.least_open, len(self._streams.open))
            await asyncio.sleep(min(0.5, left_s))


async def show(report: Report, _: str | None) -> None:
    async with AsyncExitStack() as parts:
        valkey = await parts.enter_async_context(running_valkey())
        upstream = await parts.enter_async_context(running_upstream())
        nodes = [
            await parts.enter_async_context(running_gateway(upstream=upstream.url, LOG_URL=valkey.url))
            for _ in range(NODES)
        ]
        proxy = await parts.enter_async_context(running_haproxy([node.url for node in nodes]))
        streams = Streams(proxy, SCRIPT, count=STREAMS, connections=CONNECTIONS)
        killer = Killer(nodes, streams)
        try:
            await streams.start(RAMP_S)
            await asyncio.sleep(RAMP_S)
            before, cpu = streams.tokens, valkey.cpu_s()
            with report.progress() as progress:
                task = progress.add_task("kill -9", total=KILLS)
                await killer.run(lambda kills: progress.update(task, completed=kills))
            spent, tokens = valkey.cpu_s() - cpu, streams.tokens - before
            await streams.finish(END_WITHIN_S)
        finally:
            await streams.close()
        _figures(report, streams, killer)
        report.figure("CPU of Valkey", f"{1e6 * spent / max(1, tokens):.1f} µs a token entry")
        names = [answered.conversation_id for answered in streams.answered] + sorted(streams.open)
        found = await audit(nodes[0].url, upstream, names)
        report_findings(report, found)
        _compare(report, streams, found)
        report.none((line for node in nodes for line in node.complaints()), "no traceback in the nodes' logs")


def _figures(report: Report, streams: Streams, killer: Killer) -> None:
    report.figure("kill -9", f"{killer.kills}, one every {KILL_EVERY_S:.0f} s, each back after {DOWN_S:.0f} s")
    report.figure("streams open at any moment", f"at least {killer.least_open} of {STREAMS}")
    report.figure("token entries read", f"{streams.tokens:,}")
    report.figure("reconnects of clients", f"{streams.reconnects:,}")
    report.figure("messages refused and sent again", streams.refused or "none")
    for kind, seconds in (("its node killed", streams.pauses.restarted), ("only its connection", streams.pauses.cut)):
        if seconds:
            told = f"median {median(seconds):.2f} s, worst {max(seconds):.2f} s ({len(seconds):,} streams)"
            report.figure(f"to the next token, {kind}", told)
    report.figure("snapshots seen by clients", sum(answered.snapshots for answered in streams.answered))
    report.check(killer.kills == KILLS, f"{KILLS} kills")
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
