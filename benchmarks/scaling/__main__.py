"""`python -m benchmarks.scaling`: see the package's page."""

from __future__ import annotations

import argparse
import asyncio
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.scaling import __doc__ as page
from benchmarks.scaling import points, report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=page, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("tell", "measure"), default="tell")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of points: {', '.join(points.GROUPS)}")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(points.GROUPS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(points.GROUPS)}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("")

        def step(what: str) -> None:
            progress.update(bar, description=what)

        if options.what == "measure":
            asyncio.run(_measure(options.groups or list(points.GROUPS), console, step))
        else:
            report.tell(points.Points(), console, step)


async def _measure(groups: Sequence[str], console: Console, step: report.Step) -> None:
    for group in groups:
        points.keep(group, await points.GROUPS[group](step), _machine())
        console.print(f"{group}: measured, in {points.FILE.name}")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    cores = sum(line.startswith("processor") for line in lines)
    return f"{model}, {cores} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
