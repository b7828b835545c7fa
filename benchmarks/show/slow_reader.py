"""A reader that takes nothing for 20 s while 10 MB stream: what it costs the process, the others, and itself.

Three runs, each with a new gateway, the same answer and the same other conversations: one whose reader keeps level (the
control: what the answer itself costs), one whose readers stall and keep their connections (a write deadline of 60 s),
and one whose readers are cut off by the default deadline and resume by their cursors.

Ten readers stall at once, and the cost of one is a tenth of what the process grew by over the control: resident memory
varies by megabytes from run to run with what malloc keeps, which one reader would drown in.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any, NamedTuple

from rich.progress import Progress

from benchmarks.show.gateway_process import GatewayProcess, UpstreamProcess, running_gateway, running_upstream
from benchmarks.show.ledger import Ledger
from benchmarks.show.many import Many
from benchmarks.show.raw import RawWebSocket
from benchmarks.show.report import MIB, Report, mib, percentile

TITLE = "a reader that stops for 20 s while 10 MB stream"
STALL_S = 20.0
STALLED = 10
"""Readers of the one conversation that stop, each on a connection of its own."""
SCRIPT = "tokens=10000 size=1000 rate=500 script=ascii"
WARM_UP = "tokens=2000 size=1000 rate=2000 script=ascii"
OTHERS = 20
OTHERS_SCRIPT = "tokens=1250 rate=50 size=6"
WATCHED_S = 19.0
"""Of the 20 s of the answer: at its end its whole text is joined once, whoever reads, which would blur the rest."""
MOST_GROWTH_BYTES = 2 * MIB
MOST_DELAY_MS = 10.0
SLICE_BYTES = 65536
RECEIVE_BUFFER_BYTES = 65536
"""The kernel would else take megabytes for the reader, and hide the stall from the gateway."""


class StallingReader:
    """Reads one conversation, stops after `stall_after` frames for `STALL_S`, and then reads on, resuming if cut."""

    def __init__(self, url: str, name: str, script: str | None, *, stall_after: int | None) -> None:
        """`script`: what to ask; None: somebody else asks."""
        self.ledger = Ledger(name)
        self.largest_bytes = 0
        self.connections = 0
        self.stalled_at = self.woke_at = self.level_at = 0.0
        self.frames_behind = 0
        """That it took to catch up."""
        self._url = url
        self._question = f"key={name} {script}" if script else None
        self._stall_after = stall_after
        self._done = asyncio.Event()

    async def read(self) -> None:
        """To the end of the turn."""
        name = self.ledger.conversation_id
        while not self._done.is_set():
            self._socket = await RawWebSocket(self._frame).connect(self._url, RECEIVE_BUFFER_BYTES)
            self.connections += 1
            if self.ledger.seq == 0 and self._question is not None:
                self._socket.send(type="chat_message", conversation_id=name, message=self._question)
            else:
                self._socket.send(
                    type="subscribe", conversation_id=name, after=self.ledger.seq, epoch=self.ledger.epoch
                )
            waits = [asyncio.create_task(self._done.wait()), asyncio.create_task(self._socket.closed.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            self._socket.close()

    def _frame(self, frame: dict[str, Any], size_bytes: int) -> None:
        if not self.ledger.take(frame):
            return
        self.largest_bytes = max(self.largest_bytes, size_bytes)
        self.frames_behind += self.woke_at > 0
        if frame["type"] in ("done", "error"):
            self.level_at = time.monotonic()
            self._done.set()
        elif self._stall_after is not None and self.ledger.frames >= self._stall_after and not self.stalled_at:
            self.stalled_at = time.monotonic()
            self._socket.transport.pause_reading()
            asyncio.get_running_loop().call_later(STALL_S, self._wake)

    def _wake(self) -> None:
        self.woke_at = time.monotonic()
        self._socket.transport.resume_reading()


class Run(NamedTuple):
    """What one run showed."""

    readers: list[StallingReader]
    streaming_bytes: int
    """By how much memory grew while the answer streamed, until shortly before its end."""
    catching_up_bytes: int
    """By how much it grew from the reader's waking until it was level; 0 when it never slept."""
    gaps_ms: list[float]
    """Between frames of each other conversation."""
    problems: list[str | None]


