"""The worker: jobs in their order, each with its own outcome, whoever still waits for it."""

import asyncio
import threading

import pytest

from gateway.logs.worker import Worker


async def test_jobs_run_in_order_on_one_other_thread() -> None:
    worker, threads, order = Worker("w"), set(), []

    def job(number: int) -> int:
        threads.add(threading.get_ident())
        order.append(number)
        return number

    results = await asyncio.gather(*(worker.run(lambda number=number: job(number)) for number in range(50)))  # type: ignore[misc]
    worker.stop()
    assert results == order == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_what_a_job_raises_is_raised_where_it_was_given() -> None:
    worker = Worker("w")
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 / 0)
    assert await worker.run(lambda: "and it goes on") == "and it goes on"
    worker.stop()


async def test_a_job_that_nobody_waits_for_is_done_nevertheless() -> None:
    worker, go, done = Worker("w"), threading.Event(), []
    waiting = asyncio.create_task(worker.run(go.wait))
    later = asyncio.create_task(worker.run(lambda: done.append(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    later.cancel()
    await asyncio.wait([waiting, later])
    go.set()
    await worker.run(lambda: None)
    assert done == [1]
    worker.stop()


async def test_stopping_ends_the_thread_after_what_was_given() -> None:
    worker, thread = Worker("w"), []
    running = asyncio.create_task(worker.run(lambda: thread.append(threading.current_thread())))
    await asyncio.sleep(0)
    worker.stop()
    await running
    await asyncio.to_thread(thread[0].join, 5)
    assert not thread[0].is_alive()


def test_a_loop_that_is_closed_meanwhile_harms_nobody() -> None:
    go, ended = threading.Event(), threading.Event()

    async def leave() -> Worker:
        worker = Worker("w")
        task = asyncio.create_task(worker.run(go.wait))
        await asyncio.sleep(0)
        task.cancel()
        return worker

    worker = asyncio.run(leave())
    worker._jobs.put(None)
    threading.Thread(target=lambda: (go.set(), ended.set())).start()
    assert ended.wait(5)
