"""Turns whose owner is gone go on here, also when no client asks.

A node that starts takes what nobody owns. A node that is found lost leaves its conversations to the others: each
begins with its share (by rendezvous hashing, Thaler and Ravishankar 1998: the node that scores highest for a
conversation), and a moment later takes what is still left. The log gives every conversation to one. What falls between
is looked for now and then: a hand-over that nobody took, an owner that was lost before this node started, and what
this node owns by the log and doesn't run, since it never heard that it got it, or since the log lost the turn's end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from zlib import crc32

import structlog

from gateway.logs.feeds import Elsewhere
from gateway.logs.journal import Journal
from gateway.logs.log import Key, LogUnavailable
from gateway.telemetry.metrics import Counter
from protocol.codes import Refusal

AT_ONCE = 32
"""Conversations that are loaded side by side."""
RETRY_FIRST_S = 0.5
SHARE_S = 0.5
"""So long a lost node's conversations are left to those whose share they are."""
SEEN_S = 4.0
"""By then others know that a node beats again, and what they had begun before is done."""
FIRST_LOOK_S, LOOK_S = 4.0, 30.0
"""A node that isn't known yet is found lost within the first of these."""
SILENT_S = 2.0
"""A turn that said nothing for so long is compared with the log."""

log_lines = structlog.get_logger(__name__)


class TakeOver:
    """`load` makes a conversation's session, which goes on with its turns; it raises `Elsewhere` and `Refusal`. `rests`
    tells whether none of them has run here since a time of the loop."""

    def __init__(
        self,
        journal: Journal,
        load: Callable[[Key], Awaitable[object]],
        rests: Callable[[Key, float], bool],
        taken: Counter,
    ) -> None:
        self._taken = taken
        self._journal = journal
        self._load = load
        self._rests = rests
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Takes over what nobody owns. Raises `LogUnavailable`."""
        await self._recover(await self._journal.log.unfinished(""), lost=self._journal.log.unclean)
        if self._journal.feeds.shared:
            self._journal.nodes.on_lost = self._node_lost
            self._journal.nodes.on_away = self._was_away
            self._spawn(_again_and_again(self._look, FIRST_LOOK_S, LOOK_S))
            self._spawn(_again_and_again(self._journal.recheck_silent, SILENT_S, SILENT_S))

    async def close(self) -> None:
        self._journal.nodes.on_lost = self._journal.nodes.on_away = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def take(self, key: Key) -> None:
        """One conversation that may be nobody's now, or ours again."""
        self._spawn(self._take(key))

    def _node_lost(self, node_id: str) -> None:
        self._spawn(self._take_from(node_id))

    def _was_away(self) -> None:
        self._spawn(self._recheck())

    async def _recheck(self) -> None:
        """Others may still take over for a moment, until they see that this node is back: so it looks twice."""
        for pause_s in (0, SEEN_S):
            await asyncio.sleep(pause_s)
            while True:
                try:
                    await self._journal.recheck()
                    break
                except LogUnavailable as problem:
                    log_lines.warning("can't look what is still this node's", problem=str(problem))
                    await asyncio.sleep(1)

    async def _take_from(self, node_id: str) -> None:
        """Everything that a lost node was doing, however long the log takes to tell; and what it gave up in its last
        moments, if it could tell nobody."""
        log = self._journal.log
        while True:
            try:
                left = await log.unfinished(node_id)
                await self._recover([key for key in left if self._is_our_share(key)], lost=True)
                await asyncio.sleep(SHARE_S)
                await self._recover(await log.unfinished(node_id), lost=True)
                await self._recover(await log.unfinished(""), lost=False)
                return
            except LogUnavailable as problem:
                log_lines.warning("turns of a lost node can't be read yet", problem=str(problem))
                await asyncio.sleep(1)

    def _is_our_share(self, key: Key) -> bool:
        nodes = self._journal.nodes
        name = "/".join(key).encode("utf-8", "surrogatepass")
        scores = {node_id: crc32(node_id.encode(), crc32(name)) for node_id in (nodes.node_id, *nodes.others())}
        return max(scores, key=lambda node_id: (scores[node_id], node_id)) == nodes.node_id

    async def _look(self) -> None:
        log, since = self._journal.log, asyncio.get_running_loop().time()
        await self._recover(await log.unfinished(""), lost=False)
        for owner in await log.owners():
            if owner == log.node_id:
                mine = await log.unfinished(owner)
                await self._recover([key for key in mine if self._rests(key, since)], lost=False)
            elif self._journal.nodes.is_lost(owner):
                await self._recover(await log.unfinished(owner), lost=True)

    async def _recover(self, keys: list[Key], *, lost: bool) -> None:
        if not keys:
            return
        log_lines.info("taking over turns left open", conversations=len(keys), lost=lost)
        random.shuffle(keys)
        for key, settled in zip(keys, await asyncio.gather(*map(self._tried, keys)), strict=True):
            if not settled:
                self.take(key)

    async def _take(self, key: Key) -> None:
        """Until it is somebody's: what nobody runs would have no end."""
        pause_s = RETRY_FIRST_S
        while not await self._tried(key):
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, LOOK_S)

    async def _tried(self, key: Key) -> bool:
        """Whether there is nothing more to do."""
        named = {"conversation_id": key.conversation_id}
        async with self._gate:
            try:
                await self._load(key)
                self._taken.inc()
            except Elsewhere:
                pass  # another node was faster
            except Refusal as refusal:
                if refusal.retryable:
                    log_lines.warning("a turn left open can't be taken over yet", problem=refusal.message, **named)
                return not refusal.retryable  # it may have been deleted
            except Exception:  # the others go on
                log_lines.exception("a turn left open couldn't be taken over", **named)
        return True

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _again_and_again(look: Callable[[], Awaitable[None]], first_s: float, pause_s: float) -> None:
    await asyncio.sleep(first_s)
    while True:
        try:
            await look()
        except LogUnavailable as problem:
            log_lines.warning("can't look for turns left open", problem=str(problem))
        except Exception:
            log_lines.exception("looking for turns left open failed by a bug")
        await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
