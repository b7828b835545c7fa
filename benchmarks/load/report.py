"""The summary at the end of a run, for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.load.advice import advice
from benchmarks.load.latency import NAMES, PERCENTILES
from benchmarks.load.plan import Plan
from benchmarks.load.screen import WIDTH, ms, sparkline
from benchmarks.load.tally import VIOLATIONS, Counts
from benchmarks.load.totals import Totals
from benchmarks.load.verdict import Check


def print_report(console: Console, plan: Plan, totals: Totals, checks: list[Check], *, stopped: bool) -> None:
    """Prints all of it; the last line says PASS or FAIL."""
    console.print(_figures(plan, totals, stopped=stopped))
    console.print(_latencies(totals))
    counts = totals.counts()
    console.print(_order(counts))
    for example in counts.examples[:5]:
        console.print(f"    [red]{escape(example)}[/]", highlight=False)
    for line in advice(totals, plan):
        console.print(f"  [yellow]→[/] {escape(line)}", highlight=False)
    for check in checks:
        console.print(_check(check), highlight=False)
    passed = all(check.passed for check in checks)
    word = "[bold green]PASS[/]" if passed else "[bold red]FAIL[/]"
    console.print(f"{word} {escape(plan.url)}{', stopped early' if stopped else ''}", highlight=False)


def _figures(plan: Plan, totals: Totals, *, stopped: bool) -> Table:
    counts, rates, phase = totals.counts(), totals.rates(), totals.measured
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_row("load", f"{_load_words(plan)}, for {totals.seconds(phase):.1f} s{' (stopped)' if stopped else ''}")
    table.add_row(
        "per second",
        f"{rates.messages:,.1f} messages, {rates.turns:,.1f} answers, {rates.tokens:,.0f} tokens, "
        f"{rates.frames:,.0f} frames, {rates.bytes / 1e6:,.2f} MB",
    )
    table.add_row("tokens", sparkline(totals.tokens_lately(WIDTH)))
    table.add_row("messages", _message_words(counts))
    table.add_row("connections", _connection_words(counts, totals.most_open))
    for name, kinds in (
        ("errors", counts.errors),
        ("can't connect", counts.unreachable),
        ("closed by the other side", counts.closes),
    ):
        if kinds:
            table.add_row(name, escape(", ".join(f"{kind} {number:,}" for kind, number in sorted(kinds.items()))))
    tools = totals.tools()
    shares = ", ".join(f"{tool.cpu_share:.0%}" for tool in tools)
    late_ms = max(tool.late_ms for tool in tools)
    table.add_row("the load test itself", f"{shares} of a core, its timers up to {ms(late_ms)} late")
    if plan.delete:
        left = f", {totals.undeleted:,} couldn't be" if totals.undeleted else ""
        table.add_row("conversations", f"erased{left}")
    return table


def _load_words(plan: Plan) -> str:
    pace = "no messages" if plan.only_connects else (
        f"{plan.rate:g} messages/s" if plan.rate
        else "one message in every conversation" if plan.in_flight < 0
        else f"{plan.in_flight:,} messages in flight"
    )  # fmt: skip
    each = f" × {plan.conversations:,} conversations" if plan.conversations > 1 else ""
    return f"{plan.connections:,} connections{each}, {pace}, {plan.transport}"


def _message_words(counts: Counts) -> str:
    ends = {reason: number for reason, number in counts.ends.items() if reason != "stop"}
    parts = [f"{counts.messages:,} sent", f"{counts.completed:,} answered"]
    parts += [f"{number:,} of them {reason}" for reason, number in sorted(ends.items())]
    for number, words in (
        (counts.failed, "failed"),
        (counts.refused, "refused"),
        (counts.unended, "without an end"),
        (counts.deleted, "deleted by others"),
        (counts.resent, "sent again after a cut"),
        (counts.lost, "lost by the log and sent again"),
        (counts.calls, "function calls, each answered with an error"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    return ", ".join(parts)


def _connection_words(counts: Counts, most_open: int) -> str:
    parts = [f"{most_open:,} at once", f"{counts.connects:,} made"]
    for number, words in (
        (counts.cuts, "cut by us"),
        (counts.resumes, "conversations resumed"),
        (counts.snapshots, "snapshots"),
        (counts.restarts, "restarts of turns"),
        (counts.goaways, "sent away"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    return ", ".join(parts)


def _latencies(totals: Totals) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    for column in ("count", *(f"p{percentile:g}" for percentile in PERCENTILES), "max"):
        table.add_column(column, justify="right")
    for name, words in NAMES.items():
        if count := totals.latencies.count(name):
            cells = [ms(totals.latencies.ms(name, percentile)) for percentile in PERCENTILES]
            table.add_row(words, f"{count:,}", *cells, ms(totals.latencies.max_ms(name)))
    return table


def _order(counts: Counts) -> str:
    broken = {VIOLATIONS[kind]: number for kind, number in counts.violations.items() if number}
    if not broken:
        return f"  [green]✓[/] {counts.frames:,} frames checked: in order, no gap, no duplicate, every text whole"
    words = ", ".join(f"{number:,} {kind}" for kind, number in broken.items())
    return f"  [red]✗[/] {counts.frames:,} frames checked: {words}"


def _check(check: Check) -> str:
    word = "[green]PASS[/]" if check.passed else "[red]FAIL[/]"
    value, limit = ((f"{check.value:.2%}", f"{check.limit:.2%}") if check.name in ("max-error-rate", "min-connected")
                    else (f"{check.value:,.6g}", f"{check.limit:,.6g}"))  # fmt: skip
    return f"  {word}  --{check.name} {limit}: {value} {escape(check.words)}"