class Memory:
    """Resident memory of the gateway, every 50 ms until cancelled."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._samples = [(time.monotonic(), gateway.rss_bytes())]

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self._samples.append((time.monotonic(), self._gateway.rss_bytes()))

    def growth_bytes(self, start: float, end: float) -> int:
        """From the last sample before `start` to the largest up to `end`."""
        before = [size for at, size in self._samples if at <= start]
        during = [size for at, size in self._samples if start < at <= end]
        return max(during, default=before[-1]) - before[-1]


async def _run(upstream: UpstreamProcess, progress: Progress, name: str, *, stalls: bool, deadline_s: float) -> Run:
    async with running_gateway(upstream=upstream.url, WRITE_DEADLINE_S=deadline_s) as gateway:
        async with asyncio.timeout(30):
            await StallingReader(gateway.url, f"{name}-warm", WARM_UP, stall_after=None).read()
        warm = Many(gateway.url, ["tokens=50 rate=50"] * OTHERS)
        await warm.run(progress, f"{name}: warming up", timeout_s=20)
        await asyncio.sleep(0.5)
        memory = Memory(gateway)
        watching, started = asyncio.create_task(memory.watch()), time.monotonic()
        after = 500 if stalls else None
        readers = [
            StallingReader(gateway.url, name, None if number else SCRIPT, stall_after=after)
            for number in range(STALLED if stalls else 1)
        ]
        others = Many(gateway.url, [OTHERS_SCRIPT] * OTHERS)
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            group.create_task(others.run(progress, f"{name}: other conversations", timeout_s=90))
            for reader in readers:
                group.create_task(reader.read())
        await asyncio.sleep(0.2)
        watching.cancel()
        woke, level = min(reader.woke_at for reader in readers), max(reader.level_at for reader in readers)
        grew = memory.growth_bytes(started, started + WATCHED_S), memory.growth_bytes(woke, level + 0.1) if woke else 0
        gaps = [1000 * (b - a) for times in others.arrivals.values() for a, b in itertools.pairwise(times)]
        problems = [*others.problems(), *(reader.ledger.problem() for reader in readers)]
        record = (await upstream.record(name))[-1]
        if any(reader.ledger.text(reader.ledger.messages[-1]) != record["text"] for reader in readers):
            problems.append(f"{name}: a text isn't what the upstream sent")
        if gateway.complaints():
            problems.append(f"{name}: a traceback in the gateway's log")
        await upstream.forget()
        return Run(readers, *grew, gaps, problems)


def _tell(report: Report, name: str, run: Run, control: Run, cut_off: bool) -> None:
    readers = run.readers
    streaming = run.streaming_bytes - control.streaming_bytes
    cost_bytes = (max(0, streaming) + run.catching_up_bytes) / len(readers)
    p99, p99_control = percentile(run.gaps_ms, 0.99), percentile(control.gaps_ms, 0.99)
    report.figure(
        f"{name}: memory",
        f"grew by {mib(run.streaming_bytes)} while it streamed (the control by {mib(control.streaming_bytes)}), "
        f"by {mib(run.catching_up_bytes)} while {len(readers)} readers caught up",
    )
    report.figure(
        f"{name}: others", f"p99 between frames {p99:.1f} ms (control {p99_control:.1f}), worst {max(run.gaps_ms):.0f}"
    )
    seconds = max(reader.level_at for reader in readers) - min(reader.woke_at for reader in readers)
    largest = max(reader.largest_bytes for reader in readers)
    frames = sum(reader.frames_behind for reader in readers) / len(readers)
    report.figure(f"{name}: caught up", f"in {seconds:.2f} s, each by {frames:.0f} frames of at most {largest:,} bytes")
    report.none(run.problems, f"{name}: whole, exactly what the upstream sent, no gap, no duplicate; others too")
    report.check(cost_bytes < MOST_GROWTH_BYTES, f"{name}: a reader cost {cost_bytes / MIB:.2f} MiB (under 2)")
    report.check(p99 - p99_control <= MOST_DELAY_MS, f"{name}: others see no delay (p99 within {MOST_DELAY_MS:.0f} ms)")
    report.check(largest <= SLICE_BYTES, f"{name}: no frame over 64 KiB")
    words = "cut off by the write deadline, and resumed by its cursor" if cut_off else "on the same connection"
    expected = 2 if cut_off else 1
    report.check(all(reader.connections == expected for reader in readers), f"{name}: each {words}")


async def show(report: Report, _: str | None) -> None:
    async with running_upstream() as upstream:
        with report.progress() as progress:
            control = await _run(upstream, progress, "level", stalls=False, deadline_s=60)
            patient = await _run(upstream, progress, "stalled", stalls=True, deadline_s=60)
            strict = await _run(upstream, progress, "cut-off", stalls=True, deadline_s=10)
    report.none(control.problems, "control: a level reader, whole")
    _tell(report, "stalled", patient, control, cut_off=False)
    _tell(report, "cut off", strict, control, cut_off=True)
