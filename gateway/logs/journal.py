"""The journal writes feeds to the log in groups: one commit at a time, each with all that came in meanwhile.

An entry other than a token asks for a commit at once, since readers wait for it; tokens, which they see already,
wait up to `token_delay_s` to share one. That is also how far tokens run ahead of the log (SPEC.md section 2).
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from weakref import WeakValueDictionary

import structlog

from gateway.logs.feed import Feed
from gateway.logs.log import Append, Key, Log, LogUnavailable

TOKEN_DELAY_S = 0.01
RETRY_FIRST_S, RETRY_MOST_S = 0.05, 1.0

log_lines = structlog.get_logger(__name__)


def forget(tasks: dict[Key, asyncio.Task[Any]], key: Key, task: asyncio.Task[Any]) -> None:
    """Done callback of a task that many may wait for. If all of them are gone nobody else hears of its exception."""
    tasks.pop(key, None)
    if not task.cancelled():
        task.exception()


class Journal:
    """Owns the feeds of this node and the one task that commits them."""

    def __init__(self, log: Log, *, token_delay_s: float = TOKEN_DELAY_S) -> None:
        self.log = log
        self.available = True
        """The last commit worked. While it is false new messages are refused, and running turns are buffered."""
        self.commits = 0
        self._token_delay_s = token_delay_s
        self._feeds: WeakValueDictionary[Key, Feed] = WeakValueDictionary()
        self._opening: dict[Key, asyncio.Task[Feed]] = {}
        self._due: dict[Feed, None] = {}
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Commits what is due and ends the task. If the log can't be written, what was never in it is lost."""
        self._closing = True
        self._wanted.set()
        if self._task is not None:
            await self._task

    # ------------------------------------------------------------ feeds

    async def open(self, key: Key) -> Feed:
        """This node's feed of a conversation, whether or not that exists yet. Raises `LogUnavailable`.

        Safe to cancel. A feed lives as long as somebody holds it: a session, a cursor, or unwritten entries.
        """
        if (feed := self._feeds.get(key)) is not None:
            return feed
        opening = self._opening.get(key)
        if opening is None:
            opening = self._opening[key] = asyncio.create_task(self._load(key))
            opening.add_done_callback(lambda task: forget(self._opening, key, task))
        return await asyncio.shield(opening)

    async def _load(self, key: Key) -> Feed:
        head = await self.log.head(key)
        feed = self._feeds[key] = Feed(key, head, self)
        return feed

    def known(self, key: Key) -> Feed | None:
        """Its feed, if somebody holds one."""
        return self._feeds.get(key)

    def forget(self, feed: Feed) -> None:
        """The conversation begins anew: who opens it next gets another feed."""
        if self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]

    # ------------------------------------------------------------ committing

    @property
    def waiting(self) -> int:
        """Feeds with entries that aren't in the log yet."""
        return len(self._due)

    def due(self, feed: Feed, *, urgent: bool) -> None:
        self._due[feed] = None
        if urgent:
            self._wanted.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._token_delay_s, self._wanted.set)

    async def _run(self) -> None:
        while not self._closing or self._due:
            await self._wanted.wait()
            # Let everything that this loop turn brings join the same commit.
            await asyncio.sleep(0)
            if not self._closing:
                self._wanted.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            await self._commit_due()

    async def _commit_due(self) -> None:
        """One commit of all that is due, repeated until the log takes it. Never loses an entry: what isn't
        written stays in its feed."""
        delay_s = RETRY_FIRST_S
        feeds, self._due = list(self._due), {}
        batch = {feed: append for feed in feeds if (append := feed.take_append()) is not None}
        while batch:
            try:
                results = await self._commit(list(batch.values()))
            except LogUnavailable as problem:
                self._unavailable(problem)
                if self._closing:
                    log_lines.error("stopping with entries that the log didn't take", conversations=len(batch))
                    return
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(RETRY_MOST_S, 2 * delay_s)
                continue
            self._available()
            for feed, written in zip(batch, results, strict=True):
                if written:
                    feed.written()
                else:
                    self.forget(feed)
                    feed.refused()
                if feed.uncommitted:
                    self.due(feed, urgent=feed.visible < feed.seq)
            return

    async def _commit(self, batch: list[Append]) -> list[bool]:
        """As the log's `commit`. An append that no log can take costs its own conversation, and no other."""
        try:
            return await self.log.commit(batch)
        except LogUnavailable:
            raise
        except Exception:
            if len(batch) == 1:
                log_lines.exception("an append can't be written", conversation_id=batch[0].key.conversation_id)
                return [False]
            return [written for append in batch for written in await self._commit([append])]

    def _unavailable(self, problem: LogUnavailable) -> None:
        if self.available:
            log_lines.error("log can't be written; buffering and trying again", problem=str(problem))
        self.available = False

    def _available(self) -> None:
        self.commits += 1
        if not self.available:
            log_lines.info("log can be written again")
        self.available = True
