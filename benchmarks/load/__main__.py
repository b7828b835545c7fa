"""`python -m benchmarks load`: load tests against a gateway, whoever runs it. See README.md beside this file."""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import sys
import time

import orjson
import uvloop
from rich.console import Console
from rich.markup import escape

from benchmarks.load.fleet import Fleet, FleetError
from benchmarks.load.limits import TooManyFiles, raise_file_limit
from benchmarks.load.options import Options, parse
from benchmarks.load.plan import Plan
from benchmarks.load.preflight import Unusable, look
from benchmarks.load.report import print_report
from benchmarks.load.results import results
from benchmarks.load.screen import Screen
from benchmarks.load.totals import Totals
from benchmarks.load.verdict import judge

LOG_WIDTH = 120
PASSED, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


class Run:
    """One load test, from the first look to the last report."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._plan: Plan = options.plan
        self._totals = Totals(self._plan.processes)
        self._fleet = Fleet(self._plan)
        self._screen = Screen(console, self._plan, self._totals)
        self.stopped = False

    async def run(self) -> int:
        """The exit code. Raises `Unusable`, `TooManyFiles` and `FleetError`."""
        plan, console = self._plan, self._console
        most = -(-plan.sockets // plan.processes)
        if words := raise_file_limit(most):
            console.print(words, style="dim")
        console.print(f"{escape(plan.url)}: {await look(plan)}", style="dim", highlight=False)
        began = dt.datetime.now(dt.UTC)
        try:
            await self._fleet.start()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._interrupt)
            await self._watch()
        except _AtOnce:
            pass
        finally:
            await self._fleet.close()
        return self._finish(began)

    async def _watch(self) -> None:
        if self._options.quiet:
            async for report in self._fleet.reports():
                self._totals.take(report)
            return
        with self._screen:
            async for report in self._fleet.reports():
                self._totals.take(report)
                self._screen.show(time.monotonic())

    def _interrupt(self) -> None:
        if self.stopped:
            self._fleet.give_up(_AtOnce())
        self.stopped = self._screen.stopping = True
        self._fleet.stop()

    def _finish(self, began: dt.datetime) -> int:
        options, plan, totals = self._options, self._plan, self._totals
        checks = judge(options.limits, totals, plan, stopped=self.stopped)
        print_report(self._console, plan, totals, checks, stopped=self.stopped)
        if options.json is not None:
            told = results(plan, totals, checks, began=began, stopped=self.stopped)
            options.json.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
        if not all(check.passed for check in checks):
            return FAILED
        return INTERRUPTED if self.stopped else PASSED


class _AtOnce(FleetError):
    """A second Ctrl-C: no more waiting for last answers."""


def main(argv: list[str]) -> int:
    """Runs what the arguments say; returns the exit code. Raises `SystemExit` for arguments that can't be right."""
    options = parse(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    try:
        return uvloop.run(Run(options, console).run())
    except (Unusable, TooManyFiles, FleetError) as problem:
        Console(stderr=True).print(f"load: {problem}", markup=False, highlight=False, soft_wrap=True)
        return UNUSABLE
    except KeyboardInterrupt:  # before the load began
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
