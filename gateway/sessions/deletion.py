"""The end of a conversation for good: a client deletes it, or its retention is over."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import structlog

from gateway.logs.feed import Feed
from gateway.logs.feeds import forget
from gateway.logs.journal import Journal
from gateway.logs.log import Key, LogUnavailable
from gateway.sessions.refusals import log_unreadable
from gateway.sessions.session import Session

GRACE_S = 1.0
"""How long readers that are behind may take to see the end of a conversation before it is erased."""
WAIT_S = 10.0
"""How long a command waits for a deletion; that goes on by itself."""
RETRY_S = 0.5

log_lines = structlog.get_logger(__name__)


class Pool(Protocol):
    """What a deletion needs of the pool."""

    async def loaded(self, key: Key) -> Session:
        """Its session, whether or not the conversation exists yet."""
        ...

    def drop(self, session: Session) -> None:
        """Nothing can be appended through this session any more; whoever comes next starts from the log."""
        ...

    def drop_of(self, feed: Feed) -> None:
        """Drops the session that appends to this feed, if there is one."""
        ...


class Deletion:
    """One task for each conversation that is being deleted, however many wait for it."""

    def __init__(self, journal: Journal, pool: Pool) -> None:
        self._journal = journal
        self._pool = pool
        self._running: dict[Key, asyncio.Task[None]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._running

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._running.values())

    async def delete(self, key: Key) -> None:
        """Ends its turns, shows readers the end, and erases it. Idempotent. Once begun it goes on to its end,
        whether or not the caller waits. Raises `Refusal` when the log can't be written."""
        deleting = self._running.get(key)
        if deleting is None:
            deleting = self._running[key] = asyncio.create_task(self._delete(key), name="delete")
            deleting.add_done_callback(lambda task: forget(self._running, key, task))
        try:
            async with asyncio.timeout(WAIT_S):
                await asyncio.shield(deleting)
        except (LogUnavailable, TimeoutError):
            raise log_unreadable() from None

    async def over(self, key: Key) -> bool:
        """Waits for the end of a deletion that is going on. Whether there was one. Raises `Refusal` when it takes too
        long. Safe to cancel."""
        deleting = self._running.get(key)
        if deleting is None:
            return False
        _, unfinished = await asyncio.wait([deleting], timeout=WAIT_S)
        if unfinished:
            raise log_unreadable()
        return True

    async def _delete(self, key: Key) -> None:
        session = await self._pool.loaded(key)
        while not await self._journal.feeds.still_owns(session.feed):  # readers here mustn't hear of an end that isn't
            self._pool.drop(session)
            session = await self._pool.loaded(key)
        feed = session.feed
        session.draining = True
        session.cancel_all()
        try:
            await feed.when_committed(feed.seq)
            await feed.end(GRACE_S)
            if not await self._erase(feed):
                raise LogUnavailable("this conversation was taken over while it was deleted")
        finally:
            self._pool.drop(session)

    async def _erase(self, feed: Feed) -> bool:
        """Readers were told already, so it is tried until the log can do it. False: another node has it now."""
        log, tried = self._journal.log, False
        while True:
            try:
                if tried and not await self._journal.feeds.still_owns(feed):
                    return False  # it may have been done, and the id be in use again
                erased = await log.erase(feed.key)
                if tried:
                    await log.release(feed.key)
                return erased
            except LogUnavailable as problem:
                log_lines.warning("a conversation can't be erased yet", problem=str(problem))
                tried = True
                await asyncio.sleep(RETRY_S)

    async def expire(self, retention_s: float) -> None:
        """Erases conversations that were last written so long ago. Raises `LogUnavailable`."""
        log, feeds = self._journal.log, self._journal.feeds
        before_ms = int((time.time() - retention_s) * 1000)
        for key in await log.expire(before_ms, leave_to=self._journal.nodes.others()):
            feed = feeds.known(key)
            if feed is None or not feed.committed:
                continue
            head = await log.head(key)
            if head.seq and head.epoch == feed.committed_epoch:
                continue  # it began anew meanwhile
            self._pool.drop_of(feed)
            feed.refused()
            feeds.forget(feed)
            await feed.end(0)
