"""`python -m benchmarks`: its arguments, and a run from its beginning to its report."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence

import uvloop
from rich.console import Console

from benchmarks.compare.entrants import ENTRANTS
from benchmarks.compare.runner import Runner
from benchmarks.compare.scale import Bench, Cores, Scale
from benchmarks.compare.scenario import Scenario
from benchmarks.compare.scenarios import SCENARIOS
from benchmarks.compare.tables import rich_table
from benchmarks.native import NoNativeToolsError
from benchmarks.native.run import running_upstream

PAGE = """\
Compares the gateway with its peers at the same work, in interleaved rounds.

  python -m benchmarks                         everything
  python -m benchmarks --quick                 the most telling part of it, in under 2 minutes
  python -m benchmarks NAME …                  these scenarios
  python -m benchmarks list                    what there is
  python -m benchmarks load --url ws://…       a load test of your own deployment: see load --help
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=PAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios, or `list`")
    parser.add_argument("--quick", action="store_true", help="fewer entrants, one short round")
    parser.add_argument("--only", default="", metavar="A,B", help="entrants that take part, where a scenario has them")
    parser.add_argument("--rounds", type=int, help="how often everything is repeated")
    parser.add_argument("--seconds", type=float, help="how long one measurement takes")
    return parser


async def compare(scenarios: Sequence[Scenario], scale: Scale, only: Sequence[str], console: Console) -> None:
    """Measures and reports. Raises `NoNativeToolsError`."""
    cores = Cores.found()
    os.sched_setaffinity(0, {cores.load})  # this process, too, stays away from the server's core
    async with running_upstream(cores.upstream) as upstream:
        results = await Runner(Bench(scale, cores, upstream), ENTRANTS, console).run(scenarios, only)
    for scenario in scenarios:
        console.print(rich_table(results, scenario))


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file: nothing is gained by cutting words
    if given.names == ["list"]:
        for scenario in SCENARIOS.values():
            console.print(f"[bold]{scenario.name}[/]: {scenario.title}")
        return 0
    if unknown := [name for name in given.names if name not in SCENARIOS]:
        parser.error(f"unknown: {', '.join(unknown)}. There are {', '.join(SCENARIOS)}.")
    scale = Scale.fast() if given.quick else Scale.full()
    scale = scale._replace(rounds=given.rounds or scale.rounds, seconds=given.seconds or scale.seconds)
    chosen = [SCENARIOS[name] for name in given.names or SCENARIOS]
    only = [name for name in given.only.split(",") if name]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(compare(chosen, scale, only, console))
    except NoNativeToolsError as problem:
        console.print(f"[red]{problem}[/]")
        return 1
    return 0
