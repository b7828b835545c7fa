"""Shows that the gateway keeps its promises, each with real processes on this machine.

    python -m benchmarks.show            all of them, with a summary
    python -m benchmarks.show cuts       one of them, or several

The exit code is 1 when a check failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.show import (
    cancel,
    cluster,
    cost_growth,
    cuts,
    eviction,
    fifty,
    long_conversation,
    mcp_time,
    parallel_calls,
    partition,
    real_upstream,
    redis_faults,
    restart_call,
    seed_stream,
    slow_reader,
    workers,
    zombie,
)
from benchmarks.show.report import Report

Show = Callable[[Report, str | None], Awaitable[None]]
SHOWS: dict[str, tuple[str, Show]] = {
    "fifty": (fifty.TITLE, fifty.show),
    "real-upstream": (real_upstream.TITLE, real_upstream.show),
    "cuts": (cuts.TITLE, cuts.show),
    "slow-reader": (slow_reader.TITLE, slow_reader.show),
    "eviction": (eviction.TITLE, eviction.show),
    "cancel": (cancel.TITLE, cancel.show),
    "seed-stream": (seed_stream.TITLE, seed_stream.show),
    "parallel-calls": (parallel_calls.TITLE, parallel_calls.show),
    "restart-call": (restart_call.TITLE, restart_call.show),
    "mcp": (mcp_time.TITLE, mcp_time.show),
    "long-conversation": (long_conversation.TITLE, long_conversation.show),
    "cluster": (cluster.TITLE, cluster.show),
    "rolling": (cluster.ROLLING_TITLE, cluster.show_rolling),
    "zombie": (zombie.TITLE, zombie.show),
    "redis-faults": (redis_faults.TITLE, redis_faults.show),
}
WHEN_NAMED: dict[str, tuple[str, Show]] = {
    "partition": (partition.TITLE, partition.show),
    "workers": (workers.TITLE, workers.show),
    "cost-growth": (cost_growth.TITLE, cost_growth.show),
}
"""Run when named: the first has to be root, the others show figures only."""


async def run(names: list[str], url: str | None, console: Console) -> list[Report]:
    reports = []
    for name in names:
        title, show = {**SHOWS, **WHEN_NAMED}[name]
        console.print(f"[bold]{name}[/]: {title}")
        report = Report(title, console)
        try:
            await show(report, url)
        except (TimeoutError, RuntimeError, OSError) as problem:
            report.check(False, f"{type(problem).__name__}: {str(problem) or 'not done in time'}")
        report.print()
        reports.append(report)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.show", description="Shows that the gateway keeps its promises."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join([*SHOWS, *WHEN_NAMED])}; default: all")
    parser.add_argument("--url", help="for `fifty`: a gateway that runs already, such as http://127.0.0.1:8080")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in SHOWS and name not in WHEN_NAMED]:
        parser.error(f"unknown: {', '.join(unknown)}. There are {', '.join([*SHOWS, *WHEN_NAMED])}.")
    console = Console()
    names = given.names or list(SHOWS)
    reports = uvloop.run(run(names, given.url, console))
    if len(reports) > 1:
        table = Table(title="Summary")
        for column in ("show", "", "seconds"):
            table.add_column(column)
        for name, report in zip(names, reports, strict=True):
            table.add_row(name, "[green]PASS[/]" if report.passed else "[red]FAIL[/]", f"{report.seconds:.0f}")
        console.print(table)
    return 0 if all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
