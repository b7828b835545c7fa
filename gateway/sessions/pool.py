"""The pool of sessions: one per conversation, made on demand, evicted after true inactivity, back from the log.

A running, queued or waiting turn is activity, and so is every command; a subscribed reader alone isn't: it keeps
its cursor, and the next message brings the session back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from typing import Any

import structlog
from msgspec import UnsetType

from gateway.logs.feed import Feed
from gateway.logs.feeds import forget
from gateway.logs.journal import Journal
from gateway.logs.log import Key, LogUnavailable
from gateway.sessions.allocator import Trimmer
from gateway.sessions.calls import check_tools
from gateway.sessions.generation import Engine
from gateway.sessions.session import Acknowledged, Outcome, Session, Stopping
from gateway.sessions.states import State
from gateway.sessions.takeover import TakeOver
from gateway.sessions.turn import TurnRun
from gateway.settings import Limits
from protocol.codes import ErrorCode, Refusal
from protocol.frames import ChatMessage, Error

DELETE_GRACE_S = 1.0
"""How long readers that are behind may take to see the end of a conversation before it is erased."""

DELETE_WAIT_S = 10.0
"""How long a command waits for a deletion; that goes on by itself."""
ERASE_RETRY_S = 0.5
CLOSE_WITHIN_S = 3.0
"""How long `close` waits for what was begun: while the log can't be written a deletion has no end."""
LEAVE_TICK_S = 0.25
"""A node that drains looks so often for what others can go on with."""

Left = Callable[[Key], object]
"""Told of a conversation with open turns that this node has given up."""

log_lines = structlog.get_logger(__name__)

OUTCOMES = {
    State.COMPLETED: "completed",
    State.CANCELLED: "cancelled",
    State.FAILED: "failed",
    State.HANDED_OVER: "handed_over",
}


