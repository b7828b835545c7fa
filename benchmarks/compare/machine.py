"""Where it was measured: what a reader has to know to judge the figures, or to measure again."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.compare.cores import Cores
from benchmarks.processes import ROOT

PACKAGES = ("uvicorn", "uvloop", "websockets", "starlette", "openai", "aiohttp", "msgspec", "orjson", "redis")


def described(cores: Cores) -> dict[str, str]:
    """In the order in which it is shown."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": _revision(),
        "processor": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
        "cores": f"server {cores.server}, load client {cores.load}, upstream {cores.upstream}",
        "Python": f"{platform.python_version()}, {platform.python_compiler()}, SQLite {sqlite3.sqlite_version}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "Node": _said("node", "--version"),
        "C compiler": _said(os.environ.get("CC", "cc"), "--version").partition("\n")[0],
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.1f} GiB"


def _revision() -> str:
    found = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return found + (", with changes" if changed not in {"", "none"} else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _said(*command: str) -> str:
    """The output of a command; `none` when it isn't there or fails."""
    if shutil.which(command[0]) is None:
        return "none"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "none" if done.returncode else done.stdout.strip()
