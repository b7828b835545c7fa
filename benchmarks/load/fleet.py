"""The processes of a run, as seen by the one that shows it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from benchmarks.load.plan import Plan
from benchmarks.load.worker import STOP, Report, Start, Task

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 60.0
LEAD_S = 0.2
"""Between the word to start and the start, so that all processes have heard it."""
LINE_BYTES = 1 << 24


class FleetError(Exception):
    """A process of ours has failed; the message says how."""


class Fleet:
    """Each process has its own session, so that a Ctrl-C in the terminal is ours alone to act upon."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._processes: list[asyncio.subprocess.Process] = []
        self._reports: asyncio.Queue[Report | FleetError] = asyncio.Queue()
        self._readers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when the load begins. Raises `FleetError`."""
        for number in range(self._plan.processes):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.load.worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                cwd=ROOT, limit=LINE_BYTES, start_new_session=True,
            )  # fmt: skip
            self._processes.append(process)
            self._tell(process, msgspec.json.encode(Task(self._plan, number)) + b"\n")
        async with asyncio.timeout(READY_WITHIN_S):
            for process in self._processes:
                assert process.stdout is not None
                if not await process.stdout.readline():
                    raise await _end_of(process)
        line = msgspec.json.encode(Start(time.monotonic() + LEAD_S)) + b"\n"
        for process in self._processes:
            self._tell(process, line)
            self._readers.append(asyncio.create_task(self._read(process), name="read a worker"))

    async def reports(self) -> AsyncIterator[Report]:
        """Until every process is done. Raises `FleetError` when one of them fails."""
        left = len(self._processes)
        while left:
            report = await self._reports.get()
            if isinstance(report, FleetError):
                raise report
            left -= report.over
            yield report

    def stop(self) -> None:
        """Asks all to end the load; their last reports come soon."""
        for process in self._processes:
            self._tell(process, STOP)

    def give_up(self, why: FleetError) -> None:
        """Makes `reports` raise."""
        self._reports.put_nowait(why)

    async def close(self) -> None:
        """Ends what is still running."""
        for reader in self._readers:
            reader.cancel()
        for process in self._processes:
            if process.returncode is None and process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                async with asyncio.timeout(2):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    @staticmethod
    def _tell(process: asyncio.subprocess.Process, line: bytes) -> None:
        if process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(line)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            report = msgspec.json.decode(line, type=Report)
            self._reports.put_nowait(report)
            if report.over:
                return
        self._reports.put_nowait(await _end_of(process))


async def _end_of(process: asyncio.subprocess.Process) -> FleetError:
    assert process.stderr is not None
    said = (await process.stderr.read()).decode(errors="replace").strip()
    code = await process.wait()
    return FleetError(f"a process of the load test ended with code {code}:\n{said}")
