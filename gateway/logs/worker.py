"""A thread that does one thing after the other for an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Job(NamedTuple):
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class Worker:
    """Runs jobs in the order in which they were given. A `ThreadPoolExecutor` of one thread would do, but wakes and
    locks three times as often, and a log that commits a hundred times a second feels that.

    The thread doesn't keep the process alive: whoever wants a job to end waits for it.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Cancelled, it doesn't wait, but the job is done nevertheless."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, done))
        return await done

    def stop(self) -> None:
        """Ends the thread after what it was given before. Nothing may be given to it any more."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                result, problem = job.work(), None
            except BaseException as error:  # noqa: BLE001 # raised where the job was given
                result, problem = None, error
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_settle, job.done, result, problem)
            # Not held until the next job comes: an error holds the frames that it went through.
            del job, result, problem


def _settle(done: asyncio.Future[Any], result: Any, problem: BaseException | None) -> None:
    if done.done():  # cancelled
        return
    if problem is None:
        done.set_result(result)
    else:
        done.set_exception(problem)
