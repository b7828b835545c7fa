"""What the peers run in, made at the first use: virtual environments in the user's cache, and Node's packages.

An environment's folder carries the checksum of its requirements, so that a changed pin makes a new one and several
checkouts share one. Setting up is guarded by a lock, and an environment without its stamp is made anew: an interrupted
setup leaves nothing that looks whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn

from benchmarks.peers.catalog import HERE, NODE

NODE_FOLDER = HERE / "node"
NODE_MAJOR = 20
STAMP = ".convobase-peers"


class Unavailable(Exception):
    """This machine lacks what a peer needs; the message says what to do."""


def interpreter(environment: str) -> str:
    """The Python or the node to start a peer with, its environment set up if needed, with progress on stderr.

    Raises `Unavailable`. Blocks, up to a minute or two the first time.
    """
    return _node() if environment == NODE else _python(environment)


def cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "convobase-benchmark-peers"


def _python(environment: str) -> str:
    file = HERE / f"requirements-{environment}.txt"
    pins = "".join(line for line in file.open() if not line.startswith("#"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_folder() / f"{environment}-{version}-{_checksum(pins)}"
    python = folder / "bin" / "python"
    with _locked(folder):
        if not (folder / STAMP).exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)], f"{environment}: making a virtual environment", 1)
            install = [
                str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off",
                "--no-deps", "--require-hashes", "-r", str(file),
            ]  # fmt: skip
            count = len(re.findall("==", pins))
            _run(install, f"{environment}: installing its packages, once", count, "Collecting ")
            (folder / STAMP).touch()
    return str(python)


def _node() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Unavailable(f"Node.js {NODE_MAJOR} or newer with npm is needed, and there is none on the PATH.")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_MAJOR:
        raise Unavailable(f"Node.js {NODE_MAJOR} or newer is needed; {node} is {version}.")
    stamp = NODE_FOLDER / "node_modules" / STAMP
    want = _checksum((NODE_FOLDER / "package-lock.json").read_text())
    with _locked(cache_folder() / f"node-{_checksum(str(NODE_FOLDER))}"):
        if not stamp.exists() or stamp.read_text() != want:
            # Installed packages run no scripts: none of them needs one.
            install = [npm, "ci", "--prefix", str(NODE_FOLDER), "--omit=dev", "--no-audit", "--no-fund",
                       "--ignore-scripts"]  # fmt: skip
            _run(install, "node: installing its packages, once", 1)
            stamp.write_text(want)
    return node


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], what: str, steps: int, step: str | None = None) -> None:
    """Runs it, one step of the progress for each line that begins with `step`. Raises `Unavailable` when it fails."""
    said: list[str] = []
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"==> {what}", soft_wrap=True)
    columns = (*Progress.get_default_columns()[:2], TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        bar = progress.add_task(what, total=steps)
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if step is not None and line.startswith(step):
                progress.advance(bar)
    if process.returncode != 0:
        raise Unavailable(f"{what} failed: {' '.join(command)}\n{''.join(said[-12:])}")


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
