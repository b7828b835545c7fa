"""Runs scenarios: rounds in which all entrants take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.compare.entrants import Entrant, UnavailableError
from benchmarks.compare.results import Results, Row
from benchmarks.compare.scale import Bench
from benchmarks.compare.scenario import Scenario
from benchmarks.native.run import LoadFailedError

REST_S = 0.3
"""Between two servers: sockets close, files are written back."""


class Runner:
    """Nothing is drawn while something is measured: the progress is refreshed between two measurements."""

    def __init__(self, bench: Bench, known: dict[str, Entrant], results: Results, console: Console) -> None:
        """`results` is filled while it runs."""
        self.bench = bench
        self.results = results
        self._known = known
        self._console = console

    async def run(self, scenarios: Sequence[Scenario], only: Sequence[str] = ()) -> None:
        """`only`: entrants that take part, of those that a scenario has."""
        scale = self.bench.scale
        plan = [
            (scenario, number, entrant)
            for scenario in scenarios
            for number in range(scenario.rounds(scale))
            for entrant in self._entrants(scenario, number, only)
        ]
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        )  # fmt: skip
        total = sum(scenario.steps(scale) for scenario, _, _ in plan)
        with Progress(*columns, console=self._console, transient=True, auto_refresh=False) as self._progress:
            self._bar = self._progress.add_task("", total=total)
            for scenario, number, entrant in plan:
                await self._turn(scenario, entrant, number)

    def _entrants(self, scenario: Scenario, number: int, only: Sequence[str]) -> list[Entrant]:
        names = scenario.entrants(self.bench.scale, number)
        return [self._known[name] for name in names if name in self._known and (not only or name in only)]

    async def _turn(self, scenario: Scenario, entrant: Entrant, number: int) -> None:
        """One entrant in one round. What goes wrong is kept in the results, and the run goes on."""
        given, steps = 0, scenario.steps(self.bench.scale)
        where = f"{scenario.name}: round {number + 1} of {scenario.rounds(self.bench.scale)}, {entrant.name}"
        if (scenario.name, entrant.name) not in self.results.skipped:
            self._show(where)
            try:
                async with entrant.start(self.bench.upstream.url, self.bench.cores.server) as running:
                    async for regime, sample in scenario.measure(self.bench, entrant, running):
                        self.results.add(Row(scenario.name, regime, entrant.name), sample)
                        given += 1
                        self._show(where, 1)
            except (UnavailableError, LoadFailedError, RuntimeError, OSError) as problem:
                self.results.skipped[scenario.name, entrant.name] = str(problem) or type(problem).__name__
                self._console.print(f"[yellow]{where}: {escape(str(problem))[:500]}[/]")
            await asyncio.sleep(REST_S)
        self._show(where, max(0, steps - given))

    def _show(self, where: str, advance: int = 0) -> None:
        self._progress.update(self._bar, description=where, advance=advance)
        self._progress.refresh()
