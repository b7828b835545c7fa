"""Metrics: what `/metrics` says after the turns told their story."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import Histogram, Metrics
from protocol.codes import ErrorCode


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Sample name and label values to value, as Prometheus' own parser reads them."""
    body, content_type = metrics.render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_a_turn() -> None:
    metrics = Metrics()
    metrics.stream_started()
    metrics.first_token(0.3)
    metrics.tokens(1, 0.0001)
    metrics.tokens(9, 0.002)
    metrics.stream_ended("completed", 2.0, 10)
    seen = scrape(metrics)
    expected = {
        ("convobase_streams_started_total", ()): 1,
        ("convobase_streams_completed_total", ("completed",)): 1,
        ("convobase_streams_completed_total", ("cancelled",)): 0,
        ("convobase_tokens_total", ()): 10,
        ("convobase_stream_first_token_seconds_bucket", ("0.25",)): 0,
        ("convobase_stream_first_token_seconds_bucket", ("0.5",)): 1,
        ("convobase_stream_token_latency_seconds_bucket", ("0.0001",)): 1,
        ("convobase_stream_token_latency_seconds_bucket", ("0.001",)): 1,
        ("convobase_stream_token_latency_seconds_bucket", ("0.0025",)): 10,
        ("convobase_stream_token_latency_seconds_bucket", ("+Inf",)): 10,
        ("convobase_stream_token_latency_seconds_count", ()): 10,
        ("convobase_stream_token_latency_seconds_sum", ()): pytest.approx(0.0181),
        ("convobase_stream_duration_seconds_sum", ()): 2,
        ("convobase_stream_tokens_bucket", ("10.0",)): 1,
        ("convobase_stream_tokens_bucket", ("1.0",)): 0,
        ("convobase_stream_tokens_per_second_sum", ()): 5,
    }
    assert {name: seen[name] for name in expected} == expected


def test_a_failed_turn() -> None:
    metrics = Metrics()
    metrics.stream_started()
    metrics.stream_failed(ErrorCode.UPSTREAM_TIMEOUT.name)
    metrics.stream_ended("failed", 0.0, 0)
    seen = scrape(metrics)
    assert seen["convobase_stream_errors_total", ("UPSTREAM_TIMEOUT",)] == 1
    assert seen["convobase_streams_completed_total", ("failed",)] == 1
    assert seen["convobase_stream_tokens_per_second_count", ()] == 0


def test_labels_stay_bounded() -> None:
    metrics = Metrics()
    for n in range(100):
        metrics.stream_failed(f"code-{n}")
        metrics.stream_ended(f"outcome-{n}", 1.0, 1)
    seen = scrape(metrics)
    assert seen["convobase_stream_errors_total", ("other",)] == 100
    assert seen["convobase_streams_completed_total", ("other",)] == 100
    assert sum(name == "convobase_stream_errors_total" for name, _ in seen) == 1


def test_instruments_of_others() -> None:
    metrics = Metrics()
    connections = 3
    metrics.gauge("convobase_connections", "Open connections.", lambda: connections)
    refused = metrics.counter("convobase_refused_total", "Refused frames.")
    size = metrics.histogram("convobase_commit_entries", "Entries of a commit.", (1, 10))
    refused.inc()
    refused.inc(4)
    size.observe(10)
    size.observe(11)
    connections = 7
    seen = scrape(metrics)
    assert seen["convobase_connections", ()] == 7
    assert seen["convobase_refused_total", ()] == 5
    assert seen["convobase_commit_entries_bucket", ("10.0",)] == 1
    assert seen["convobase_commit_entries_bucket", ("+Inf",)] == 2


def test_a_name_is_taken_once() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="convobase_tokens_total already"):
        metrics.counter("convobase_tokens_total", "Again.")


def test_two_gateways_in_a_process_are_apart() -> None:
    one, other = Metrics(), Metrics()
    one.stream_started()
    assert scrape(other)["convobase_streams_started_total", ()] == 0


def test_the_process_is_there() -> None:
    seen = scrape(Metrics())
    assert any(name == "python_info" for name, _ in seen)
    assert any(name == "process_cpu_seconds_total" for name, _ in seen)


def test_buckets_ascend() -> None:
    with pytest.raises(ValueError, match="don't ascend"):
        Histogram("h", "h", (2, 1))


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 9))))
def test_buckets_hold_what_is_at_most_their_bound(observed: list[tuple[float, int]]) -> None:
    bounds = (0.5, 1.0, 2.0)
    histogram = Histogram("h", "h", bounds)
    for value, n in observed:
        histogram.observe(value, n)
    buckets = {s.labels["le"]: s.value for s in histogram.collect().samples if s.name == "h_bucket"}
    for bound in (*bounds, math.inf):
        label = "+Inf" if bound == math.inf else str(bound)
        assert buckets[label] == sum(n for value, n in observed if value <= bound)
