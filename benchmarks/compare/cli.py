"""`python -m benchmarks`: its arguments, and a run from its beginning to its report."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.compare import targets
from benchmarks.compare.cores import Cores
from benchmarks.compare.entrants import ENTRANTS
from benchmarks.compare.machine import described
from benchmarks.compare.raw import decoded
from benchmarks.compare.report import write
from benchmarks.compare.results import Results
from benchmarks.compare.runner import Runner
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Scenario
from benchmarks.compare.scenarios import SCENARIOS
from benchmarks.compare.tables import rich_table
from benchmarks.native import NoNativeToolsError
from benchmarks.native.run import running_upstream

REPORTS = "benchmarks-report"
PAGE = """\
Compares the gateway with its peers at the same work, in interleaved rounds.

  python -m benchmarks                         everything
  python -m benchmarks --quick                 the most telling part of it, in under 2 minutes
  python -m benchmarks NAME …                  these scenarios
  python -m benchmarks list                    what there is
  python -m benchmarks report FOLDER           writes a report anew from its raw data
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
    parser.add_argument("--report", type=Path, metavar="FOLDER", help=f"default: a new one in {REPORTS}/")
    return parser


def _folder(given: argparse.Namespace) -> Path:
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    return given.report or Path(REPORTS) / (stamp + ("-quick" if given.quick else ""))


def _list(console: Console) -> None:
    scale = Scale.full()
    for scenario in SCENARIOS.values():
        console.print(f"[bold]{scenario.name}[/]: {scenario.title}")
        console.print(f"    [dim]{', '.join(scenario.entrants(scale))}[/]")
    console.print("\n[bold]entrants[/]")
    for entrant in ENTRANTS.values():
        console.print(f"  {entrant.name}: {entrant.what}")


async def compare(
    scenarios: Sequence[Scenario], scale: Scale, only: Sequence[str], folder: Path, console: Console
) -> None:
    """Measures and reports, when it is cancelled too: what was measured by then. Raises `NoNativeToolsError`."""
    cores = Cores.found()
    machine = described(cores)
    usable = os.sched_getaffinity(0)
    results = Results()
    try:
        os.sched_setaffinity(0, {cores.load})  # this process, too, stays away from the server's core
        async with running_upstream(cores.upstream) as upstream:
            await Runner(Bench(scale, cores, upstream), ENTRANTS, results, console).run(scenarios, only)
    finally:
        os.sched_setaffinity(0, usable)
        if results.samples:
            _show(results, scenarios, console)
            write(results, scenarios, machine, folder)
            console.print(f"The report is in {folder}: report.md, report.html, plots, HDR histograms, raw.json")


def _show(results: Results, scenarios: Sequence[Scenario], console: Console) -> None:
    for scenario in scenarios:
        if results.rows(scenario.name):
            console.print(rich_table(results, scenario))
    table = Table(*targets.HEADINGS, title="Targets", title_justify="left")
    for line in targets.lines(results):
        if line[-1] != "not measured":
            table.add_row(*line)
    if table.row_count:
        console.print(table)


def again(folder: Path, console: Console) -> None:
    """Writes a report anew from its raw data. Raises `OSError`, `ValueError`."""
    results, machine = decoded((folder / "raw.json").read_bytes())
    scenarios = list(SCENARIOS.values())
    write(results, scenarios, machine, folder)
    _show(results, scenarios, console)


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file: nothing is gained by cutting words
    if given.names == ["list"]:
        _list(console)
        return 0
    if given.names[:1] == ["report"] and len(given.names) == 2:
        again(Path(given.names[1]), console)
        return 0
    if unknown := [name for name in given.names if name not in SCENARIOS]:
        parser.error(f"unknown: {', '.join(unknown)}. There are {', '.join(SCENARIOS)}.")
    scale = Scale.fast() if given.quick else Scale.full()
    scale = scale._replace(rounds=given.rounds or scale.rounds, seconds=given.seconds or scale.seconds)
    chosen = [SCENARIOS[name] for name in given.names or SCENARIOS]
    only = [name for name in given.only.split(",") if name]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(compare(chosen, scale, only, _folder(given), console))
    except NoNativeToolsError as problem:
        console.print(f"[red]{problem}[/]")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
