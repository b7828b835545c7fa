"""One process of a run: `python -m benchmarks.load.worker`, started by `fleet`, which speaks to it in lines of JSON.

In: a `Task`, then, once it has said that it is ready, a `Start`, and perhaps `"stop"`; the end of the input means that
nobody is left to report to. Out: a `Report` every half second, the last one with `over`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import time
from typing import Literal

import msgspec
import uvloop
from msgspec import Struct

from benchmarks.load.crowd import Crowd, Gauges
from benchmarks.load.dispatch import Dispatcher
from benchmarks.load.latency import Stopwatches
from benchmarks.load.plan import Plan
from benchmarks.load.scene import Rest, Scene
from benchmarks.load.tally import Counts, Tally
from benchmarks.load.target import Target

REPORT_S = 0.5
LAG_S = 0.05
"""How often the loop's own lateness is looked at."""
POLL_S = 0.05
STOPPED_DRAIN_S = 5.0
"""How long running answers may take after somebody stopped the run."""
STOP = b"stop\n"

Phase = Literal["ramp", "load", "drain"]
PHASES: tuple[Phase, ...] = ("ramp", "load", "drain")


class Task(Struct, frozen=True):
    plan: Plan
    number: int
    """Of the process."""


class Start(Struct, frozen=True):
    at: float
    """On the machine's monotonic clock, which all processes of it share."""


class Report(Struct, frozen=True, kw_only=True):
    worker: int
    phase: Phase
    seconds: float
    """That the phase has lasted."""
    counts: Counts
    """Since the phase began."""
    latencies: dict[str, str]
    """Since the last report, as encoded histograms."""
    gauges: Gauges
    cpu_s: float
    """Of this process since it started."""
    at: float
    lag_ms: float
    """The latest that a timer was since the last report."""
    over: bool = False
    undeleted: int = 0


class Worker:
    def __init__(self, task: Task) -> None:
        self._number = task.number
        self._plan = plan = task.plan.part(task.number)
        self._tally = Tally()
        chance = random.Random(f"{plan.run_id}/{task.number}")
        self._dispatcher = Dispatcher(plan, task.number, self._tally, chance)
        target = Target(plan)
        self._scene = Scene(plan, target, self._tally, self._dispatcher, chance, Rest(target))
        self._crowd = Crowd(self._scene)
        self._phase: Phase = "ramp"
        self._phase_began = 0.0
        self._lag_s = 0.0
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends the load now, with a short drain."""
        self._stopping.set()

    async def run(self, start: Start) -> None:
        """Through all phases."""
        plan = self._plan
        await self._scene.target.resolve()
        await asyncio.sleep(max(0.0, start.at - time.monotonic()))
        self._phase_began = start.at
        gc.freeze()
        background = [asyncio.create_task(part, name="report") for part in (self._report_often(), self._watch_lag())]
        self._crowd.start(start.at)
        self._dispatcher.start(start.at)
        await self._until(start.at + plan.ramp_s)
        if not self._stopping.is_set():
            self._next_phase("load", start.at + plan.ramp_s)
            await self._until(start.at + plan.ramp_s + plan.duration_s)
        self._dispatcher.stop()
        self._crowd.end_load()
        self._next_phase("drain", time.monotonic())
        await self._drain()
        for task in background:
            task.cancel()
        await asyncio.wait(background)
        self._crowd.stop()
        undeleted = await self._crowd.delete() if plan.delete else 0
        await self._scene.rest.close()
        self._report(over=True, undeleted=undeleted)

    async def _until(self, at: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, at - time.monotonic())):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _drain(self) -> None:
        drain_s = min(STOPPED_DRAIN_S, self._plan.drain_s) if self._stopping.is_set() else self._plan.drain_s
        until = time.monotonic() + drain_s
        while self._dispatcher.running and time.monotonic() < until:
            if self._stopping.is_set():
                until = min(until, self._phase_began + STOPPED_DRAIN_S)
            await asyncio.sleep(POLL_S)
        self._dispatcher.give_up(float("inf"))

    # ------------------------------------------------------------ reports

    def _next_phase(self, phase: Phase, began: float) -> None:
        self._report()
        self._phase, self._phase_began = phase, began
        self._tally.counts, self._tally.watches = Counts(), Stopwatches()

    async def _report_often(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._report()

    async def _watch_lag(self) -> None:
        while True:
            planned = time.monotonic() + LAG_S
            await asyncio.sleep(LAG_S)
            self._lag_s = max(self._lag_s, time.monotonic() - planned)

    def _report(self, *, over: bool = False, undeleted: int = 0) -> None:
        now = time.monotonic()
        report = Report(
            worker=self._number,
            phase=self._phase,
            seconds=now - self._phase_began,
            counts=self._tally.counts,
            latencies=self._tally.watches.flush(),
            gauges=self._crowd.gauges(),
            cpu_s=time.process_time(),
            at=now,
            lag_ms=self._lag_s * 1e3,
            over=over,
            undeleted=undeleted,
        )
        self._lag_s = 0.0
        say(msgspec.json.encode(report))


def say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def hear() -> bytes:
    """One line, and no byte of the next one, which the loop is going to wait for."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:
        return pipe.readline()


async def work(task: Task) -> None:
    worker = Worker(task)
    say(b'"ready"')
    start = msgspec.json.decode(hear(), type=Start)
    running = asyncio.create_task(worker.run(start), name="run")

    def heard() -> None:
        told = os.read(sys.stdin.fileno(), 4096)
        if STOP in told:
            worker.stop()
        elif not told:
            running.cancel()

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), heard)
    try:
        await running
    except asyncio.CancelledError:
        return  # nobody is left to report to
    finally:
        loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    task = msgspec.json.decode(hear(), type=Task)
    uvloop.run(work(task))


if __name__ == "__main__":
    main()