class SessionPool:
    """Commands come in here, whatever the transport. All are safe to cancel: a decision that was made stands."""

    def __init__(self, journal: Journal, engine: Engine, limits: Limits) -> None:
        self.journal = journal
        self.draining = False
        self._engine = engine
        self._limits = limits
        self._sessions: dict[Key, Session] = {}
        """Least recently used first."""
        self._loading: dict[Key, asyncio.Task[Session]] = {}
        self._deleting: dict[Key, asyncio.Task[None]] = {}
        self._runs: dict[asyncio.Task[None], tuple[TurnRun, Session]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._on_run = self._start
        """One bound method for all sessions."""
        self.take_over = TakeOver(journal, self._take_up, self._rests, engine.metrics.taken_over)
        journal.on_refused = self._refused

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def running(self) -> int:
        return len(self._runs)

    def known(self, key: Key) -> Session | None:
        """Its session, if this node owns it and the session is in memory."""
        session = self._sessions.get(key)
        return session if session is not None and not session.feed.fenced else None

    # ------------------------------------------------------------ commands

    async def submit(self, key: Key, frame: ChatMessage) -> tuple[Session, Acknowledged]:
        """Appends a message; its entry is the acknowledgement. Raises `Refusal`; then nothing was appended.

        Where nodes share the log, a message behind a running turn is taken even while this node drains, and handed
        over with it.
        """
        session = await self.session(key)
        if frame.message_id is None or session.fold.by_message_id(frame.message_id) is None:
            self._admit(session, draining=self.draining and (session.idle or not self.journal.feeds.shared))
            check_tools(frame.tools or (), self._engine.toolbox)
            await self._engine.context.admit(frame)
            # While its tokens were counted the session may have been evicted or deleted.
            session = await self.session(key)
        return session, session.submit(frame, max_queued=self._engine.log_settings.max_queued)

    def _admit(self, session: Session, *, draining: bool) -> None:
        try:
            self._check_room(session, draining=draining)
        except Refusal:
            self._forget_if_empty(session)
            raise

    def _check_room(self, session: Session, *, draining: bool) -> None:
        if draining:
            raise Stopping
        if not session.feed.log_available:
            raise Refusal(
                ErrorCode.OVERLOADED, "The conversation log can't be written now. Try again soon.", retry_after_s=2
            )
        if self.running >= self._limits.max_streams:
            raise Refusal(
                ErrorCode.OVERLOADED, "Too many answers are being streamed now. Try again soon.", retry_after_s=2
            )

    async def cancel(self, key: Key, turn_id: str | None) -> Outcome:
        """As `Session.cancel`, told when it is in the log."""
        session = await self.session(key)
        outcome = session.cancel(turn_id)
        self._forget_if_empty(session)
        await session.feed.when_committed(outcome.seq)
        return outcome

    async def answer(self, key: Key, call_id: str, result: Any, error: str | UnsetType) -> None:
        """As `Session.answer`, told when it is in the log."""
        session = await self.existing(key)
        await session.feed.when_committed(session.answer(call_id, result, error))

    async def delete(self, key: Key) -> None:
        """Ends its turns, shows readers the end, and erases it. Idempotent. Once begun it goes on to its end,
        whether or not the caller waits. Raises `Refusal` when the log can't be written."""
        deleting = self._deleting.get(key)
        if deleting is None:
            deleting = self._deleting[key] = asyncio.create_task(self._delete(key), name="delete")
            deleting.add_done_callback(lambda task: forget(self._deleting, key, task))
        try:
            async with asyncio.timeout(DELETE_WAIT_S):
                await asyncio.shield(deleting)
        except (LogUnavailable, TimeoutError):
            raise log_unreadable() from None

    async def _delete(self, key: Key) -> None:
        session = await self._loaded(key)
        while not await self.journal.feeds.still_owns(session.feed):  # readers here mustn't hear of an end that isn't
            self._drop(session)
            session = await self._loaded(key)
        feed = session.feed
        session.draining = True
        session.cancel_all()
        try:
            await feed.when_committed(feed.seq)
            await feed.end(DELETE_GRACE_S)
            if not await self._erase(feed):
                raise LogUnavailable("this conversation was taken over while it was deleted")
        finally:
            self._drop(session)

    async def _erase(self, feed: Feed) -> bool:
        """Readers were told already, so it is tried until the log can do it. False: another node has it now."""
        log, tried = self.journal.log, False
        while True:
            try:
                if tried and not await self.journal.feeds.still_owns(feed):
                    return False  # it may have been done, and the id be in use again
                erased = await log.erase(feed.key)
                if tried:
                    await log.release(feed.key)
                return erased
            except LogUnavailable as problem:
                log_lines.warning("a conversation can't be erased yet", problem=str(problem))
                tried = True
                await asyncio.sleep(ERASE_RETRY_S)

    def _drop(self, session: Session) -> None:
        """Nothing can be appended through this session any more; whoever comes next starts from the log."""
        session.hand_over()
        self.journal.feeds.give_up(session.feed)
        if self._sessions.get(session.feed.key) is session:
            del self._sessions[session.feed.key]

    def _refused(self, feed: Feed) -> None:
        """The log took nothing more from us. The turn ends here at once, whatever it waits for, and goes on where the
        conversation is now: on another node, or here if the log lost what we had."""
        session = self._sessions.get(feed.key)
        if session is not None and session.feed is feed:
            self._drop(session)
        if self.journal.feeds.shared and not self.draining:
            self.take_over.take(feed.key)

    def _rests(self, key: Key, since: float) -> bool:
        """Whether no turn of it has run here since then (loop time)."""
        session = self.known(key)
        return session is None or (self._at_rest(session) and session.last_active < since)

    async def _take_up(self, key: Key) -> None:
        """Goes on with the turns that the log holds open. Raises as `existing`."""
        session = self.known(key)
        if session is not None and self._at_rest(session):
            self._evict(session)  # if it knows of none, the log has lost an end that it had
        await self.existing(key)

    # ------------------------------------------------------------ sessions

    async def session(self, key: Key) -> Session:
        """The session of a conversation, whether or not that exists yet. Raises `Refusal` (`OVERLOADED`), and
        `Elsewhere` when another node owns the conversation.

        It is in the pool when this returns. Decide with it before anything is awaited: later it may be gone.
        """
        try:
            while True:
                session = await self._loaded(key)
                deleting = self._deleting.get(key)
                if deleting is None:
                    return session
                _, unfinished = await asyncio.wait([deleting], timeout=DELETE_WAIT_S)
                if unfinished:
                    raise log_unreadable()
        except LogUnavailable:
            raise log_unreadable() from None

    async def _loaded(self, key: Key) -> Session:
        # What was loaded may be gone when a waiter's turn comes, so it is looked for again: one conversation never
        # has two sessions.
        while (session := self._sessions.get(key)) is None or session.feed.fenced:
            if session is not None:
                self._drop(session)
            loading = self._loading.get(key)
            if loading is None:
                loading = self._loading[key] = asyncio.create_task(self._load(key), name="load session")
                loading.add_done_callback(lambda task: forget(self._loading, key, task))
            await asyncio.shield(loading)
        self._touch(session)
        return session

    async def existing(self, key: Key) -> Session:
        """As `session`, for a conversation that has to exist. Raises `Refusal` (`NOT_FOUND`, `OVERLOADED`)."""
        session = await self.session(key)
        if self._forget_if_empty(session):
            raise Refusal(ErrorCode.NOT_FOUND, "There is no such conversation.")
        return session

    async def _load(self, key: Key) -> Session:
        if self.draining and self.journal.feeds.shared:
            raise Stopping
        feed, lost = await self.journal.feeds.own(key)
        fold = await feed.fold()
        if self.draining and self.journal.feeds.shared:  # meanwhile
            self.journal.feeds.release(feed)
            raise Stopping
        session = self._sessions[key] = Session(feed, fold, self._engine, self._on_run)
        session.last_active = self._loop.time()
        session.draining = self.draining
        if self.draining:
            return session
        # A session with an open turn is never evicted: whoever ran this one is gone.
        session.resume(lost=lost)
        return session

    def _forget_if_empty(self, session: Session) -> bool:
        """Asking about a conversation that doesn't exist leaves nothing behind."""
        feed = session.feed
        if feed.seq == 0 and self._sessions.pop(feed.key, None) is not None:
            self.journal.feeds.release(feed)
        return feed.seq == 0

    def _touch(self, session: Session) -> None:
        session.last_active = self._loop.time()
        key = session.feed.key
        if self._sessions.get(key) is session:
            self._sessions[key] = self._sessions.pop(key)

    # ------------------------------------------------------------ running turns

    def _start(self, run: TurnRun, session: Session) -> None:
        task = run.start()
        self._runs[task] = (run, session)
        self._engine.metrics.stream_started()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        run, session = self._runs.pop(task)
        self._touch(session)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log_lines.error("a turn's task ended by a bug", exc_info=problem)
        if session.run is run:
            session.run = None
            if session.feed.fenced:
                self._drop(session)
            elif run.turn.end is None and not session.draining:
                session.abandon(run.turn)
        metrics = self._engine.metrics
        metrics.stream_ended(OUTCOMES.get(run.state, "left"), self._loop.time() - run.started_at, run.tokens)
        if isinstance(run.turn.end, Error):
            metrics.stream_failed(run.turn.end.error.code)
            log_lines.warning(
                "turn failed",
                code=run.turn.end.error.code,
                problem=run.turn.end.error.message,
                conversation_id=session.feed.key.conversation_id,
                turn_id=run.turn.turn_id,
            )

    # ------------------------------------------------------------ life of the pool

    async def start(self) -> None:
        """Takes over the turns that the last run left open, and begins to look for idle sessions."""
        self._sweeper = asyncio.create_task(self._sweep(), name="pool sweep")
        await self.take_over.start()

    async def drain(self, within_s: float, left: Left = lambda _: None) -> None:
        """Takes no new messages, lets running turns end within the time, and hands over the others. Where nodes share
        the log every conversation becomes nobody's, as soon as nothing runs in it, and `left` hears of those that
        others have to go on with."""
        self.draining = True
        await self.take_over.close()
        until = self._loop.time() + within_s
        while True:
            self._leave_to_others(left)
            busy = [task for task, (run, _) in self._runs.items() if not run.waits_for_client]
            left_s = until - self._loop.time()
            if not busy or left_s <= 0:
                break
            await asyncio.wait(busy, timeout=min(left_s, LEAVE_TICK_S), return_when=asyncio.FIRST_COMPLETED)
        for session in list(self._sessions.values()):
            session.hand_over()
        if self._runs:
            await asyncio.wait(list(self._runs))
        self.journal.feeds.hand_over()
        await self._release_all(left)

    def _leave_to_others(self, left: Left) -> None:
        """What doesn't run, or waits for its client, goes on at another node."""
        if not self.journal.feeds.shared:
            return
        for session in list(self._sessions.values()):
            session.draining = True
            if session.run is not None and session.run.rests:
                session.hand_over()
            if session.run is None and session.feed.committed == session.feed.seq:
                self._leave(session, left)

    def _leave(self, session: Session, left: Left) -> None:
        key = session.feed.key
        if key in self._deleting or self._sessions.get(key) is not session:
            return
        released = self._evict(session)
        if released is not None and session.fold.current() is not None:
            released.add_done_callback(lambda _: left(key))

    async def _release_all(self, left: Left) -> None:
        """Gives up every conversation, once all of it is in the log."""
        if not self.journal.feeds.shared:
            return
        if self._loading:
            await asyncio.wait(list(self._loading.values()), timeout=CLOSE_WITHIN_S)
        leaving = [asyncio.create_task(self._leave_written(session, left)) for session in self._sessions.values()]
        if leaving:
            _, stuck = await asyncio.wait(leaving, timeout=CLOSE_WITHIN_S)
            for task in stuck:
                task.cancel()
            if stuck:
                await asyncio.wait(stuck)
        await self.journal.feeds.released()

    async def _leave_written(self, session: Session, left: Left) -> None:
        feed = session.feed
        with suppress(LogUnavailable):  # then it is another's already
            while feed.committed < feed.seq:
                await feed.when_committed(feed.seq)
            self._leave(session, left)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        await self.drain(0)
        begun = [*self._loading.values(), *self._deleting.values()]
        if begun:
            _, stuck = await asyncio.wait(begun, timeout=CLOSE_WITHIN_S)
            for task in stuck:
                task.cancel()
            if stuck:
                await asyncio.wait(stuck)

    async def _sweep(self) -> None:
        settings, model_settings = self._engine.log_settings, self._engine.model_settings
        grace_s, idle_s = model_settings.orphan_grace_s, settings.session_idle_s
        tick_s = max(0.05, min(5.0, idle_s / 4, grace_s / 4 if grace_s >= 0 else 5.0))
        expire_at = self._loop.time()
        trimmer = Trimmer()
        while True:
            await asyncio.sleep(tick_s)
            now = self._loop.time()
            try:
                trimmer.evicted(self.evict(now - idle_s), now)
                await trimmer.trim_if_due(now)
                if grace_s >= 0:
                    await self.end_orphans(now, grace_s)
                if settings.retention_s and now >= expire_at:
                    expire_at = now + min(60.0, settings.retention_s / 4)
                    await self.expire(settings.retention_s)
            except LogUnavailable as problem:
                log_lines.error("the pool's sweep couldn't ask the log", problem=str(problem))
            except Exception:
                log_lines.exception("the pool's sweep failed by a bug")

    def evict(self, before: float) -> int:
        """Drops sessions that have been idle since `before` (loop time). Returns how many."""
        evicted = 0
        for session in list(takewhile(lambda session: session.last_active <= before, self._sessions.values())):
            if session.feed.fenced:
                self._drop(session)
            elif self._at_rest(session):
                self._evict(session)
                evicted += 1
            else:
                self._touch(session)  # an open turn is activity
        return evicted

    def _at_rest(self, session: Session) -> bool:
        """Nothing is going on in it, and all of it is in the log."""
        feed = session.feed
        return session.idle and feed.committed == feed.seq and feed.key not in self._deleting

    def _evict(self, session: Session) -> asyncio.Task[None] | None:
        del self._sessions[session.feed.key]
        return self.journal.feeds.release(session.feed)

    async def end_orphans(self, now: float, grace_s: float) -> None:
        """Cancels turns that nobody on any node has read for `grace_s`, unless they wait for a client's results.
        Raises `LogUnavailable`."""
        unread: list[tuple[TurnRun, Session]] = []
        for run, session in self._runs.values():
            if session.feed.cursors or run.waits_for_client:
                run.unread_since = None
            elif session.run is run:
                unread.append((run, session))
        elsewhere = await self.journal.nodes.followed([session.feed.key for _, session in unread])
        for (run, session), read in zip(unread, elsewhere, strict=True):
            if read or session.feed.cursors:
                run.unread_since = None
            elif run.unread_since is None:
                run.unread_since = now
            elif now - run.unread_since >= grace_s and session.run is run:
                session.cancel(run.turn.turn_id)

    async def expire(self, retention_s: float) -> None:
        """Erases conversations that were last written so long ago. Raises `LogUnavailable`."""
        log = self.journal.log
        before_ms = int((time.time() - retention_s) * 1000)
        for key in await log.expire(before_ms, leave_to=self.journal.nodes.others()):
            feed = self.journal.feeds.known(key)
            if feed is None or not feed.committed:
                continue
            head = await log.head(key)
            if head.seq and head.epoch == feed.committed_epoch:
                continue  # it began anew meanwhile
            session = self._sessions.get(key)
            if session is not None and session.feed is feed:
                self._drop(session)
            feed.refused()
            self.journal.feeds.forget(feed)
            await feed.end(0)


def log_unreadable() -> Refusal:
    """What a command or a reader is told while the log is down."""
    return Refusal(ErrorCode.OVERLOADED, "The conversation log can't be read now. Try again soon.", retry_after_s=2)
