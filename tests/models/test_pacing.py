"""The pacer: nobody is polled too early, nobody is forgotten, and the same time is the same turn."""

import asyncio

from gateway.models.pacing import TICK_S, Pacer


class Polled:
    def __init__(self, pacer: Pacer, again_s: float = 0.0, times: int = 1) -> None:
        self.pacer = pacer
        self.again_s = again_s
        self.left = times
        self.at: list[float] = []
        self.over = asyncio.Event()

    def poll(self) -> None:
        self.at.append(asyncio.get_running_loop().time())
        self.left -= 1
        if self.left:
            self.pacer.later(self, self.again_s)
        else:
            self.over.set()


async def test_each_in_its_time() -> None:
    pacer, loop = Pacer(), asyncio.get_running_loop()
    polled = {seconds: Polled(pacer) for seconds in (0.03, 0.0, 0.01, 0.021)}
    began = loop.time()
    for seconds, one in polled.items():
        pacer.later(one, seconds)
    for seconds, one in polled.items():
        await asyncio.wait_for(one.over.wait(), 1)
        # uvloop's clock and timers are in whole milliseconds, and a timer may be early by half a tick.
        assert one.at[0] - began >= seconds - TICK_S / 2 - 0.001
    order = sorted(polled, key=lambda seconds: polled[seconds].at[0])
    assert order == [0.0, 0.01, 0.021, 0.03]


async def test_what_is_due_together_is_polled_in_one_turn() -> None:
    pacer, loop = Pacer(), asyncio.get_running_loop()
    began_s, asked_s = 0.0, 1.0
    while asked_s - began_s >= TICK_S / 10:  # else a busy machine may have stopped us in the middle
        began_s = loop.time()
        due_s = (int(began_s / TICK_S) + 2.5) * TICK_S
        many = [Polled(pacer) for _ in range(50)]
        for one in many:
            pacer.later(one, due_s - loop.time())
        asked_s = loop.time()
    await many[0].over.wait()
    assert all(one.over.is_set() for one in many)


async def test_who_asks_again_is_polled_again_also_at_once() -> None:
    pacer = Pacer()
    often = [Polled(pacer, again_s, times=20) for again_s in (0.0, 0.0001, 0.004, 0.006)]
    for one in often:
        pacer.later(one, one.again_s)
    await asyncio.wait_for(asyncio.gather(*(one.over.wait() for one in often)), 5)
    await asyncio.sleep(2 * TICK_S)
    assert [len(one.at) for one in often] == [20] * 4
