"""How the cost of a token grows with the number of conversations, at the same total rate, over Redis.

Figures only; each round has servers of its own.
"""

from __future__ import annotations

from benchmarks.compare.entrants import GATEWAY_WS, SETTINGS
from benchmarks.compare.scenarios.conversations import STARTS_PER_S
from benchmarks.compare.work import streaming
from benchmarks.native.run import load, running_upstream
from benchmarks.show.gateway_process import running_gateway
from benchmarks.show.report import Report, median
from benchmarks.show.valkey_process import running_valkey

TITLE = "cost of a token from 10 to 10,000 conversations, at 2,000 tokens/s over Redis"
TOKENS_PER_S = 2000
CONVERSATIONS = (10, 100, 1000, 10_000)
ROUNDS = 3
SECONDS = 10.0


async def _cost(report: Report, conversations: int) -> tuple[float, float]:
    """CPU microseconds of a token: of the gateway, and of Redis."""
    # What a question costs isn't part of it: all are asked before, and all answers last longer.
    ramp_s = max(2.0, conversations / STARTS_PER_S)
    work = streaming(conversations, TOKENS_PER_S / conversations, SECONDS, ramp_s=ramp_s, warm_up_s=3.0)
    async with (
        running_valkey() as valkey,
        running_upstream() as upstream,
        running_gateway(upstream=upstream.url, **{**SETTINGS, "LOG_URL": valkey.url, "BATCH_CHARS": 0}) as gateway,
    ):
        words = [*GATEWAY_WS, *work, "--seconds", SECONDS]
        seen = await load(gateway.port, list(map(str, words)), pids=[gateway.pid, valkey.pid])
    report.none(seen.problems(), f"{conversations:,} conversations: every frame in order")
    gateway_s, redis_s = seen.cpu_s
    return 1e6 * gateway_s / max(1, seen.tokens), 1e6 * redis_s / max(1, seen.tokens)


async def show(report: Report, _: str | None) -> None:
    costs: dict[int, list[tuple[float, float]]] = {count: [] for count in CONVERSATIONS}
    for _round in range(ROUNDS):
        for count in CONVERSATIONS:
            costs[count].append(await _cost(report, count))
    for count in CONVERSATIONS:
        gateway_us, redis_us = (median(values) for values in zip(*costs[count], strict=True))
        report.figure(f"{count:,} conversations", f"gateway {gateway_us:.1f} µs, Redis {redis_us:.1f} µs a token")
