"""One WebSocket connection, 50 conversations streaming at once, with the offline model and no key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.show.gateway_process import GatewayProcess, running_gateway
from benchmarks.show.many import Many
from benchmarks.show.report import Report

TITLE = "50 conversations at once on one connection"
CONVERSATIONS = 50


@asynccontextmanager
async def _gateway(url: str | None) -> AsyncIterator[tuple[str, GatewayProcess | None]]:
    if url is not None:
        yield url.rstrip("/"), None
        return
    async with running_gateway() as gateway:
        yield gateway.url, gateway


async def show(report: Report, url: str | None) -> None:
    """`url`: a gateway that runs already, for instance by `make run`."""
    async with _gateway(url) as (address, gateway):
        many = Many(address, [f"Tell me a long story, number {number}" for number in range(CONVERSATIONS)])
        cpu_s = gateway.cpu_s() if gateway else 0.0
        with report.progress() as progress:
            await many.run(progress, "conversations answered", timeout_s=90)
        if gateway:
            cpu_us = 1e6 * (gateway.cpu_s() - cpu_s) / max(1, many.tokens)
            report.figure("CPU of the gateway", f"{cpu_us:.0f} µs per token frame, set-up and demo model included")
            report.check(not gateway.complaints(), "no traceback in the gateway's log")
    report.figure("frames", f"{sum(ledger.frames for ledger in many.ledgers.values()):,}")
    report.figure("token frames", f"{many.tokens:,}")
    report.figure("seconds", f"{many.seconds:.1f}")
    report.figure("streaming at one moment", many.at_once)
    report.figure("frames of another conversation than the one before", f"{many.switches:,}")
    report.none(many.problems(), f"all {CONVERSATIONS} complete, `seq` without gap or duplicate, `text_length` right")
    report.check(many.begun_together(), "every conversation had begun before the first one ended")
