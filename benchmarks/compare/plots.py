"""The plots of a report, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.compare.results import Results, Row
from benchmarks.compare.scenarios import conversations, cpu, fan_out, first_token, latency, sse

mpl.use("svg")
OURS, FLOOR, THEIRS = "#2563eb", "#94a3b8", "#f59e0b"
Draw = Callable[[Results, Axes], bool]
"""False: there is nothing to draw."""


class Plot(NamedTuple):
    name: str
    scenario: str
    title: str
    draw: Draw


def colour(entrant: str) -> str:
    return OURS if entrant.startswith("gateway") else FLOOR if entrant.startswith("relay") else THEIRS


def _line(axes: Axes, entrant: str, points: Sequence[tuple[float, float]], marker: str = "") -> None:
    """Ours thick, the floor dashed, the others each in a colour of its own."""
    ours, floor = entrant.startswith("gateway"), entrant.startswith("relay")
    style: dict[str, Any] = {"color": FLOOR, "linestyle": "--"} if floor else {"linewidth": 2.5} if ours else {}
    if entrant == "gateway":
        style |= {"color": OURS}
    axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, markersize=4, label=entrant, **style)


def _logarithmic(axes: Axes, ticks: Mapping[float, str], label: str) -> None:
    """Both ways, with numbers that people read."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


def bars(scenario: str, regime: str | None, figure: str, label: str, factor: float = 1.0) -> Draw:
    """One for each entrant, with its spread, the least first."""

    def draw(results: Results, axes: Axes) -> bool:
        found = [
            (row.entrant, value)
            for row in results.rows(scenario)
            if regime in {None, row.regime} and (value := results.figure(row, figure)) is not None
        ]
        found.sort(key=lambda pair: pair[1].median, reverse=True)
        names = [name for name, _ in found]
        medians = [value.median * factor for _, value in found]
        spread = [
            [(value.median - value.least) * factor for _, value in found],
            [(value.greatest - value.median) * factor for _, value in found],
        ]
        axes.barh(names, medians, xerr=spread, color=[colour(name) for name in names], ecolor="#1e293b", capsize=2)
        for place, median in enumerate(medians):
            axes.annotate(f" {median:,.3g}", (median, place), va="center", fontsize=8)
        axes.set_xlabel(label)
        axes.margins(x=0.12)
        return bool(found)

    return draw


def curves(scenario: str, regime: str, histogram: str, label: str) -> Draw:
    """Latency by percentile, with ever finer steps towards 100%: HdrHistogram's plot."""

    def draw(results: Results, axes: Axes) -> bool:
        for row in results.rows(scenario):
            points = results.histogram(row, histogram).curve() if row.regime == regime else []
            if points:
                # As the number of nines: 90% is 10, 99% is 100.
                _line(axes, row.entrant, [(100 / (100 - at), us / 1000) for at, us in points])
        ticks = {1.0: "0%", 2.0: "50%", 1e1: "90%", 1e2: "99%", 1e3: "99.9%", 1e4: "99.99%"}
        _logarithmic(axes, ticks, label)
        return bool(axes.lines)

    return draw


def lines(
    scenario: str, figure: str, x_label: str, y_label: str, factor: float = 1.0, *, from_zero: bool = False
) -> Draw:
    """Along the regimes whose names begin with a number. `from_zero`: for figures that should stay the same."""

    def draw(results: Results, axes: Axes) -> bool:
        series: dict[str, list[tuple[float, float]]] = {}
        for row in results.rows(scenario):
            at, value = _leading_number(row), results.figure(row, figure)
            if at is not None and value is not None:
                series.setdefault(row.entrant, []).append((at, value.median * factor))
        for entrant, points in series.items():
            _line(axes, entrant, sorted(points), "o")
        places = {x for points in series.values() for x, _ in points}
        _logarithmic(axes, {x: f"{x:,g}" for x in sorted(places)}, y_label)
        axes.set_xlabel(x_label)
        if from_zero:
            axes.set_yscale("linear")
            axes.set_ylim(bottom=0)
        return bool(series)

    return draw


def _leading_number(row: Row) -> float | None:
    word = row.regime.split(" ")[0].replace(",", "")
    return float(word) if word.replace(".", "").isdigit() else None


CPU = "CPU µs a token"
PLOTS = (
    Plot("cpu-spread", "cpu-per-token", cpu.SPREAD, bars("cpu-per-token", cpu.SPREAD, "cpu_us", CPU)),
    Plot("cpu-saturated", "cpu-per-token", cpu.SATURATED, bars("cpu-per-token", cpu.SATURATED, "cpu_us", CPU)),
    Plot("latency-half", "latency", latency.HALF, curves("latency", latency.HALF, "added", "added ms")),
    Plot("latency-by-rate", "latency", "p99 by rate",
         lines("latency", "p99_us", "tokens/s", "p99 added ms", 1e-3)),
    Plot("cpu-by-rate", "latency", "CPU of a token by rate", lines("latency", "cpu_us", "tokens/s", CPU)),
    Plot("first-token", "first-token", "median time to the first token added",
         bars("first-token", first_token.REGIME, "first_p50_us", "ms", 1e-3)),
    Plot("question-cpu", "first-token", "CPU of a question",
         bars("first-token", first_token.REGIME, "turn_cpu_us", "CPU ms", 1e-3)),
    Plot("sse", "sse-vs-ws", sse.SSE, bars("sse-vs-ws", sse.SSE, "cpu_us", CPU)),
    *(Plot(f"fan-out-{readers}", "fan-out", fan_out.regime(readers),
           bars("fan-out", fan_out.regime(readers), "cpu_us", "CPU µs a delivered token"))
      for readers in fan_out.READERS),
    Plot("connections", "connection-storm", "an idle connection",
         bars("connection-storm", None, "idle_bytes", "KiB", 1 / 1024)),
    Plot("resume", "resume", "CPU of a client that comes back",
         lines("resume", "client_cpu_us", "tokens missed", "CPU ms a client", 1e-3)),
    Plot("conversations", "conversations", f"{conversations.TOTAL_RATE:,} tokens/s from ever more conversations",
         lines("conversations", "cpu_us", "conversations", CPU, from_zero=True)),
)  # fmt: skip


def draw_all(results: Results, folder: Path) -> dict[str, list[Plot]]:
    """Writes NAME.svg and NAME.png; returns what was drawn, by scenario."""
    drawn: dict[str, list[Plot]] = {}
    for plot in PLOTS:
        canvas = Canvas(figsize=(7.5, 4), layout="constrained")
        axes = canvas.subplots()
        axes.set_title(plot.title, fontsize=10)
        if plot.draw(results, axes):
            for ending in ("svg", "png"):
                canvas.savefig(folder / f"{plot.name}.{ending}", dpi=150)
            drawn.setdefault(plot.scenario, []).append(plot)
    return drawn
