"""What is to be reached, and what was."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.compare.results import Figure, Results, Row
from benchmarks.compare.scenarios import conversations, cpu, fan_out, latency, memory, resume, sse

NOTHING_KIB = 0.5
"""Less than this for each of 2,000 conversations isn't told from nothing: memory is handed out in pages and arenas."""
KIB = 1024
Measure = Callable[[Results], Figure | None]


class Target(NamedTuple):
    text: str
    at_least: float
    aim: float
    unit: str
    measure: Measure
    less_is_better: bool = False

    def verdict(self, found: Figure | None) -> str:
        if found is None:
            return "not measured"
        sign = -1 if self.less_is_better else 1
        if sign * found.median >= sign * self.aim:
            return "aim reached"
        return "reached" if sign * found.median >= sign * self.at_least else "NOT REACHED"


def _times(figure: str, scenario: str, regime: str, over: str, under: str) -> Measure:
    """How many times more `over` needs than `under`, within each round."""
    return lambda results: results.ratio(figure, Row(scenario, regime, over), Row(scenario, regime, under))


def _each(figure: str, scenario: str, entrant: str, regime: str | None = None, factor: float = 1.0) -> Measure:
    def measured(results: Results) -> Figure | None:
        rows = [row for row in results.rows(scenario) if row.entrant == entrant and regime in {None, row.regime}]
        found = results.figure(rows[0], figure) if rows else None
        return Figure(*(value * factor for value in found)) if found else None

    return measured


def _between(figure: str, scenario: str, entrant: str, over: str, under: str) -> Measure:
    """The same entrant in two regimes."""
    return lambda results: results.ratio(figure, Row(scenario, over, entrant), Row(scenario, under, entrant))


def _cpu(text: str, at_least: float, aim: float, regime: str, entrant: str) -> Target:
    measure = _times("cpu_us", "cpu-per-token", regime, "fastapi", entrant)
    return Target(f"CPU per token against FastAPI + typed SDK, {text}", at_least, aim, "× less", measure)


_HUNDRED, _MOST = conversations.regime(100), conversations.regime(10_000)
_SHORT, _LONG = (resume.regime(missed) for missed in resume.MISSED[-2:])
_BOTH = (("batching off", "gateway"), ("default batching", "gateway-batched"))
TARGETS = (
    _cpu("batching off, 100 × 50/s", 6, 10, cpu.SPREAD, "gateway"),
    _cpu("batching off, saturated", 6, 10, cpu.SATURATED, "gateway"),
    _cpu("default batching, 100 × 50/s", 8, 14, cpu.SPREAD, "gateway-batched"),
    _cpu("default batching, saturated", 8, 14, cpu.SATURATED, "gateway-batched"),
    Target("CPU per token against the C relay, saturated, memory:, batching off", 3, 2, "× more",
           _times("cpu_us", "cpu-per-token", cpu.SATURATED, "gateway-memory", "relay"), less_is_better=True),
    *(Target(f"SSE against LiteLLM's proxy, CPU per token, {batching}", 8, 15, "× less",
             _times("cpu_us", "sse-vs-ws", sse.SSE, "litellm", entrant))
      for batching, entrant in _BOTH),
    *(Target(f"fan-out against Node ws, CPU per delivered token, {readers} readers, {batching}", 2, 3, "× less",
             _times("cpu_us", "fan-out", fan_out.regime(readers), "node-fanout", entrant))
      for readers in fan_out.READERS for batching, entrant in _BOTH),
    Target("p99 added delay against FastAPI, at half of its breaking rate, batching off", 5, 20, "× lower",
           _times("p99_us", "latency", latency.HALF, "fastapi", "gateway")),
    Target("memory of an idle connection", 16, 8, "KiB",
           _each("idle_bytes", "connection-storm", "gateway", factor=1 / KIB), less_is_better=True),
    Target("memory of an idle conversation in the pool", 4, 2, "KiB",
           _each("each_bytes", "memory", "gateway", memory.IDLE, 1 / KIB), less_is_better=True),
    Target("memory of an evicted conversation (nothing: below what can be told)", NOTHING_KIB, NOTHING_KIB, "KiB",
           _each("each_bytes", "memory", memory.EVICTING, memory.EVICTED, 1 / KIB), less_is_better=True),
    Target("10,000 against 100 conversations at the same total rate, CPU per token", 1.3, 1.1, "×",
           _between("cpu_us", "conversations", "gateway", _MOST, _HUNDRED), less_is_better=True),
    Target("resume: CPU per byte when ten times as much was missed", 1.1, 1.0, "×",
           _between("byte_cpu_ns", "resume", "gateway", _LONG, _SHORT), less_is_better=True),
)  # fmt: skip
HEADINGS = ["target", "at least", "aim", "measured", "verdict"]


def lines(results: Results) -> list[list[str]]:
    """Of the table, one a target."""
    return [_line(target, target.measure(results)) for target in TARGETS]


def _line(target: Target, found: Figure | None) -> list[str]:
    bound = "≤ " if target.less_is_better else "≥ "
    limits = [f"{bound}{value:g} {target.unit}" for value in (target.at_least, target.aim)]
    if found is None:
        return [target.text, *limits, "–", target.verdict(found)]
    spread = f" ({found.least:.2f}–{found.greatest:.2f})" if found.least != found.greatest else ""
    return [target.text, *limits, f"{found.median:.2f}{spread} {target.unit}", target.verdict(found)]
