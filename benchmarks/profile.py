"""Where a token's time goes, in the gateway as its operator runs it.

    python -m benchmarks profile [--streams N] [--rate N] [--seconds S]

Linux' `perf` looks a thousand times a second at what the gateway's core is doing, and says in which program or library
that is: the kernel for system calls, the network and waking, libpython for our own code, and so on. It needs no
counters of the processor, and costs the gateway a few percent. Each of our settings is looked at in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.compare.cores import Cores
from benchmarks.compare.entrants import ENTRANTS
from benchmarks.compare.work import RAMP_S, WARM_UP_S, streaming
from benchmarks.native.run import load, running_upstream

LOOKS_PER_S = 999
SETTINGS = ("gateway-memory", "gateway", "gateway-memory-batched", "gateway-batched", "gateway-redis")
GROUPS = {
    "system calls, network, waking": ("[kernel", "[unknown]", "[vdso]"),
    "event loop (uvloop)": ("loop.cpython",),
    "Python: our code": ("libpython", "python3"),
    "parsing and encoding": ("_core.cpython", "orjson", "parser_impl"),
    "log (SQLite)": ("sqlite",),
    "token counts": ("tiktoken",),
    "C library": ("libc.so", "libc-", "ld-linux", "libpthread"),
}
OTHER = "other"


def shares(report: str) -> dict[str, float]:
    """Percent of each group, from `perf report --sort dso` with `;` between its columns."""
    found = dict.fromkeys((*GROUPS, OTHER), 0.0)
    for line in report.splitlines():
        percent, separator, program = line.strip().partition(";")
        if not separator or line.startswith("#"):
            continue
        name = program.strip()
        group = next((group for group, starts in GROUPS.items() if any(start in name for start in starts)), OTHER)
        found[group] += float(percent.strip().rstrip("%"))
    return found


def _perf(pid: int, seconds: float, folder: Path) -> dict[str, float]:
    data = str(folder / "perf.data")
    subprocess.run(
        ["perf", "record", "-F", str(LOOKS_PER_S), "-p", str(pid), "-o", data, "--", "sleep", str(seconds)],
        check=True,
        capture_output=True,
    )
    report = subprocess.run(
        ["perf", "report", "-i", data, "--stdio", "--no-children", "--sort", "dso", "-t", ";"],
        check=True,
        capture_output=True,
        text=True,
    )
    return shares(report.stdout)


async def _profile(name: str, streams: int, rate: float, seconds: float) -> tuple[float, dict[str, float]]:
    """CPU microseconds of a token without perf, and where they go."""
    cores = Cores.found()
    words = ["--prefix", "p", *map(str, [*ENTRANTS[name].ws, *streaming(streams, rate, 2 * seconds)])]
    async with (
        running_upstream(cores.upstream) as upstream,
        ENTRANTS[name].start(upstream.url, cores.server) as running,
    ):
        plain = await load(running.port, [*words, "--seconds", str(seconds)], pids=running.pids(), core=cores.load)
        words[1] = "q"
        looking = asyncio.create_task(load(running.port, [*words, "--seconds", str(seconds)], core=cores.load))
        await asyncio.sleep(RAMP_S + WARM_UP_S)
        with TemporaryDirectory() as folder:
            found = await asyncio.to_thread(_perf, running.pids()[0], seconds - 0.5, Path(folder))
        await looking
    return plain.cpu_us_per_token, found


def _asked(argv: list[str]) -> argparse.Namespace:
    asked = argparse.ArgumentParser(prog="python -m benchmarks profile", description="Where a token's time goes.")
    asked.add_argument("--streams", type=int, default=100)
    asked.add_argument("--rate", type=float, default=50.0, help="tokens a second of each")
    asked.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    return asked.parse_args(argv)


def main(argv: list[str]) -> int:
    """0; 2: this machine has no `perf`."""
    asked = _asked(argv)
    if shutil.which("perf") is None:
        print("Linux' perf isn't installed. On Debian: apt-get install linux-perf", file=sys.stderr)
        return 2
    console = Console()
    rows = {
        name: asyncio.run(_profile(name, asked.streams, asked.rate, asked.seconds))
        for name in track(SETTINGS, "profiling", console=console)
    }
    table = Table(title=f"CPU µs of a token at {asked.streams} streams × {asked.rate:g}/s, and where they go")
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    table.add_row("all", *(f"{cost_us:.1f}" for cost_us, _ in rows.values()), end_section=True)
    for group in (*GROUPS, OTHER):
        table.add_row(group, *(f"{cost_us * part[group] / 100:.1f}" for cost_us, part in rows.values()))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
