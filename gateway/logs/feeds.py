"""The feeds of this node: which conversations it follows, and which it owns.

    nobody's --claim--> ours --release--> nobody's         An owner appends; everybody else follows.
    another's --it is lost--> claim instead of it --> ours

A feed lives as long as somebody holds it: a session, a cursor, or entries that aren't written yet. Where several
nodes share the log, a feed that isn't ours follows what its owner appends.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from gateway.logs.feed import Committer, Feed
from gateway.logs.following import Following, level
from gateway.logs.log import Claim, Head, Key, Log, LogUnavailable
from gateway.logs.nodes import Alone, Nodes


class Elsewhere(Exception):
    """Another node owns the conversation: ask there."""

    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self.node_id = node_id


class Owned(NamedTuple):
    feed: Feed
    lost: bool
    """The last owner ended without a word, or the log lost what the owner wrote."""


def forget(tasks: dict[Key, asyncio.Task[Any]], key: Key, task: asyncio.Task[Any]) -> None:
    """Done callback of a task that many may wait for. If all of them are gone nobody else hears of its exception."""
    tasks.pop(key, None)
    if not task.cancelled():
        task.exception()


class Feeds:
    """One feed a conversation. Every method that waits may raise `LogUnavailable` and is safe to cancel."""

    def __init__(self, log: Log, nodes: Nodes, committer: Callable[[Key], Committer]) -> None:
        self._log = log
        self._nodes = nodes
        self._committer = committer
        self._shared = not isinstance(nodes, Alone)
        self._feeds: WeakValueDictionary[Key, Feed] = WeakValueDictionary()
        self._opening: dict[Key, asyncio.Task[Feed]] = {}
        self._releasing: dict[Key, asyncio.Task[None]] = {}
        self._catching_up: set[asyncio.Task[None]] = set()
        self._handed_over = False
        self._heard: dict[Key, int] = {}
        """How far those with an open turn were at the last call of `silent`."""

    @property
    def shared(self) -> bool:
        """Other nodes may use the same log."""
        return self._shared

    def __len__(self) -> int:
        return len(self._feeds)

    def known(self, key: Key) -> Feed | None:
        """Its feed, if somebody holds one."""
        return self._feeds.get(key)

    def forget(self, feed: Feed) -> None:
        """Nothing more comes through it: who opens the conversation next gets another feed."""
        if self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]
            if feed.follows:
                self._nodes.unfollow(feed.key)

    def give_up(self, feed: Feed) -> None:
        """Its entries aren't those of the log any more, or others append now: its readers begin anew."""
        self.forget(feed)
        feed.refused()

    # ------------------------------------------------------------ reading

    async def open(self, key: Key) -> Feed:
        """This node's feed of a conversation, whether or not that exists yet, with all that the log has by now: who
        was told of an entry, by whichever node, finds it here. Whose the conversation is doesn't matter."""
        while True:
            if (feed := self._feeds.get(key)) is None:
                if (opening := self._opening.get(key)) is None:
                    return await asyncio.shield(self._opening_begun(key))
                feed = await asyncio.shield(opening)
            if not feed.follows or await self._is_level(feed):
                return feed
            self.give_up(feed)

    async def _is_level(self, feed: Feed) -> bool:
        head = await self._log.head(feed.key)
        return (feed.seq, feed.epoch) == (head.seq, head.epoch) or await level(feed, self._log)

    def _opening_begun(self, key: Key) -> asyncio.Task[Feed]:
        opening = self._opening[key] = asyncio.create_task(self._open(key), name="open feed")
        opening.add_done_callback(lambda task: forget(self._opening, key, task))
        return opening

    async def _open(self, key: Key) -> Feed:
        if not self._shared:
            head = await self._log.head(key)
            return self._feeds.get(key) or self._made(key, head)
        following = self._following(key)
        await self._nodes.follow(key, following)
        try:
            head = await self._log.head(key)
        except BaseException:
            self._nodes.unfollow(key)
            raise
        if (feed := self._feeds.get(key)) is not None:  # claimed meanwhile
            if not feed.follows:
                self._nodes.unfollow(key)
            return feed
        feed = self._made(key, head)
        feed.follows = True
        following.feed_made()
        return feed

    def _made(self, key: Key, head: Head) -> Feed:
        feed = self._feeds[key] = Feed(key, head, self._committer(key))
        feed.handed_over = self._handed_over
        if self._shared:
            weakref.finalize(feed, self._gone, key)
        return feed

    def _following(self, key: Key) -> Following:
        return Following(key, self._log, lambda: self._feeds.get(key), self.give_up, self._catching_up)

    def _gone(self, key: Key) -> None:
        """The last one who held the feed has let go of it."""
        if key not in self._feeds and key not in self._opening:
            self._nodes.unfollow(key)

    # ------------------------------------------------------------ owning

    async def own(self, key: Key) -> Owned:
        """Makes this node the one that appends, with a feed that has all of the log. Raises `Elsewhere` when another
        node is it, and isn't known to be lost."""
        if (releasing := self._releasing.get(key)) is not None:
            await asyncio.wait([releasing])
        claim = await self._claim(key)
        if claim.owner is not None:
            raise Elsewhere(claim.owner)
        if (opening := self._opening.get(key)) is not None:
            await asyncio.wait([opening])
        feed = self._feeds.get(key)
        if feed is not None and self._shared and not await self._has_all(feed, claim.head):
            self.give_up(feed)
            if not feed.deleted:
                claim = await self._mark_lost(key)
            feed = None
        if feed is None:
            feed = self._feeds.get(key) or self._made(key, claim.head)
        if feed.follows:
            feed.follows = False
            self._nodes.unfollow(key)
        feed.stale = claim.head.stale
        return Owned(feed, claim.lost)

    async def _claim(self, key: Key) -> Claim:
        claim = await self._log.claim(key)
        if claim.owner is not None and self._nodes.is_lost(claim.owner):
            claim = await self._log.claim(key, instead_of=claim.owner)
        return claim

    async def _has_all(self, feed: Feed, head: Head) -> bool:
        """Whether a feed has what the log has, or reads the rest of it. The log ends at `head`, and nobody appends."""
        if (feed.seq, feed.epoch) == (head.seq, head.epoch):
            return True
        if not feed.follows:  # it was to be released, and that failed
            await self._follow(feed)
        return await level(feed, self._log)

    async def reclaim(self, feed: Feed) -> bool:
        """The log refused an append of `feed`, which we own as far as we know. True: it had lost its tail, the feed
        still has that, and what is missing is due again. False: the feed is of no use any more."""
        if not self._shared or feed.fenced:  # given up while it was written
            return False
        claim = await self._log.claim(feed.key)
        if claim.owner is not None or feed.fenced:
            return False
        if feed.rewind(claim.head):
            return True
        if claim.head.seq <= feed.committed and not claim.head.stale:
            await self._mark_lost(feed.key)
        return False

    def owned(self) -> list[Feed]:
        """Those that are ours, as far as we know."""
        feeds = list(self._feeds.values()) if self._shared else []
        return [feed for feed in feeds if not feed.follows and feed.key not in self._releasing]

    async def still_owns(self, feed: Feed) -> bool:
        """Whether a feed of ours is ours by the log, too, and nobody else wrote to it meanwhile."""
        if not self._shared:
            return True
        claim = await self._log.claim(feed.key)
        if feed.follows and claim.owner is None:  # it was released while we asked
            await self._log.release(feed.key)
        return claim.owner is None and claim.head.epoch <= feed.epoch

    def silent(self) -> list[Feed]:
        """Those with an open turn of which nothing came since the last call."""
        feeds = [feed for feed in self._feeds.values() if feed.open_turns and feed.key not in self._releasing]
        before, self._heard = self._heard, {feed.key: feed.seq for feed in feeds}
        return [feed for feed in feeds if before.get(feed.key) == feed.seq]

    async def stands(self, feed: Feed) -> bool:
        """Whether the log still has what a feed has. A tail that is lost counts only where another node appends: what
        is ours is written again, or given up, with the next append."""
        if feed.follows:
            return await level(feed, self._log)
        at = feed.committed
        return await self._log.epoch_at(feed.key, at) == feed.committed_epoch or await self.still_owns(feed)

    async def _mark_lost(self, key: Key) -> Claim:
        """Entries of a conversation of ours aren't in the log any more. They may have been seen, and a place must not
        be used twice: so the next entry is of a new epoch. A turn that is begun again spends an attempt, as whatever
        made the log refuse it may happen again."""
        return await self._log.claim(key, instead_of=self._log.node_id)

    def release(self, feed: Feed) -> asyncio.Task[None] | None:
        """Lets others own a conversation of ours; all of it is in the log. Its readers follow it from now on."""
        if not self._shared:
            return None
        key = feed.key
        if not feed.cursors:
            self.give_up(feed)
        releasing = self._releasing[key] = asyncio.create_task(self._release(feed), name="release")
        releasing.add_done_callback(lambda task: forget(self._releasing, key, task))
        return releasing

    async def _release(self, feed: Feed) -> None:
        if not feed.fenced and not feed.handed_over:
            try:
                await self._follow(feed)
            except LogUnavailable:
                self.give_up(feed)  # its readers try again by themselves
        await self._log.release(feed.key)

    async def _follow(self, feed: Feed) -> None:
        await self._nodes.follow(feed.key, self._following(feed.key))
        feed.follows = True

    def hand_over(self) -> None:
        """This node stops: whoever reads here over HTTP may go when level, and attach to another node."""
        self._handed_over = True
        for feed in list(self._feeds.values()):
            feed.hand_over()

    async def released(self) -> None:
        """Waits for what is being released."""
        if self._releasing:
            await asyncio.wait(list(self._releasing.values()))

    async def close(self) -> None:
        """Waits for what is being released, and follows nobody any more. What is being opened fails when the engine
        is closed."""
        await self.released()
        for feed in list(self._feeds.values()):
            if feed.follows:
                self._nodes.unfollow(feed.key)
        reading = list(self._catching_up)
        for task in reading:
            task.cancel()
        if reading:
            await asyncio.wait(reading)
