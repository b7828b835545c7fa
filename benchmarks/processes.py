"""Processes that are measured: where they run, and what the operating system says that they use."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_GATEWAY_SETTINGS = ("CONVOBASE_", "OPENAI_")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def clean_environment(**settings: object) -> dict[str, str]:
    """Ours without any setting of a gateway, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_GATEWAY_SETTINGS)}
    given = {f"CONVOBASE_{name}": str(value) for name, value in settings.items()}
    return {**inherited, **given, "PYTHONPATH": str(ROOT)}


def pinned(core: int | None) -> tuple[str, ...]:
    """What goes before a command, so that it and all that it starts run on that core only. None: anywhere."""
    if core is None or shutil.which("taskset") is None:
        return ()
    return ("taskset", "-c", str(core))


async def kill(process: asyncio.subprocess.Process) -> None:
    """Ends it at once, unless it has ended: Ctrl-C reaches it as well as us."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, all of its threads, those that have ended too.

    Raises `ProcessLookupError` when it is gone.
    """
    try:
        # The process' own CPU clock counts nanoseconds (clock_getcpuclockid(3)); /proc/PID/stat only 10 ms.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError as problem:
        raise ProcessLookupError(pid) from problem


def rss_bytes(pid: int) -> int:
    """Resident memory of a process now. Raises `ProcessLookupError`, `FileNotFoundError` when it is gone."""
    return _memory(pid, "status", "VmRSS:")


def allocated_bytes(pid: int) -> int:
    """Resident memory that a process has allocated; a page that it shares with forks is divided among them. Pages of
    files don't count: libraries are shared with whatever else runs, so what else starts or ends would change the figure
    by megabytes. The same errors."""
    return _memory(pid, "smaps_rollup", "Pss_Anon:")


def _memory(pid: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def family(pid: int) -> Iterator[int]:
    """The process and all that it has started, and so on. A process that ends meanwhile is left out."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield from family(int(child))


def total_cpu_s(pids: Iterable[int]) -> float:
    """Of those that still run."""
    return sum(_or_none(cpu_s, pid) for pid in pids)


def total_allocated_bytes(pids: Iterable[int]) -> int:
    """Of those that still run."""
    return int(sum(_or_none(allocated_bytes, pid) for pid in pids))


def _or_none(measure: Callable[[int], float], pid: int) -> float:
    try:
        return measure(pid)
    except (ProcessLookupError, FileNotFoundError):
        return 0.0
