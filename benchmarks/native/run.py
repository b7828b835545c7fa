"""Running the native tools, and what the load client tells."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import aiohttp
import orjson

from benchmarks.histogram import Histogram
from benchmarks.native import build
from benchmarks.processes import kill, pinned

START_TIMEOUT_S = 10.0
GRACE_S = 90.0
"""Beyond the time that a load is to take: connecting, the ramp, a server that doesn't answer."""


class LoadFailedError(RuntimeError):
    """The load client didn't come to its end."""


class NativeUpstream(NamedTuple):
    """A running generator."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """As `OPENAI_BASE_URL`."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def stats(self) -> dict[str, int]:
        """`streams` being answered; `requests`, `tokens`, `writes`, `cancelled`, `late_max_us`, `cpu_ns` so far."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}/stats") as answer,
        ):
            told: dict[str, int] = await answer.json()
            return told


@dataclass(frozen=True)
class Load:
    """What one run of the load client saw; `all_*` counts the whole run, everything else what was measured.

    Histograms are in microseconds: `added` from when a token was due upstream to its arrival, `slow_added` the same of
    slow readers, `first_token` from the question to the first token, `connected` until the handshake was over (of a
    resume: until all that was missed had come).
    """

    seconds: float
    tokens: int
    frames: int
    received_bytes: int
    done: int
    cpu_s: list[float]
    """Of each process that was named, while it was measured."""
    own_cpu_s: float
    opened: int
    failed: int
    had_all: int
    answered: int
    slow_tokens: int
    all_asked: int
    all_done: int
    gaps: int
    duplicates: int
    wrong_length: int
    """Turns whose text was longer or shorter than their server said."""
    errors: dict[str, int]
    slices: list[dict[str, Any]]
    """Of each second: `at_s`, `tokens` and `cpu_ns` since the beginning."""
    added: Histogram
    slow_added: Histogram
    first_token: Histogram
    connected: Histogram
    store_cpu_s: float = 0.0
    """Of the process in which the server keeps its log."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def cpu_us_per_token(self) -> float:
        return 1e6 * sum(self.cpu_s) / self.tokens if self.tokens else float("nan")

    @property
    def cores(self) -> float:
        """How many cores the named processes kept busy."""
        return sum(self.cpu_s) / self.seconds if self.seconds else 0.0

    def problems(self) -> list[str]:
        """Why its figures may not mean what they should; empty: no reason."""
        found = [f"{code} {count}×" for code, count in self.errors.items()]
        broken = {"gap": self.gaps, "duplicate": self.duplicates, "wrong length": self.wrong_length}
        return found + [f"{what} {count}×" for what, count in broken.items() if count]

    @classmethod
    def told(cls, line: bytes) -> Load:
        """From the client's line of JSON."""
        raw = orjson.loads(line)
        seen = {field.name: raw[field.name] for field in fields(cls) if field.name in raw}
        seen |= {name: Histogram.told(raw[name]) for name in ("added", "slow_added", "connected")}
        whole = "all_first_token" if not raw["first_token"]["count"] else "first_token"
        return cls(
            **seen
            | {
                "cpu_s": [spent / 1e9 for spent in raw["cpu_ns"]],
                "own_cpu_s": raw["own_cpu_ns"] / 1e9,
                "first_token": Histogram.told(raw[whole]),
            }
        )


@asynccontextmanager
async def running_upstream(core: int | None = None, *words: str) -> AsyncIterator[NativeUpstream]:
    """A generator on a free port. `words`: what a question leaves out, as `rate=50`. Raises `NoNativeToolsError`."""
    program = await asyncio.to_thread(build, "upstream")
    process = await asyncio.create_subprocess_exec(*pinned(core), program, "0", *words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            port = int(await process.stdout.readline())
        yield NativeUpstream(port, process.pid)
    finally:
        await kill(process)


async def load(
    port: int,
    arguments: Sequence[str],
    *,
    pids: Iterable[int] = (),
    core: int | None = None,
    timeout_s: float = GRACE_S,
) -> Load:
    """Runs the load client to its end. `pids`: whose CPU time is wanted.

    Raises `LoadFailedError`, `NoNativeToolsError`. When cancelled, the client is killed.
    """
    program = await asyncio.to_thread(build, "wsload")
    named = [word for pid in pids for word in ("--pid", str(pid))]
    process = await asyncio.create_subprocess_exec(
        *pinned(core), program, "--port", str(port), *arguments, *named,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        raise LoadFailedError(f"the load client didn't end within {timeout_s:.0f} s") from None
    finally:
        await kill(process)
    if process.returncode or not out:
        raise LoadFailedError(f"the load client failed: {os.fsdecode(err)[-500:] or process.returncode}")
    return Load.told(out)


@asynccontextmanager
async def held_connections(
    port: int, arguments: Sequence[str], *, pids: Iterable[int] = (), core: int | None = None
) -> AsyncIterator[Load]:
    """Opens connections that stay open, and idle, until the end of the block. Raises as `load` does."""
    program = await asyncio.to_thread(build, "wsload")
    named = [word for pid in pids for word in ("--pid", str(pid))]
    process = await asyncio.create_subprocess_exec(
        *pinned(core), program, "--port", str(port), "--connect-only", *arguments, *named,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(GRACE_S):
            line = await process.stdout.readline()
        if not line:
            raise LoadFailedError("the load client opened no connections")
        yield Load.told(line)
    except TimeoutError:
        raise LoadFailedError(f"the connections weren't open within {GRACE_S:.0f} s") from None
    finally:
        await kill(process)
