"""What a token costs the whole gateway: CPU of its process at 100 streams of 50 tokens a second over WebSocket.

Figures only: `benchmarks` proper compares them with peers, in interleaved rounds and on a core of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.show.gateway_process import UpstreamProcess, running_gateway, running_upstream
from benchmarks.show.many import Many
from benchmarks.show.report import Report

TITLE = "CPU of a token at 100 streams × 50 tokens/s"
STREAMS, RATE = 100, 50
CONNECTIONS = 25
SECONDS = 10
WARM_UP_S = 2.0
SCRIPT = f"tokens={int(RATE * (SECONDS + 2 * WARM_UP_S))} rate={RATE} size=5"
SETTINGS: dict[str, dict[str, Any]] = {
    f"{log}, {batching}": {"LOG_URL": url, **settings}
    for log, url in (("sqlite:", "sqlite:cost.db"), ("memory:", "memory:"))
    for batching, settings in (("batching off", {"BATCH_CHARS": 0}), ("default batching", {}))
}


async def _cpu_us(report: Report, upstream: UpstreamProcess, name: str, settings: dict[str, Any]) -> float:
    """CPU microseconds of the gateway for each token that the upstream sent, once all streams run."""
    async with running_gateway(upstream=upstream.url, **settings) as gateway:
        per_connection = STREAMS // CONNECTIONS
        several = [Many(gateway.url, [SCRIPT] * per_connection) for _ in range(CONNECTIONS)]
        with report.progress() as progress:
            group = [asyncio.create_task(many.run(progress, name, timeout_s=60)) for many in several]
            await asyncio.sleep(WARM_UP_S)
            before = gateway.cpu_s()
            await asyncio.sleep(SECONDS)
            spent = gateway.cpu_s() - before
            await asyncio.gather(*group)
        report.none([problem for many in several for problem in many.problems()], f"{name}: all complete, in order")
        return 1e6 * spent / (STREAMS * RATE * SECONDS)


async def show(report: Report, _: str | None) -> None:
    async with running_upstream() as upstream:
        for name, settings in SETTINGS.items():
            report.figure(name, f"{await _cpu_us(report, upstream, name, settings):.0f} µs a token")
            await upstream.forget()
