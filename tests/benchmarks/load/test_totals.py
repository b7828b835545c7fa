"""What the processes told, added up: phases, rates, and whether the load test itself was the limit."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.load.advice import advice
from benchmarks.load.crowd import Gauges
from benchmarks.load.latency import CONNECT, FIRST_TOKEN, Stopwatches
from benchmarks.load.plan import Plan
from benchmarks.load.screen import sparkline
from benchmarks.load.tally import Counts
from benchmarks.load.totals import Totals
from benchmarks.load.worker import Phase, Report

PLAN = Plan(url="u", run_id="r")


def report(phase: Phase, at: float, **fields: Any) -> Report:
    """Of a process that began its ramp at 10, its load at 12, and its drain at 22."""
    began = {"ramp": 10.0, "load": 12.0, "drain": 22.0}[phase]
    defaults: dict[str, Any] = {
        "worker": 0, "counts": Counts(), "latencies": {}, "gauges": Gauges(), "cpu_s": at / 10, "lag_ms": 1.0,
    }  # fmt: skip
    return Report(phase=phase, at=at, seconds=at - began, **{**defaults, **fields})


def lasting(**seconds: float) -> dict[str, str]:
    watches = Stopwatches()
    for name, value in seconds.items():
        getattr(watches, name).add(value)
    return watches.flush()


def test_rates_are_of_the_load_and_counts_of_the_whole_run() -> None:
    totals = Totals(2)
    for worker in (0, 1):
        totals.take(report("ramp", 12, worker=worker, counts=Counts(messages=5, tokens=50)))
        totals.take(report("load", 22, worker=worker, counts=Counts(messages=10, tokens=1000, ends={"stop": 9})))
        totals.take(report("drain", 23, worker=worker, counts=Counts(tokens=7, ends={"stop": 1}), over=True))
    assert totals.rates().tokens == pytest.approx(200)
    assert totals.counts().tokens == 2 * 1057
    assert totals.counts().ends == {"stop": 20}


def test_durations_begin_with_the_load_but_those_of_connecting() -> None:
    totals = Totals(2)
    totals.take(report("ramp", 11, latencies=lasting(first_token=9.0, connect=0.002)))
    assert totals.latencies.ms(FIRST_TOKEN, 99) == pytest.approx(9000, rel=0.01)
    totals.take(report("load", 13, latencies=lasting(first_token=0.25, connect=0.004)))
    totals.take(report("ramp", 13, worker=1, latencies=lasting(first_token=9.0)))
    totals.take(report("drain", 23, latencies=lasting(first_token=3.0)))
    assert totals.latencies.count(FIRST_TOKEN) == 2
    assert totals.latencies.max_ms(FIRST_TOKEN) == pytest.approx(3000, rel=0.01)
    assert totals.latencies.count(CONNECT) == 2


def test_a_run_that_was_stopped_in_its_ramp_is_measured_there() -> None:
    totals = Totals(1)
    totals.take(report("ramp", 11, counts=Counts(tokens=30), latencies=lasting(first_token=0.25)))
    totals.take(report("drain", 23, latencies=lasting(first_token=0.5), over=True))
    assert totals.rates().tokens == pytest.approx(30)
    assert totals.latencies.count(FIRST_TOKEN) == 2


@pytest.mark.parametrize(
    ("share", "lag_ms", "said"), [(0.95, 1, "was the bottleneck"), (0.1, 80, "got no CPU in time")]
)
def test_it_says_when_it_is_the_bottleneck_itself(share: float, lag_ms: float, said: str) -> None:
    totals = Totals(1)
    totals.take(report("ramp", 12, cpu_s=1.0))
    for second in range(13, 23):
        totals.take(report("load", second, cpu_s=1.0 + (second - 12) * share, lag_ms=lag_ms))
    assert totals.tools()[0].cpu_share == pytest.approx(share, abs=0.01)
    assert totals.is_bottleneck
    assert any(said in line for line in advice(totals, PLAN))


def test_it_says_nothing_when_it_isnt() -> None:
    totals = Totals(1)
    for second in range(13, 23):
        totals.take(report("load", second, cpu_s=second * 0.2))
    assert not totals.is_bottleneck
    assert advice(totals, PLAN) == []


def test_the_timeline_has_a_moment_a_second() -> None:
    totals = Totals(1)
    for half in range(1, 9):
        totals.take(report("load", 12 + half / 2, counts=Counts(tokens=50 * half), gauges=Gauges(open=half)))
    assert [moment.tokens_per_s for moment in totals.timeline] == pytest.approx([100.0] * 4)
    assert totals.most_open == 8


def test_sparkline() -> None:
    assert sparkline([0, 1, 6, 8]) == "▁▂▇█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""
