"""Whether a run is good enough: the thresholds, and what they were held against."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from benchmarks.load.latency import ACK, BETWEEN, FIRST_TOKEN, NAMES, RESUME
from benchmarks.load.plan import Plan
from benchmarks.load.totals import Totals

MAX_ERROR_RATE, MAX_GAPS, MIN_CONNECTED = 0.01, 0, 0.99


class Limits(Struct, frozen=True, kw_only=True):
    """What the user asks for. None: doesn't matter."""

    max_p99_ms: float | None = None
    max_ack_p99_ms: float | None = None
    max_between_p99_ms: float | None = None
    max_resume_p99_ms: float | None = None
    min_tokens_per_s: float | None = None
    min_messages_per_s: float | None = None
    max_error_rate: float = MAX_ERROR_RATE
    max_gaps: int = MAX_GAPS
    min_connected: float = MIN_CONNECTED


class Check(Struct, frozen=True):
    name: str
    """The option that sets it, without the dashes."""
    words: str
    value: float
    limit: float
    passed: bool


def judge(limits: Limits, totals: Totals, plan: Plan, *, stopped: bool) -> list[Check]:
    """Only what was asked for, and what always is. A run that was stopped needn't have all its connections."""
    counts, rates = totals.counts(), totals.rates()
    checks = [_most("max-gaps", "promises broken", counts.broken, limits.max_gaps)]
    if plan.transport != "sse" and not stopped:
        share = totals.most_open / plan.sockets
        checks.append(_least("min-connected", "of the connections were open at once", share, limits.min_connected))
    if not plan.only_connects:
        rate = counts.mistakes / counts.messages if counts.messages else 1.0
        checks.append(_most("max-error-rate", "of the messages got no whole answer", rate, limits.max_error_rate))
    checks += _durations(limits, totals)
    if limits.min_tokens_per_s is not None:
        checks.append(_least("min-tokens-per-s", "tokens a second", rates.tokens, limits.min_tokens_per_s))
    if limits.min_messages_per_s is not None:
        checks.append(_least("min-messages-per-s", "messages a second", rates.messages, limits.min_messages_per_s))
    return checks


def _durations(limits: Limits, totals: Totals) -> Iterator[Check]:
    for option, name, limit in (
        ("max-p99-ms", FIRST_TOKEN, limits.max_p99_ms),
        ("max-ack-p99-ms", ACK, limits.max_ack_p99_ms),
        ("max-between-p99-ms", BETWEEN, limits.max_between_p99_ms),
        ("max-resume-p99-ms", RESUME, limits.max_resume_p99_ms),
    ):
        if limit is None:
            continue
        if totals.latencies.count(name):
            yield _most(option, f"ms at p99: {NAMES[name]}", totals.latencies.ms(name, 99), limit)
        else:
            yield Check(option, f"ms at p99: {NAMES[name]} (it was never measured)", 0.0, limit, passed=False)


def _most(name: str, words: str, value: float, limit: float) -> Check:
    return Check(name, words, value, limit, passed=value <= limit)


def _least(name: str, words: str, value: float, limit: float) -> Check:
    return Check(name, words, value, limit, passed=value >= limit)
