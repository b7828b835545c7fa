"""How long things took: HDR histograms, filled in bulk because one `record_value` costs as much as reading a token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped] # it has no types

ACK, FIRST_TOKEN, BETWEEN, TURN, CONNECT, RESUME = "ack", "first_token", "between_tokens", "turn", "connect", "resume"
NAMES = {
    ACK: "acknowledged",
    FIRST_TOKEN: "first token",
    BETWEEN: "between tokens",
    TURN: "whole answer",
    CONNECT: "connect",
    RESUME: "level after a cut",
}
"""What is measured, and how it is called. The first four from when a message was due; see `dispatch`."""

MAX_US = 3_600_000_000
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def histogram() -> HdrHistogram:
    """Whole microseconds up to an hour, to three digits."""
    return HdrHistogram(1, MAX_US, 3)


class Stopwatch:
    """Collects one kind of duration; `flush` hands over what came since the last time."""

    __slots__ = ("_seconds", "add")

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self.add = self._seconds.append
        """Takes seconds."""

    def flush(self) -> str:
        """The new values as an encoded histogram, empty when there are none."""
        if not self._seconds:
            return ""
        made = histogram()
        for us, count in Counter([int(seconds * 1e6) for seconds in self._seconds]).items():
            made.record_value(min(max(us, 1), MAX_US), count)
        self._seconds.clear()
        return bytes(made.encode()).decode("ascii")


class Stopwatches:
    """One for each of `NAMES`."""

    __slots__ = ("ack", "between_tokens", "connect", "first_token", "resume", "turn")

    def __init__(self) -> None:
        for name in NAMES:
            setattr(self, name, Stopwatch())

    ack: Stopwatch
    first_token: Stopwatch
    between_tokens: Stopwatch
    turn: Stopwatch
    connect: Stopwatch
    resume: Stopwatch

    def flush(self) -> dict[str, str]:
        return {name: encoded for name in NAMES if (encoded := getattr(self, name).flush())}


class Latencies:
    """What all processes measured."""

    def __init__(self) -> None:
        self._made = {name: histogram() for name in NAMES}

    def add(self, encoded: Mapping[str, str]) -> None:
        for name, text in encoded.items():
            self._made[name].decode_and_add(text.encode())

    def count(self, name: str) -> int:
        return int(self._made[name].get_total_count())

    def ms(self, name: str, percentile: float) -> float:
        """Milliseconds that so many percent of all didn't exceed; 0 when nothing was measured."""
        return float(self._made[name].get_value_at_percentile(percentile)) / 1e3 if self.count(name) else 0.0

    def max_ms(self, name: str) -> float:
        return float(self._made[name].get_max_value()) / 1e3 if self.count(name) else 0.0

    def mean_ms(self, name: str) -> float:
        return float(self._made[name].get_mean_value()) / 1e3 if self.count(name) else 0.0

    def encoded(self, name: str) -> str:
        """HdrHistogram V2, compressed, base64: other tools of that family read it. Values are microseconds."""
        return bytes(self._made[name].encode()).decode("ascii")
