"""All connections of one process: opened over the ramp, cut by storms, some of them slow."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable

import aiohttp
from msgspec import Struct

from benchmarks.load.event_client import EventClient
from benchmarks.load.scene import DELETES_AT_ONCE, Scene, State
from benchmarks.load.socket_client import SocketClient


class Gauges(Struct, frozen=True):
    """How many there are at one moment."""

    open: int = 0
    """Connections; over SSE those that an answer comes on."""
    connecting: int = 0
    waiting: int = 0
    """Connections that are down and come back."""
    stopped: int = 0
    """Slow readers that don't read at present."""
    running: int = 0
    """Messages without their end."""
    backlog: int = 0
    """Messages that are due and wait for a free conversation."""

    def __add__(self, other: Gauges) -> Gauges:
        return Gauges(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))


class Crowd:
    def __init__(self, scene: Scene) -> None:
        plan = scene.plan
        self._scene = scene
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []
        self._checking: asyncio.TimerHandle | None = None
        kind = EventClient if plan.transport == "sse" else SocketClient
        each = 1 if plan.transport == "sse" else plan.conversations
        slow = round(plan.sockets * plan.slow_share)
        self._clients: list[EventClient | SocketClient] = []
        for number in range(plan.sockets):
            # The slow ones are spread evenly over the ramp.
            is_slow = (number + 1) * slow // plan.sockets > number * slow // plan.sockets
            client = kind(scene, number, slow=is_slow)
            for _ in range(each):
                scene.dispatcher.adopt(client, timed=not is_slow)
            self._clients.append(client)

    def start(self, began: float) -> None:
        """Opens the connections evenly over the ramp, and begins the storms after it. `began`: monotonic."""
        plan, wait_s = self._scene.plan, max(0.0, began - time.monotonic())
        for number, client in enumerate(self._clients):
            self._later(wait_s + plan.ramp_s * number / len(self._clients), client.start)
        for number in range(1, math.ceil(plan.duration_s / plan.storm_every_s) if plan.storm_every_s else 0):
            self._later(wait_s + plan.ramp_s + number * plan.storm_every_s, self._storm)
        self._check()

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(seconds, call))

    def _storm(self) -> None:
        """Cuts a share of the open connections in one go."""
        plan, chance = self._scene.plan, self._scene.chance
        there = [client for client in self._clients if client.state is State.OPEN]
        for client in chance.sample(there, round(len(there) * plan.storm_share)):
            client.cut(chance.random() * plan.storm_spread_s)

    def _check(self) -> None:
        now = time.monotonic()
        self._scene.dispatcher.give_up(now - self._scene.plan.answer_within_s)
        for client in self._clients:
            client.check(now)
        self._checking = self._loop.call_later(1.0, self._check)

    def end_load(self) -> None:
        """No more storms, no more slow reading: what is still running is to come to its end."""
        for timer in self._timers:
            timer.cancel()
        for client in self._clients:
            client.free()

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._checking is not None:
            self._checking.cancel()
        for client in self._clients:
            client.stop()

    def gauges(self) -> Gauges:
        states = Counter(client.state for client in self._clients)
        return Gauges(
            open=states[State.OPEN],
            connecting=states[State.CONNECTING],
            waiting=states[State.WAITING],
            stopped=sum(client.stopped_reading for client in self._clients),
            running=len(self._scene.dispatcher.running),
            backlog=len(self._scene.dispatcher.waiting),
        )

    async def delete(self) -> int:
        """Erases all conversations of the run; returns how many couldn't be."""
        left = iter(self._scene.dispatcher.made)
        failed = 0

        async def some() -> None:
            nonlocal failed
            for name, owner in left:
                try:
                    failed += await self._scene.rest.delete(owner, name) != 204
                except (aiohttp.ClientError, OSError, TimeoutError):
                    failed += 1

        await asyncio.gather(*(some() for _ in range(DELETES_AT_ONCE)))
        return failed
