"""What the log engines cost: CPU of a committed token, bytes on disk, and the time of a synced commit.

    python -m benchmarks.log_engines [--folder DIR] [--rounds N] [--scale F]

Two regimes, as the journal makes them: *steady* is 100 conversations of 50 tokens a second and a commit every 20 ms
(100 appends of one entry); *saturated* is 1,000 appends of five entries as fast as they are taken. Making the entries
isn't counted. CPU is user and system time of the whole process, the engine's threads and the event loop included;
steady commits are paced, so theirs holds the sleeping and waking of a real gateway. The engines take turns, and the
progress bar is drawn between measurements.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gateway.logs.log import Append, Key, Log, Position
from gateway.logs.memory import MemoryLog
from gateway.logs.sqlite import SqliteLog
from protocol.frames import Message, Metadata, Token

WORDS = ("the", "conversation", "is", "a", "log", "and", "every", "reader", "has", "its", "own", "cursor")
START_MS = 1_764_000_000_000


class Regime(NamedTuple):
    name: str
    conversations: int
    entries: int
    """Of each conversation in one commit."""
    commits: int
    interval_s: float


REGIMES = [Regime("steady", 100, 1, 500, 0.02), Regime("saturated", 1000, 5, 40, 0.0)]
ENGINES: dict[str, Callable[[Path], Log]] = {
    "memory": lambda _: MemoryLog(),
    "sqlite": lambda folder: SqliteLog(folder / "log.db"),
}


class Cost(NamedTuple):
    cpu_us: float
    """CPU microseconds of a token."""
    commit_ms: float
    """Wall milliseconds of the median commit."""
    worst_ms: float
    written_bytes: float
    """Handed to the operating system for each token, write-ahead log included."""
    disk_bytes: float
    """Of a token in the file, once the log is closed."""


def batch_after(seq: int, regime: Regime) -> list[Append]:
    """The next commit: for every conversation, `regime.entries` tokens after entry `seq`."""
    batch = []
    for number in range(regime.conversations):
        key = Key("tenant/user", f"conversation-{number}")
        entries = [
            Token(
                conversation_id=key.conversation_id,
                turn_id=f"turn-{number:012d}",
                seq=at,
                metadata=Metadata(START_MS + 20 * at),
                content=f" {WORDS[at % len(WORDS)]}",
            )
            for at in range(seq + 1, seq + 1 + regime.entries)
        ]
        batch.append(Append(key, Position(seq, 0), entries))
    return batch


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def written_bytes() -> int:
    """What the process has written so far; 0 where the system doesn't tell."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return int(counters.read_text().split("wchar:")[1].split()[0])


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def measure(engine: str, regime: Regime, folder: Path, step: Callable[[], None]) -> Cost:
    log = ENGINES[engine](folder)
    await log.open()
    await log.commit(batch_after(0, regime))  # the conversations exist; what is measured is the tokens
    cpu, written, times = 0.0, written_bytes(), []
    for commit in range(regime.commits):
        batch = batch_after((commit + 1) * regime.entries, regime)
        cpu_before, began = cpu_s(), time.perf_counter()
        assert all(await log.commit(batch))
        took = time.perf_counter() - began
        times.append(took)
        await asyncio.sleep(max(0.0, regime.interval_s - took))
        cpu += cpu_s() - cpu_before
        step()
    tokens = regime.conversations * regime.entries * regime.commits
    written = written_bytes() - written
    await log.close()
    return Cost(
        cpu / tokens * 1e6,
        statistics.median(times) * 1e3,
        max(times) * 1e3,
        written / tokens,
        size_bytes(folder) / tokens,
    )


async def synced_commits(folder: Path, count: int, step: Callable[[], None]) -> list[float]:
    """Milliseconds of commits of one `message` each: on the disk before they return."""
    log = SqliteLog(folder / "log.db")
    await log.open()
    times = []
    for number in range(count):
        key = Key("tenant/user", f"c{number}")
        message = Message(
            conversation_id=key.conversation_id,
            turn_id="t",
            seq=1,
            metadata=Metadata(START_MS),
            content="Why is the sky blue?",
            message_id="m",
        )
        began = time.perf_counter()
        await log.commit([Append(key, Position(0, 0), [message])])
        times.append((time.perf_counter() - began) * 1e3)
        step()
    await log.close()
    return times


def report(costs: dict[tuple[str, str], list[Cost]], synced: list[float], console: Console) -> None:
    table = Table(title="Log engines: one token, medians over the rounds")
    for column in ("regime", "engine", "CPU µs", "commit ms", "worst ms", "bytes written", "bytes on disk"):
        table.add_column(column, justify="left" if column in {"regime", "engine"} else "right")
    for (regime, engine), rounds in costs.items():
        cost = Cost(*map(statistics.median, zip(*rounds, strict=True)))
        spread = f" ({min(r.cpu_us for r in rounds):.1f}-{max(r.cpu_us for r in rounds):.1f})"
        disk = ("-", "-") if engine == "memory" else (f"{cost.written_bytes:.0f}", f"{cost.disk_bytes:.1f}")
        times = (f"{cost.commit_ms:.2f}", f"{cost.worst_ms:.1f}")
        table.add_row(regime, engine, f"{cost.cpu_us:.1f}{spread}", *times, *disk)
    console.print(table)
    ordered = sorted(synced)
    console.print(
        f"sqlite, a synced commit of one message: median {statistics.median(ordered):.2f} ms, "
        f"p99 {ordered[int(len(ordered) * 0.99)]:.2f} ms, worst {ordered[-1]:.2f} ms ({len(ordered)} commits)"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, help="where the files go: the disk to measure (default: a temporary one)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="how many commits, as a part of the usual")
    options = parser.parse_args()
    regimes = [regime._replace(commits=max(1, int(regime.commits * options.scale))) for regime in REGIMES]
    synced_count = max(100, int(500 * options.scale))
    costs: dict[tuple[str, str], list[Cost]] = {}
    home = Path(mkdtemp(prefix="log-engines-", dir=options.folder))
    console = Console()
    try:
        with Progress(console=console, transient=True, auto_refresh=False) as progress:
            # Drawn on the main thread, outside of what is measured.
            total = options.rounds * len(ENGINES) * sum(regime.commits for regime in regimes) + synced_count
            bar = progress.add_task("measuring", total=total)

            def step() -> None:
                progress.advance(bar)
                if progress.tasks[0].completed % 20 == 0:
                    progress.refresh()

            for number in range(options.rounds):
                for regime in regimes:
                    for engine in ENGINES:
                        progress.update(bar, description=f"round {number + 1}: {regime.name}, {engine}")
                        folder = home / f"{number}-{regime.name}-{engine}"
                        folder.mkdir()
                        cost = await measure(engine, regime, folder, step)
                        costs.setdefault((regime.name, engine), []).append(cost)
            progress.update(bar, description="synced commits")
            synced = await synced_commits(home, synced_count, step)
    finally:
        shutil.rmtree(home)
    report(costs, synced, console)
    console.print(f"{os.cpu_count()} cores, files in {options.folder or 'the temporary folder'}")


if __name__ == "__main__":
    asyncio.run(main())
