"""A writer commits the feeds of one domain of the log in groups: one commit at a time, each with all that came in
meanwhile.

An entry other than a token asks for a commit at once, since readers wait for it; tokens, which they see already,
wait up to `token_delay_s` to share one. So far, and as long as that commit takes, tokens run ahead of the log; but
while a commit takes too long, or fails, no more of them do (SPEC.md section 2.5).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

import structlog

from gateway.logs.feed import Feed
from gateway.logs.log import Append, Log, LogUnavailable

RETRY_FIRST_S, RETRY_MOST_S = 0.05, 1.0
AHEAD_S = 0.2
"""How long a token may be shown before the log has it: no more of them are while one takes longer."""

log_lines = structlog.get_logger(__name__)


class Writer:
    """Owns the one task that commits these feeds."""

    def __init__(
        self,
        log: Log,
        *,
        reclaim: Callable[[Feed], Awaitable[bool]],
        give_up: Callable[[Feed], None],
        token_delay_s: float,
    ) -> None:
        """`reclaim`: an append of this feed was refused; false: it is of no use any more, and then it is given up."""
        self.log = log
        self.available = True
        """The last commit worked. While it is false new messages are refused, and running turns are buffered."""
        self.runs_ahead = True
        self.commits = 0
        self._reclaim_one = reclaim
        self._give_up = give_up
        self._token_delay_s = token_delay_s
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
            loop = asyncio.get_running_loop()
            oldest = loop.time()
            if self._timer is not None:
                oldest = self._timer.when() - self._token_delay_s  # it may have waited for the commit before this one
                self._timer.cancel()
                self._timer = None
            slow = loop.call_at(oldest + AHEAD_S, self._hold_back)
            await self._commit_due()
            slow.cancel()
            self.runs_ahead = self.available

    def _hold_back(self) -> None:
        self.runs_ahead = False

    async def _commit_due(self) -> None:
        """One commit of all that is due, repeated until the log takes it. Never loses an entry: what isn't
        written stays in its feed."""
        delay_s = RETRY_FIRST_S
        pending, self._due = list(self._due), {}
        while batch := {feed: append for feed in pending if (append := feed.take_append()) is not None}:
            try:
                pending = self._settle(batch, await self._commit(list(batch.values())))
                in_doubt = await self._reclaim(pending)
                if not in_doubt:
                    return
                pending = list(in_doubt)
                raise next(iter(in_doubt.values()))
            except LogUnavailable as problem:
                self._unavailable(problem)
                if self._closing:
                    log_lines.error("stopping with entries that the log didn't take", conversations=len(batch))
                    return
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(RETRY_MOST_S, 2 * delay_s)

    def _settle(self, batch: Iterable[Feed], results: list[bool]) -> list[Feed]:
        """Tells feeds what was written; returns those whose append was refused."""
        self._available()
        refused = []
        for feed, written in zip(batch, results, strict=True):
            if written:
                feed.written()
                self._due_again(feed)
            else:
                refused.append(feed)
        return refused

    def _due_again(self, feed: Feed) -> None:
        """What came in while it was committed."""
        if feed.committed < feed.seq:
            self.due(feed, urgent=feed.visible < feed.seq)

    async def _reclaim(self, refused: list[Feed]) -> dict[Feed, LogUnavailable]:
        """An append is refused when another node took the conversation over, or when the log has lost its tail.
        Returns the feeds of which the log can't tell now, and why."""
        if not refused:
            return {}
        in_doubt: dict[Feed, LogUnavailable] = {}
        # All of them are waited for: one that came late would change a feed whose append is under way again.
        kept = await asyncio.gather(*map(self._reclaim_one, refused), return_exceptions=True)
        for feed, ours in zip(refused, kept, strict=True):
            named = {"conversation_id": feed.key.conversation_id}
            if isinstance(ours, LogUnavailable):
                in_doubt[feed] = ours
            elif ours is True:
                log_lines.warning("the log lost its tail; writing it again", **named)
                self._due_again(feed)
            else:
                if isinstance(ours, BaseException):
                    log_lines.error("a conversation is given up by a bug", exc_info=ours, **named)
                self._give_up(feed)
        return in_doubt

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
        self.available = self.runs_ahead = False

    def _available(self) -> None:
        self.commits += 1
        if not self.available:
            log_lines.info("log can be written again")
        self.available = True
