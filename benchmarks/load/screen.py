"""What a run looks like while it goes on: a few tables that renew themselves, or a line now and then without a
terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from benchmarks.load.latency import ACK, BETWEEN, CONNECT, FIRST_TOKEN, RESUME
from benchmarks.load.plan import Plan
from benchmarks.load.tally import VIOLATIONS
from benchmarks.load.totals import BUSY_SHARE, Totals

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
LINE_EVERY_S = 5.0
PHASE_WORDS = {"ramp": "ramping up", "load": "loading", "drain": "waiting for the last answers"}


def sparkline(values: Sequence[float]) -> str:
    """One character a value, from nothing to the largest."""
    top = max(values, default=0.0)
    if top <= 0:
        return BARS[0] * len(values)
    return "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in values)


def ms(value: float) -> str:
    """Milliseconds, to three digits."""
    if value >= 1000:
        return f"{value / 1000:,.2f} s"
    return f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


class Screen:
    """A context; `show` as often as something is new."""

    def __init__(self, console: Console, plan: Plan, totals: Totals) -> None:
        self._console = console
        self._plan = plan
        self._totals = totals
        self._live = Live(console=console, transient=True, refresh_per_second=4, auto_refresh=False)
        self._lines = not console.is_terminal
        self._shown_at = 0.0
        self.stopping = False

    def __enter__(self) -> Self:
        if not self._lines:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if self._lines:
            if now - self._shown_at >= LINE_EVERY_S:
                self._shown_at = now
                self._console.print(self._line(), highlight=False, soft_wrap=True)
        elif now - self._shown_at >= 0.25:
            self._shown_at = now
            self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        return Group(self._head(), self._rates(), self._latencies(), *self._troubles())

    # ------------------------------------------------------------ parts

    @property
    def _elapsed(self) -> str:
        plan, totals = self._plan, self._totals
        whole = {"ramp": plan.ramp_s, "load": plan.duration_s, "drain": plan.drain_s}[totals.phase]
        words = "stopping" if self.stopping else PHASE_WORDS[totals.phase]
        return f"{words} {totals.seconds(totals.phase):.0f}/{whole:.0f} s"

    def _line(self) -> str:
        totals, gauges = self._totals, self._totals.gauges
        counts = totals.counts()
        tokens = totals.tokens_lately(5)
        return (
            f"{self._elapsed}: {gauges.open:,} open, {gauges.running:,} running, {counts.completed:,} answered, "
            f"{sum(tokens) / max(1, len(tokens)):,.0f} tokens/s, first token p99 "
            f"{ms(totals.recent.ms(FIRST_TOKEN, 99))}, {counts.mistakes:,} without answer, {counts.broken:,} broken "
            f"promises, tool {totals.cores:.0%} of a core"
        )

    def _head(self) -> RenderableType:
        totals, gauges = self._totals, self._totals.gauges
        table = Table.grid(padding=(0, 2))
        table.add_row(f"[bold]{escape(self._plan.url)}[/]", f"[cyan]{self._elapsed}[/]")
        table.add_row(
            "connections",
            f"{gauges.open:,} open, {gauges.connecting:,} connecting, {gauges.waiting:,} coming back, "
            f"{gauges.stopped:,} not reading",
        )
        backlog = f", {gauges.backlog:,} due but waiting for a free conversation" if gauges.backlog else ""
        table.add_row("messages", f"{gauges.running:,} running{backlog}")
        style = "bold red" if totals.cores >= BUSY_SHARE else "dim"
        words = " — the load test is the bottleneck: use more --processes" if totals.cores >= BUSY_SHARE else ""
        table.add_row("load test", f"[{style}]{totals.cores:.0%} of a core{words}[/]")
        return table

    def _rates(self) -> RenderableType:
        totals = self._totals
        rates = totals.rates()
        table = Table.grid(padding=(0, 2))
        table.add_row(
            "per second",
            f"{rates.messages:,.1f} messages, {rates.turns:,.1f} answers, [bold]{rates.tokens:,.0f} tokens[/], "
            f"{rates.frames:,.0f} frames, {rates.bytes / 1e6:,.2f} MB",
        )
        table.add_row("tokens", f"[green]{sparkline(totals.tokens_lately(WIDTH))}[/]")
        return table

    def _latencies(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2))
        for column in ("", "p50", "p99", "max", "last 5 s: p50", "p99"):
            table.add_column(column, justify="left" if not column else "right", style="" if column else "cyan")
        totals = self._totals
        for name, words in ((ACK, "acknowledged"), (FIRST_TOKEN, "first token"), (BETWEEN, "between tokens"),
                            (CONNECT, "connect"), (RESUME, "level after a cut")):  # fmt: skip
            if not totals.latencies.count(name):
                continue
            all_of_it, lately = totals.latencies, totals.recent
            table.add_row(
                words, ms(all_of_it.ms(name, 50)), ms(all_of_it.ms(name, 99)), ms(all_of_it.max_ms(name)),
                *((ms(lately.ms(name, 50)), ms(lately.ms(name, 99))) if lately.count(name) else ("", "")),
            )  # fmt: skip
        return table

    def _troubles(self) -> list[RenderableType]:
        counts = self._totals.counts()
        told = [
            ("errors", counts.errors), ("can't connect", counts.unreachable), ("closed", counts.closes),
            ("BROKEN PROMISES", {VIOLATIONS[kind]: number for kind, number in counts.violations.items() if number}),
        ]  # fmt: skip
        table = Table.grid(padding=(0, 2))
        for name, kinds in told:
            if kinds:
                words = ", ".join(f"{kind} {number:,}" for kind, number in kinds.items())
                table.add_row(f"[red]{name}[/]", escape(words))
        return [table] if table.rows else []
