"""Latencies as the load client counts them, and what is read from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

LARGEST_US = 3_600_000_000
DIGITS = 3


@dataclass(frozen=True)
class Histogram:
    """Values in microseconds and how often each was seen, in ascending order.

    Values are the middles of the client's buckets, 0.1% apart (`native/histogram.h`); `max_us` is exact.
    """

    counts: tuple[tuple[int, int], ...] = ()
    max_us: int = 0

    @classmethod
    def told(cls, raw: Mapping[str, Any]) -> Histogram:
        """From the client's JSON."""
        return cls(tuple((value, count) for value, count in raw["buckets"]), raw["max"])

    @classmethod
    def joined(cls, several: Iterable[Histogram]) -> Histogram:
        """All that any of them has seen."""
        sums: Counter[int] = Counter()
        largest = 0
        for histogram in several:
            largest = max(largest, histogram.max_us)
            for value, count in histogram.counts:
                sums[value] += count
        return cls(tuple(sorted(sums.items())), largest)

    @property
    def count(self) -> int:
        return sum(count for _, count in self.counts)

    def percentile_us(self, percent: float) -> float:
        """The smallest value that `percent` of all aren't above; not a number when nothing was seen."""
        wanted = math.ceil(self.count * percent / 100) or 1
        for value, count in self.counts:
            wanted -= count
            if wanted <= 0:
                return float(min(value, self.max_us))
        return math.nan

    def mean_us(self) -> float:
        return sum(value * count for value, count in self.counts) / self.count if self.counts else math.nan

    def curve(self, points_per_half: int = 20) -> list[tuple[float, float]]:
        """(percentile, microseconds) with ever finer steps towards 100, as HdrHistogram's own plots have them."""
        made: list[tuple[float, float]] = []
        if not self.counts:
            return made
        rest, last = 1.0, 1 - 1 / self.count
        while rest * self.count > 1:
            shares = (1 - rest * (1 - step / (2 * points_per_half)) for step in range(points_per_half))
            made += [(100 * share, self.percentile_us(100 * share)) for share in shares if share < last]
            rest /= 2
        made.append((100 * last, float(self.max_us)))
        return made

    def hdr(self) -> HdrHistogram:
        """As the library's, for its percentile files and its compact encoding."""
        made = HdrHistogram(1, LARGEST_US, DIGITS)
        for value, count in self.counts:
            made.record_value(max(1, min(value, LARGEST_US)), count)
        return made
