"""Metrics for Prometheus whose hot path is a few integer additions.

prometheus-client takes a lock and several objects for each observation, microseconds that every token would pay.
So counts live in plain attributes of the instruments here and become Prometheus' samples only when `/metrics` is
read. They are touched from the event loop's thread alone; a scrape runs there too.

Labels come from closed sets (outcomes, error codes), never from ids: those belong in logs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from protocol.codes import ErrorCode

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DURATION_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS_BUCKETS = (1.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 25000.0)
RATE_BUCKETS = (1.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0)

OUTCOMES = ("completed", "cancelled", "failed")
OTHER = "other"
"""Stands for a label value outside its closed set, so that no mistake can make new series."""


class Counter:
    """Only goes up."""

    __slots__ = ("_help", "_name", "value")

    def __init__(self, name: str, help: str) -> None:  # noqa: A002  # Prometheus' own word
        self._name, self._help = name, help
        self.value = 0

    def inc(self, n: int = 1) -> None:
        self.value += n

    def collect(self) -> Metric:
        return CounterMetricFamily(self._name, self._help, value=self.value)


class LabelledCounter:
    """A counter for each value of one label, of a set that is fixed when it is made."""

    __slots__ = ("_help", "_label", "_name", "values")

    def __init__(self, name: str, help: str, label: str, known: Iterable[str]) -> None:  # noqa: A002  # as above
        self._name, self._help, self._label = name, help, label
        self.values = dict.fromkeys((*known, OTHER), 0)

    def inc(self, value: str) -> None:
        self.values[value if value in self.values else OTHER] += 1

    def collect(self) -> Metric:
        family = CounterMetricFamily(self._name, self._help, labels=[self._label])
        for value, count in self.values.items():
            # A code that never came up is a series that says nothing; an outcome at 0 is news.
            if count or value in OUTCOMES:
                family.add_metric([value], count)
        return family


class Histogram:
    """Counts observations in buckets; `bounds` are their inclusive upper ends, ascending, without infinity."""

    __slots__ = ("_bounds", "_help", "_name", "counts", "sum")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:  # noqa: A002  # as above
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"the buckets of {name} don't ascend")
        self._name, self._help, self._bounds = name, help, tuple(bounds)
        self.counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, n: int = 1) -> None:
        """`n` observations of the same value."""
        self.counts[bisect_left(self._bounds, value)] += n
        self.sum += value * n

    def collect(self) -> Metric:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
        family = HistogramMetricFamily(self._name, self._help)
        family.add_metric([], buckets, sum_value=self.sum)
        return family


class _Gauge:
    __slots__ = ("_help", "_name", "_read")

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:  # noqa: A002  # as above
        self._name, self._help, self._read = name, help, read

    def collect(self) -> Metric:
        return GaugeMetricFamily(self._name, self._help, value=self._read())


class _Instrument(Protocol):
    def collect(self) -> Metric: ...


_I = TypeVar("_I", bound=_Instrument)


class Metrics(Collector):
    """All metrics of one gateway, in a registry of their own. No globals: two gateways in a process are apart."""

    def __init__(self) -> None:
        self._instruments: dict[str, _Instrument] = {}
        self._registry = CollectorRegistry()
        self._started = self.counter("convobase_streams_started_total", "Turns that began to ask a model.")
        self.taken_over = self.counter(
            "convobase_conversations_taken_over_total", "Conversations with open turns whose owner was gone."
        )
        self._completed = self._add(
            "convobase_streams_completed_total",
            LabelledCounter("convobase_streams_completed_total", "Turns that ended.", "outcome", OUTCOMES),
        )
        self._errors = self._add(
            "convobase_stream_errors_total",
            LabelledCounter(
                "convobase_stream_errors_total", "Turns that failed, by error code.", "code", ErrorCode.__members__
            ),
        )
        self._tokens = self.counter("convobase_tokens_total", "Token entries that readers could see.")
        self._latency = self.histogram(
            "convobase_stream_token_latency_seconds",
            "From when a token could have been read from upstream, at the earliest, until readers could see it.",
            LATENCY_BUCKETS_S,
        )
        self._first_token = self.histogram(
            "convobase_stream_first_token_seconds", "From a turn's start to its first token.", FIRST_TOKEN_BUCKETS_S
        )
        self._duration = self.histogram(
            "convobase_stream_duration_seconds", "From a turn's start to its end.", DURATION_BUCKETS_S
        )
        self._stream_tokens = self.histogram("convobase_stream_tokens", "Token entries of a turn.", TOKENS_BUCKETS)
        self._rate = self.histogram(
            "convobase_stream_tokens_per_second", "Token entries of a turn, by its duration.", RATE_BUCKETS
        )
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    # ------------------------------------------------------------ the turn engine's

    def stream_started(self) -> None:
        self._started.value += 1

    def first_token(self, seconds: float) -> None:
        """`seconds` since the turn started; once a turn."""
        self._first_token.observe(seconds)

    def tokens(self, n: int, latency_s: float) -> None:
        """`n` token entries became visible, `latency_s` after the earliest moment at which they could be read."""
        self._tokens.value += n
        latency = self._latency  # written out, as it runs for every token; most are visible at once
        latency.counts[bisect_left(LATENCY_BUCKETS_S, latency_s) if latency_s > 0 else 0] += n
        latency.sum += latency_s * n

    def stream_ended(self, outcome: str, duration_s: float, tokens: int) -> None:
        """A turn of `tokens` token entries ended: `completed`, `cancelled` or `failed` (see `stream_failed`)."""
        self._completed.inc(outcome)
        self._duration.observe(duration_s)
        self._stream_tokens.observe(tokens)
        if tokens and duration_s > 0:
            self._rate.observe(tokens / duration_s)

    def stream_failed(self, code: str) -> None:
        """The error code of a turn that failed, beside its `stream_ended`."""
        self._errors.inc(code)

    # ------------------------------------------------------------ everybody's

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:  # noqa: A002  # Prometheus' own word
        """`read` is called at each scrape."""
        self._add(name, _Gauge(name, help, read))

    def counter(self, name: str, help: str) -> Counter:  # noqa: A002  # as above
        return self._add(name, Counter(name, help))

    def histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:  # noqa: A002  # as above
        return self._add(name, Histogram(name, help, buckets))

    def render(self) -> tuple[bytes, str]:
        """The body of `/metrics` and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def families(self) -> list[Metric]:
        """What `render` writes, the process's own metrics included."""
        return list(self._registry.collect())

    def collect(self) -> Iterator[Metric]:
        """For prometheus-client, at each scrape."""
        for instrument in self._instruments.values():
            yield instrument.collect()

    def _add(self, name: str, instrument: _I) -> _I:
        if name in self._instruments:
            raise ValueError(f"there is a metric {name} already")
        self._instruments[name] = instrument
        return instrument
