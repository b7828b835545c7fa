"""The native tools: the upstream generator, the load client, and the relay that is the floor.

They are C, one thread and epoll each, because what measures must cost less than what is measured: see the scenario
`tools`. A tool is compiled when it is first wanted, into the user's cache, under a name that holds the hash of its
sources. `python -m benchmarks.native NAME [ARGUMENTS…]` runs one by hand; each tells its arguments at the top of
its source.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent
TOOLS = ("upstream", "wsload", "relay")
FLAGS = ("-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra")


class NoNativeToolsError(RuntimeError):
    """The tools can't be had on this machine; the message says what would help."""


def _compiler() -> str:
    if not sys.platform.startswith("linux"):
        raise NoNativeToolsError("the benchmarks' native tools need Linux (epoll)")
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise NoNativeToolsError("no C compiler: install gcc or clang (Debian: apt-get install gcc libc6-dev), or set CC")


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "convobase-benchmarks"


def build(name: str) -> Path:
    """The program of this name, compiled if it isn't yet. Raises `NoNativeToolsError`."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted([*SOURCES.glob("*.h"), SOURCES / f"{name}.c"]):
        digest.update(source.read_bytes())
    program = _cache() / f"{name}-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    compiler = _compiler()
    program.parent.mkdir(parents=True, exist_ok=True)
    made = program.with_suffix(f".{os.getpid()}")  # renamed when whole: several processes may compile at once
    command = [compiler, *FLAGS, "-o", str(made), str(SOURCES / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNativeToolsError(f"{name}.c doesn't compile with {compiler}:\n{done.stderr[-2000:]}")
    made.rename(program)
    return program
