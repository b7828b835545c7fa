"""Results as JSON, and back: reports can be made again, by a later version too."""

from __future__ import annotations

from typing import Any

import orjson

from benchmarks.compare.results import Results, Row, Sample
from benchmarks.histogram import Histogram

FORMAT = 1


def encoded(results: Results, machine: dict[str, str]) -> bytes:
    rows = [
        {**row._asdict(), "samples": [_sample(sample) for sample in samples]}
        for row, samples in results.samples.items()
    ]
    skipped = [
        {"scenario": scenario, "entrant": entrant, "why": why} for (scenario, entrant), why in results.skipped.items()
    ]
    told = {"format": FORMAT, "machine": machine, "rows": rows, "skipped": skipped}
    return orjson.dumps(told, option=orjson.OPT_INDENT_2)


def _sample(sample: Sample) -> dict[str, Any]:
    histograms = {name: {"max": found.max_us, "buckets": found.counts} for name, found in sample.histograms.items()}
    return {"figures": sample.figures, "histograms": histograms, "problems": sample.problems}


def decoded(data: bytes) -> tuple[Results, dict[str, str]]:
    """The results and the machine. Raises `ValueError` for what isn't ours."""
    told = orjson.loads(data)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError("no results of python -m benchmarks")
    results = Results()
    for row in told["rows"]:
        for sample in row["samples"]:
            histograms = {name: Histogram.told(found) for name, found in sample["histograms"].items()}
            # What isn't a number is null in JSON.
            figures = {name: float("nan") if value is None else value for name, value in sample["figures"].items()}
            results.add(
                Row(row["scenario"], row["regime"], row["entrant"]), Sample(figures, histograms, sample["problems"])
            )
    for skipped in told["skipped"]:
        results.skipped[skipped["scenario"], skipped["entrant"]] = skipped["why"]
    return results, told["machine"]
