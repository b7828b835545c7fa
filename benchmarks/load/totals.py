"""What all processes have told so far, added up."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from msgspec import Struct

from benchmarks.load.crowd import Gauges
from benchmarks.load.latency import CONNECT, FIRST_TOKEN, Latencies
from benchmarks.load.tally import Counts
from benchmarks.load.worker import PHASES, Phase, Report

WINDOW_S = 5.0
BUSY_SHARE = 0.8
"""Of a core: past this a process of ours is itself what limits the figures."""
LATE_MS = 50.0
"""Past this a timer of ours was so late that it shows in the figures."""


class Rates(NamedTuple):
    """A second."""

    messages: float = 0.0
    turns: float = 0.0
    tokens: float = 0.0
    characters: float = 0.0
    frames: float = 0.0
    bytes: float = 0.0


class Moment(Struct, frozen=True, kw_only=True):
    """One second of the run; the rates are of that second."""

    at_s: float
    """Since the run began."""
    phase: Phase
    open: int
    connecting: int
    waiting: int
    running: int
    messages_per_s: float
    turns_per_s: float
    tokens_per_s: float
    mistakes: int
    """In this second."""
    first_token_p99_ms: float
    """0: none came."""
    tool_cpu: float
    """The busiest process of the load test, in cores."""


class Tool(Struct, frozen=True, kw_only=True):
    """What one process of the load test needed."""

    cpu_s: float
    cpu_share: float
    """Of a core, while the load lasted."""
    late_ms: float
    """The latest that one of its timers was in that time."""
    often_late: bool
    """In more than a twentieth of the half seconds."""


class _Seen:
    """One process."""

    def __init__(self) -> None:
        self.counts: dict[Phase, Counts] = {}
        self.seconds: dict[Phase, float] = {}
        self.gauges = Gauges()
        self.cpu: dict[Phase, tuple[float, float]] = {}
        """When and with how much CPU time the phase was first heard of."""
        self.last = (0.0, 0.0)
        self.share = 0.0
        self.lags: list[float] = []

    def take(self, report: Report) -> None:
        self.counts[report.phase] = report.counts
        self.seconds[report.phase] = report.seconds
        self.gauges = report.gauges
        before, self.last = self.last, (report.at, report.cpu_s)
        self.cpu.setdefault(report.phase, before if before[0] else self.last)
        if before[0] and report.at > before[0]:
            self.share = (report.cpu_s - before[1]) / (report.at - before[0])
        if report.phase == "load":
            self.lags.append(report.lag_ms)

    def tool(self) -> Tool:
        began = self.cpu.get("load") or self.last
        ended = self.cpu.get("drain") or self.last
        seconds = ended[0] - began[0]
        return Tool(
            cpu_s=round(self.last[1], 3),
            cpu_share=round((ended[1] - began[1]) / seconds, 3) if seconds > 0 else 0.0,
            late_ms=round(max(self.lags, default=0.0), 1),
            often_late=sum(lag > LATE_MS for lag in self.lags) > len(self.lags) / 20,
        )


class Totals:
    """`latencies` are of the load and of what came after it, since who answers late is measured too; those of
    connecting are of the whole run. Until the load begins they are the ramp's."""

    def __init__(self, processes: int) -> None:
        self.latencies = Latencies()
        self.recent = Latencies()
        """Of the last whole window."""
        self.phase: Phase = "ramp"
        self.timeline: list[Moment] = []
        self.undeleted = 0
        self.most_open = 0
        """Connections at the best moment."""
        self._workers = [_Seen() for _ in range(processes)]
        self._window = Latencies()
        self._window_began = self._began = 0.0
        self._second = Latencies()
        self._second_began = 0.0
        self._before = Counts()

    def take(self, report: Report) -> None:
        if not self._began:
            self._began = self._window_began = self._second_began = report.at - report.seconds
        if PHASES.index(report.phase) > PHASES.index(self.phase):
            self._turn_to(report.phase)
        self._workers[report.worker].take(report)
        self.undeleted += report.undeleted
        self.most_open = max(self.most_open, self.gauges.open)
        late = report.phase == "ramp" and self.phase != "ramp"
        self.latencies.add({name: each for name, each in report.latencies.items() if not late or name == CONNECT})
        self._window.add(report.latencies)
        self._second.add(report.latencies)
        if report.at - self._window_began >= WINDOW_S:
            self.recent, self._window, self._window_began = self._window, Latencies(), report.at
        if report.at - self._second_began >= 1.0:
            self._tick(report.at)

    def _turn_to(self, phase: Phase) -> None:
        if phase == "load":
            connects = self.latencies.encoded(CONNECT)
            self.latencies = Latencies()
            self.latencies.add({CONNECT: connects})
        self.phase = phase

    def _tick(self, at: float) -> None:
        """Another second is over."""
        counts, gauges, seconds = self.counts(), self.gauges, at - self._second_began
        before = self._before
        self.timeline.append(
            Moment(
                at_s=round(at - self._began, 2),
                phase=self.phase,
                open=gauges.open,
                connecting=gauges.connecting,
                waiting=gauges.waiting,
                running=gauges.running,
                messages_per_s=round((counts.messages - before.messages) / seconds, 1),
                turns_per_s=round((counts.completed - before.completed) / seconds, 1),
                tokens_per_s=round((counts.tokens - before.tokens) / seconds, 1),
                mistakes=counts.mistakes - before.mistakes,
                first_token_p99_ms=round(self._second.ms(FIRST_TOKEN, 99), 2),
                tool_cpu=round(max(worker.share for worker in self._workers), 3),
            )
        )
        self._before, self._second, self._second_began = counts, Latencies(), at

    # ------------------------------------------------------------ sums

    def counts(self, *phases: Phase) -> Counts:
        """Of these phases; of the whole run by default."""
        total = Counts()
        for worker in self._workers:
            for phase in phases or PHASES:
                if (counts := worker.counts.get(phase)) is not None:
                    total.add(counts)
        return total

    def seconds(self, phase: Phase) -> float:
        return max((worker.seconds.get(phase, 0.0) for worker in self._workers), default=0.0)

    @property
    def measured(self) -> Phase:
        """The phase that the rates are of: the load, or the ramp when the run was stopped before."""
        return "load" if self.seconds("load") else "ramp"

    def rates(self) -> Rates:
        counts, seconds = self.counts(self.measured), self.seconds(self.measured)
        if not seconds:
            return Rates()
        figures = (counts.messages, counts.completed, counts.tokens, counts.characters, counts.frames, counts.bytes)
        return Rates(*(figure / seconds for figure in figures))

    @property
    def gauges(self) -> Gauges:
        total = Gauges()
        for worker in self._workers:
            total += worker.gauges
        return total

    def tools(self) -> list[Tool]:
        return [worker.tool() for worker in self._workers]

    @property
    def cores(self) -> float:
        """What the busiest process of ours uses at present."""
        return max(worker.share for worker in self._workers)

    @property
    def is_bottleneck(self) -> bool:
        return any(tool.cpu_share >= BUSY_SHARE or tool.often_late for tool in self.tools())

    def tokens_lately(self, count: int) -> list[float]:
        """Tokens a second, of the last so many seconds."""
        return [moment.tokens_per_s for moment in deque(self.timeline, count)]
