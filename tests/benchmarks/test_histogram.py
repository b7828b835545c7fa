"""Percentiles of the load client's histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.histogram import Histogram

VALUES = st.lists(st.integers(0, 100_000_000), min_size=1, max_size=300)


def counted(values: list[int]) -> Histogram:
    unique, counts = np.unique(values, return_counts=True)
    return Histogram(tuple(zip(map(int, unique), map(int, counts), strict=True)), max(values))


@given(VALUES, st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_the_smallest_value_that_so_many_arent_above(values: list[int], percent: float) -> None:
    found = counted(values).percentile_us(percent)
    assert found == np.percentile(values, percent, method="inverted_cdf")


@given(VALUES, VALUES)
def test_joined_histograms_have_seen_what_each_has(one: list[int], other: list[int]) -> None:
    assert Histogram.joined([counted(one), counted(other)]) == counted(one + other)
    assert Histogram.joined([]) == Histogram()


@given(VALUES)
def test_a_curve_rises_to_the_largest_value(values: list[int]) -> None:
    points = counted(values).curve()
    assert points == sorted(points)
    assert points[-1][1] == max(values)
    assert all(0 <= percent < 100 for percent, _ in points)


@given(VALUES)
def test_the_library_agrees_to_its_three_digits(values: list[int]) -> None:
    histogram = counted(values)
    theirs = histogram.hdr()
    assert theirs.get_total_count() == histogram.count
    assert theirs.get_value_at_percentile(50) == pytest.approx(max(1, histogram.percentile_us(50)), rel=0.002)


def test_nothing_seen_is_no_number() -> None:
    assert math.isnan(Histogram().percentile_us(99))
    assert math.isnan(Histogram().mean_us())
    assert Histogram().curve() == []


def test_what_the_client_tells_is_kept() -> None:
    told = Histogram.told({"buckets": [[5, 2], [9, 1]], "max": 9, "count": 3, "sum": 19})
    assert told.count == 3
    assert told.mean_us() == pytest.approx(19 / 3)
    assert told.percentile_us(100) == 9


def test_a_bucket_that_reaches_beyond_the_largest_value_tells_that_value() -> None:
    assert Histogram(((1000, 1),), 998).percentile_us(100) == 998
