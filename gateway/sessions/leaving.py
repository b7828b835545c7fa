"""A node that stops leaves its conversations: running turns may end within a time, and others go on with the rest.

Where nodes share the log every conversation becomes nobody's, as soon as nothing runs in it. Where they don't, it stays
in the log as it is, for the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Protocol

from gateway.logs.feeds import Feeds
from gateway.logs.log import Key, LogUnavailable
from gateway.sessions.session import Session
from gateway.sessions.turn import TurnRun

CLOSE_WITHIN_S = 3.0
"""How long is waited for what was begun: while the log can't be written a deletion has no end."""
TICK_S = 0.25
"""A node that drains looks so often for what others can go on with."""

Left = Callable[[Key], object]
"""Told of a conversation with open turns that this node has given up."""


class Pool(Protocol):
    """What is left. The tables change while it is."""

    @property
    def held(self) -> Mapping[Key, Session]: ...

    @property
    def loading(self) -> Mapping[Key, asyncio.Task[Session]]: ...

    @property
    def runs(self) -> Mapping[asyncio.Task[None], tuple[TurnRun, Session]]: ...

    def release(self, session: Session) -> asyncio.Task[None] | None:
        """Lets others own a conversation of which all is in the log; the task is that. None: it isn't there to be
        released, or nobody shares the log."""
        ...


class Leaving:
    """One use. Nothing new may begin meanwhile."""

    def __init__(self, pool: Pool, feeds: Feeds, left: Left) -> None:
        self._pool = pool
        self._feeds = feeds
        self._left = left

    async def leave(self, within_s: float) -> None:
        """Lets running turns end within the time, and hands over the others."""
        pool, loop = self._pool, asyncio.get_running_loop()
        until = loop.time() + within_s
        while True:
            self._leave_to_others()
            busy = [task for task, (run, _) in pool.runs.items() if not run.waits_for_client]
            left_s = until - loop.time()
            if not busy or left_s <= 0:
                break
            await asyncio.wait(busy, timeout=min(left_s, TICK_S), return_when=asyncio.FIRST_COMPLETED)
        for session in list(pool.held.values()):
            session.hand_over()
        if pool.runs:
            await asyncio.wait(list(pool.runs))
        self._feeds.hand_over()
        await self._release_all()

    def _leave_to_others(self) -> None:
        """What doesn't run, or waits for its client, goes on at another node."""
        if not self._feeds.shared:
            return
        for session in list(self._pool.held.values()):
            session.draining = True
            if session.run is not None and session.run.rests:
                session.hand_over()
            if session.run is None and session.feed.committed == session.feed.seq:
                self._release(session)

    def _release(self, session: Session) -> None:
        key, released = session.feed.key, self._pool.release(session)
        if released is not None and session.fold.current() is not None:
            released.add_done_callback(lambda _: self._left(key))

    async def _release_all(self) -> None:
        """Gives up every conversation, once all of it is in the log."""
        if not self._feeds.shared:
            return
        if self._pool.loading:
            await asyncio.wait(list(self._pool.loading.values()), timeout=CLOSE_WITHIN_S)
        held = self._pool.held.values()
        await end_within([asyncio.create_task(self._release_written(session)) for session in held])
        await self._feeds.released()

    async def _release_written(self, session: Session) -> None:
        feed = session.feed
        with suppress(LogUnavailable):  # then it is another's already
            while feed.committed < feed.seq:
                await feed.when_committed(feed.seq)
            self._release(session)


async def end_within(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Waits for the tasks, and cancels those that take longer than `CLOSE_WITHIN_S`."""
    if not tasks:
        return
    _, stuck = await asyncio.wait(tasks, timeout=CLOSE_WITHIN_S)
    for task in stuck:
        task.cancel()
    if stuck:
        await asyncio.wait(stuck)
