"""What was measured: samples, and the figures over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.histogram import Histogram
from benchmarks.native.run import Load


class Row(NamedTuple):
    scenario: str
    regime: str
    entrant: str


@dataclass
class Sample:
    """One measurement."""

    figures: dict[str, float]
    histograms: dict[str, Histogram] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Why the figures may not be what they seem."""

    @classmethod
    def of(cls, load: Load, **figures: float) -> Sample:
        """What every run of the load client tells, and `figures` beside it."""
        usual = {
            "cpu_us": load.cpu_us_per_token,
            "store_cpu_us": 1e6 * load.store_cpu_s / load.tokens if load.tokens else float("nan"),
            "tokens_per_s": load.tokens_per_s,
            "tokens_per_cpu_s": load.tokens / sum(load.cpu_s) if sum(load.cpu_s) else float("nan"),
            "cores": load.cores,
            "load_cores": load.own_cpu_s / load.seconds if load.seconds else 0.0,
            "frames_per_token": load.frames / load.tokens if load.tokens else float("nan"),
            "p50_us": load.added.percentile_us(50),
            "p99_us": load.added.percentile_us(99),
            "p999_us": load.added.percentile_us(99.9),
        }
        histograms = {"added": load.added, "first_token": load.first_token, "connected": load.connected}
        seen = {name: histogram for name, histogram in histograms.items() if histogram.count}
        return cls(usual | figures, seen, load.problems())


class Figure(NamedTuple):
    """Over the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def over(cls, values: Iterable[float]) -> Figure | None:
        """None when there is no value."""
        known = [value for value in values if value == value]
        return cls(statistics.median(known), min(known), max(known)) if known else None


class Results:
    """Of a whole run, in the order in which it was measured."""

    def __init__(self) -> None:
        self.samples: dict[Row, list[Sample]] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        """(scenario, entrant) that couldn't take part, and why."""

    def add(self, row: Row, sample: Sample) -> None:
        self.samples.setdefault(row, []).append(sample)

    def rows(self, scenario: str) -> list[Row]:
        """By regime, then by entrant, each in order of appearance."""
        mine = [row for row in self.samples if row.scenario == scenario]
        regimes = list(dict.fromkeys(row.regime for row in mine))
        return sorted(mine, key=lambda row: regimes.index(row.regime))

    def values(self, row: Row, figure: str) -> list[float]:
        """One a round; nothing for a row that wasn't measured."""
        return [sample.figures.get(figure, float("nan")) for sample in self.samples.get(row, [])]

    def figure(self, row: Row, figure: str) -> Figure | None:
        return Figure.over(self.values(row, figure))

    def histogram(self, row: Row, name: str) -> Histogram:
        """Of all rounds together."""
        return Histogram.joined(
            sample.histograms[name] for sample in self.samples.get(row, []) if name in sample.histograms
        )

    def ratio(self, figure: str, over: Row, under: Row) -> Figure | None:
        """`over` divided by `under`, within each round. None when one of them is missing."""
        return self.combined(figure, over, under, lambda a, b: a / b if b else float("nan"))

    def combined(self, figure: str, one: Row, other: Row, of: Callable[[float, float], float]) -> Figure | None:
        pairs = zip(self.values(one, figure), self.values(other, figure), strict=False)
        return Figure.over(of(a, b) for a, b in pairs)
