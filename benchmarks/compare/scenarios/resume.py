"""Everybody comes back at once: what it costs to send each what it missed, while the answer still goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column

CLIENTS = 20
RATE = 100.0
"""Of the answers that are missed, so that all entrants keep up with them."""
MISSED = (100, 1000, 10_000)
HOLD_S = 30
"""The answer goes on for so long after all of its text: whoever comes back resumes it."""


def regime(missed: int) -> str:
    return f"{missed:,} tokens missed"


class Resume:
    name = "resume"
    title = f"{CLIENTS} clients come back at once to an unfinished answer, and are sent all that they missed"
    columns = (
        Column("client_cpu_us", "CPU ms a client", 2, 1e-3),
        Column("byte_cpu_ns", "CPU ns a byte", 1),
        Column("client_bytes", "KiB a client", 1, 1 / 1024),
        Column("p50_us", "level after p50 ms", 1, 1e-3),
        Column("p99_us", "p99 ms", 1, 1e-3),
        Column("frames_per_token", "frames a token", 3),
        Column("complete", "complete", 0),
    )

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return [] if scale.quick else ["gateway", "gateway-memory", "ai-sdk-resumable"]

    def rounds(self, scale: Scale) -> int:
        return 1

    def steps(self, scale: Scale) -> int:
        return len(MISSED)

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        for missed in MISSED:
            rate = max(RATE, missed / 20)  # 20 s are enough for the longest
            way = entrant.ws or entrant.sse
            ways = [*way, "--prefix", f"m{missed}", "--connections", CLIENTS, "--expect", missed]
            message = f"tokens={missed} rate={rate:g} size=6 hold={HOLD_S} stamp=1"
            await bench.load(running, [*ways, "--message", message], seconds=60, settle=False)
            load = await bench.load(running, [*ways, "--after", 0, *entrant.resume], seconds=30, settle=False)
            cpu_s, complete = sum(load.cpu_s), max(1, load.had_all)
            yield (
                regime(missed),
                Sample.of(
                    load,
                    client_cpu_us=1e6 * cpu_s / complete,
                    byte_cpu_ns=1e9 * cpu_s / max(1, load.received_bytes),
                    client_bytes=load.received_bytes / complete,
                    p50_us=load.connected.percentile_us(50),
                    p99_us=load.connected.percentile_us(99),
                    complete=float(load.had_all),
                ),
            )
