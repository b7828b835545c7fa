"""What `--json` writes; README.md beside this file documents it."""

from __future__ import annotations

import datetime as dt
import platform
import sys
from typing import Any

from msgspec import structs

from benchmarks.load.latency import NAMES, PERCENTILES
from benchmarks.load.plan import Plan
from benchmarks.load.totals import Totals
from benchmarks.load.verdict import Check

VERSION = 1


def results(plan: Plan, totals: Totals, checks: list[Check], *, began: dt.datetime, stopped: bool) -> Any:
    """Plain values for JSON. Tokens and file names of credentials aren't in it."""
    told = structs.asdict(structs.replace(plan, tokens=[]))
    del told["tokens"]
    return {
        "version": VERSION,
        "passed": all(check.passed for check in checks),
        "stopped": stopped,
        "began": began.isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "python": sys.version.split()[0]},
        "plan": told,
        "thresholds": [structs.asdict(check) for check in checks],
        "seconds": {phase: round(totals.seconds(phase), 3) for phase in ("ramp", "load", "drain")},
        "rates_per_s": {name: round(rate, 3) for name, rate in totals.rates()._asdict().items()},
        "counts": structs.asdict(totals.counts()),
        "latency_ms": {name: _latency(totals, name) for name in NAMES},
        "most_open": totals.most_open,
        "undeleted": totals.undeleted,
        "tool": {
            "bottleneck": totals.is_bottleneck,
            "processes": [structs.asdict(tool) for tool in totals.tools()],
        },
        "timeline": [structs.asdict(moment) for moment in totals.timeline],
    }


def _latency(totals: Totals, name: str) -> dict[str, Any]:
    latencies = totals.latencies
    return {
        "count": latencies.count(name),
        "mean": round(latencies.mean_ms(name), 3),
        **{f"p{percentile:g}": round(latencies.ms(name, percentile), 3) for percentile in PERCENTILES},
        "max": round(latencies.max_ms(name), 3),
        "histogram": latencies.encoded(name),
    }
