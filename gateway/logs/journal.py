"""The journal keeps this node's feeds, and has what is appended to them written to the log: by one writer for each
domain of it, so that what fails of the log stops only the conversations that are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.log import Key, Log, LogUnavailable
from gateway.logs.nodes import Alone, Nodes
from gateway.logs.writer import Writer

TOKEN_DELAY_S = 0.018
RECHECK_AT_ONCE = 256


def _nobody_cares(_: Feed) -> None:
    """Until somebody asks to be told."""


class Journal:
    """`start` before anything is appended, `close` in the end."""

    def __init__(self, log: Log, nodes: Nodes | None = None, *, token_delay_s: float = TOKEN_DELAY_S) -> None:
        """Without `nodes` the log is this node's alone."""
        self.log = log
        self.nodes = nodes or Alone(log.node_id)
        self.feeds = Feeds(log, self.nodes, self._writer)
        self.on_refused: Callable[[Feed], None] = _nobody_cares
        """Told of a feed that was ours and isn't any more."""
        self._token_delay_s = token_delay_s
        self._writers: dict[str, Writer] = {}
        self._started = False

    def start(self) -> None:
        self._started = True
        for writer in self._writers.values():
            writer.start()

    async def close(self) -> None:
        """Commits what is due. If the log can't be written, what was never in it is lost."""
        await asyncio.gather(*(writer.close() for writer in self._writers.values()))
        await self.feeds.close()

    # ------------------------------------------------------------ writers

    @property
    def available(self) -> bool:
        """The last commits worked, in every domain of the log."""
        return all(writer.available for writer in self._writers.values())

    @property
    def waiting(self) -> int:
        """Feeds with entries that aren't in the log yet."""
        return sum(writer.waiting for writer in self._writers.values())

    @property
    def commits(self) -> int:
        return sum(writer.commits for writer in self._writers.values())

    def _writer(self, key: Key) -> Writer:
        """Who commits a feed that is made now, for all its life: also if the domain is drawn otherwise later."""
        domain = self.log.domain(key)
        writer = self._writers.get(domain)
        if writer is None:
            writer = self._writers[domain] = Writer(
                self.log, reclaim=self.feeds.reclaim, give_up=self._give_up, token_delay_s=self._token_delay_s
            )
            if self._started:
                writer.start()
        return writer

    def _give_up(self, feed: Feed) -> None:
        self.feeds.give_up(feed)
        self.on_refused(feed)

    # ------------------------------------------------------------ whose it is

    async def recheck(self) -> None:
        """Finds out what others have taken over while this node was silent: an idle conversation is refused nothing,
        and its readers here wouldn't see what the new owner writes. Raises `LogUnavailable`."""
        await self._give_up_unless(self.feeds.still_owns, self.feeds.owned())

    async def recheck_silent(self) -> None:
        """Finds out what the log has lost of turns that say nothing: an owner that has nothing to append is refused
        nothing, and one that lost its turn publishes nothing, so their readers would wait. What can't be read now is
        looked at the next time."""
        with suppress(LogUnavailable):
            await self._give_up_unless(self.feeds.stands, self.feeds.silent())

    async def _give_up_unless(self, stands: Callable[[Feed], Awaitable[bool]], feeds: Sequence[Feed]) -> None:
        problem: BaseException | None = None
        for start in range(0, len(feeds), RECHECK_AT_ONCE):
            some = feeds[start : start + RECHECK_AT_ONCE]
            asked = await asyncio.gather(*map(stands, some), return_exceptions=True)
            for feed, answer in zip(some, asked, strict=True):
                if isinstance(answer, BaseException):
                    problem = answer  # of one domain of the log: the others are no worse for it
                elif answer or feed.fenced:
                    pass
                elif feed.follows:
                    self.feeds.give_up(feed)
                else:
                    self._give_up(feed)
        if problem is not None:
            raise problem
