"""What the load test itself costs, so that nobody mistakes its limits for a gateway's.

    python -m benchmarks.load.ceiling [--duration 5]

It reads from a stand-in that has neither a model nor a log, each on a core of its own where there are two. CPU time is
that of the load process, user and system, while the load lasts. In a flood many tokens come with one read; in the other
regimes each token is a read of its own, which is the most expensive way in which tokens can come.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.load.fleet import ROOT, Fleet
from benchmarks.load.plan import Plan, Transport
from benchmarks.load.totals import Totals

TRANSPORTS: tuple[Transport, ...] = ("json", "msgpack", "sse")


class Regime(NamedTuple):
    name: str
    connections: int
    tokens: int
    """In an answer."""
    rate: float
    """Of them a second; 0: all at once."""


REGIMES = (
    Regime("flood: answers of 400 tokens at once", 50, 400, 0),
    Regime("1,000 streams of 50 tokens/s", 1000, 200, 50),
    Regime("100 streams of 50 tokens/s", 100, 200, 50),
)


async def measure(url: str, regime: Regime, transport: Transport, duration_s: float) -> Totals:
    plan = Plan(
        url=url,
        run_id=secrets.token_hex(4),
        transport=transport,
        connections=regime.connections,
        ramp_s=2.0,
        duration_s=duration_s,
    )
    totals, fleet = Totals(1), Fleet(plan)
    try:
        await fleet.start()
        async for report in fleet.reports():
            totals.take(report)
    finally:
        await fleet.close()
    return totals


@asynccontextmanager
async def stand_in(regime: Regime) -> AsyncIterator[str]:
    """On the first core; what is started inside runs on the others."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.load.stand_in", "--tokens", str(regime.tokens), "--rate", str(regime.rate),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        if len(cores) > 1:
            os.sched_setaffinity(process.pid, cores[:1])
            os.sched_setaffinity(0, cores[1:])
        yield f"ws://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        if len(cores) > 1:
            os.sched_setaffinity(0, cores)
        process.terminate()
        await process.wait()


async def run(console: Console, duration_s: float) -> bool:
    """True when every frame was right."""
    table = Table("regime", "transport", title="One process of the load test")
    for column in ("tokens/s", "CPU of a core", "CPU µs a token", "tokens a CPU-second"):
        table.add_column(column, justify="right")
    right = True
    for regime in REGIMES:
        async with stand_in(regime) as url:
            for transport in TRANSPORTS:
                totals = await measure(url, regime, transport, duration_s)
                right = right and not totals.counts().broken and not totals.counts().mistakes
                rate, share = totals.rates().tokens, totals.tools()[0].cpu_share
                table.add_row(
                    regime.name, transport, f"{rate:,.0f}", f"{share:.0%}",
                    f"{share / rate * 1e6:.2f}", f"{rate / share:,.0f}",
                )  # fmt: skip
    console.print(table)
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=float, default=5.0, metavar="SECONDS", help="of each measurement (5)")
    return 0 if uvloop.run(run(Console(width=120), parser.parse_args().duration)) else 1


if __name__ == "__main__":
    sys.exit(main())
