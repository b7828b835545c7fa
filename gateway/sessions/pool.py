"""The pool of sessions: one per conversation, made on demand, evicted after true inactivity, back from the log.

A running, queued or waiting turn is activity, and so is every command; a subscribed reader alone isn't: it keeps
its cursor, and the next message brings the session back.
"""

from __future__ import annotations

import asyncio
from itertools import takewhile
from typing import Any

import structlog
from msgspec import UnsetType

from gateway.logs.feed import Feed
from gateway.logs.feeds import forget
from gateway.logs.journal import Journal
from gateway.logs.log import Key, LogUnavailable
from gateway.sessions.calls import check_tools
from gateway.sessions.deletion import Deletion
from gateway.sessions.generation import Engine
from gateway.sessions.leaving import Leaving, Left, end_within
from gateway.sessions.refusals import Stopping, log_unreadable
from gateway.sessions.session import Acknowledged, Outcome, Session
from gateway.sessions.states import State
from gateway.sessions.sweep import sweep
from gateway.sessions.takeover import TakeOver
from gateway.sessions.turn import TurnRun
from gateway.settings import Limits
from protocol.codes import ErrorCode, Refusal
from protocol.frames import ChatMessage, Error

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
        self.held: dict[Key, Session] = {}
        """Least recently used first."""
        self.loading: dict[Key, asyncio.Task[Session]] = {}
        self.runs: dict[asyncio.Task[None], tuple[TurnRun, Session]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._on_run = self._start
        """One bound method for all sessions."""
        self.deletion = Deletion(journal, self)
        self.take_over = TakeOver(journal, self._take_up, self._rests, engine.metrics.taken_over)
        journal.on_refused = self._refused

    @property
    def sessions(self) -> int:
        return len(self.held)

    @property
    def running(self) -> int:
        return len(self.runs)

    def known(self, key: Key) -> Session | None:
        """Its session, if this node owns it and the session is in memory."""
        session = self.held.get(key)
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
        """As `Deletion.delete`."""
        await self.deletion.delete(key)

    # ------------------------------------------------------------ whose it is

    def drop(self, session: Session) -> None:
        """Nothing can be appended through this session any more; whoever comes next starts from the log."""
        session.hand_over()
        self.journal.feeds.give_up(session.feed)
        if self.held.get(session.feed.key) is session:
            del self.held[session.feed.key]

    def drop_of(self, feed: Feed) -> None:
        """Drops the session that appends to this feed, if there is one."""
        session = self.held.get(feed.key)
        if session is not None and session.feed is feed:
            self.drop(session)

    def _refused(self, feed: Feed) -> None:
        """The log took nothing more from us. The turn ends here at once, whatever it waits for, and goes on where the
        conversation is now: on another node, or here if the log lost what we had."""
        self.drop_of(feed)
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
            self.release(session)  # if it knows of none, the log has lost an end that it had
        await self.existing(key)

    # ------------------------------------------------------------ sessions

    async def session(self, key: Key) -> Session:
        """The session of a conversation, whether or not that exists yet. Raises `Refusal` (`OVERLOADED`), and
        `Elsewhere` when another node owns the conversation.

        It is in the pool when this returns. Decide with it before anything is awaited: later it may be gone.
        """
        try:
            while True:
                session = await self.loaded(key)
                if not await self.deletion.over(key):
                    return session
        except LogUnavailable:
            raise log_unreadable() from None

    async def loaded(self, key: Key) -> Session:
        # What was loaded may be gone when a waiter's turn comes, so it is looked for again: one conversation never
        # has two sessions.
        while (session := self.held.get(key)) is None or session.feed.fenced:
            if session is not None:
                self.drop(session)
            loading = self.loading.get(key)
            if loading is None:
                loading = self.loading[key] = asyncio.create_task(self._load(key), name="load session")
                loading.add_done_callback(lambda task: forget(self.loading, key, task))
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
        session = self.held[key] = Session(feed, fold, self._engine, self._on_run)
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
        if feed.seq == 0 and self.held.pop(feed.key, None) is not None:
            self.journal.feeds.release(feed)
        return feed.seq == 0

    def _touch(self, session: Session) -> None:
        session.last_active = self._loop.time()
        key = session.feed.key
        if self.held.get(key) is session:
            self.held[key] = self.held.pop(key)

    # ------------------------------------------------------------ running turns

    def _start(self, run: TurnRun, session: Session) -> None:
        task = run.start()
        self.runs[task] = (run, session)
        self._engine.metrics.stream_started()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        run, session = self.runs.pop(task)
        self._touch(session)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log_lines.error("a turn's task ended by a bug", exc_info=problem)
        if session.run is run:
            session.run = None
            if session.feed.fenced:
                self.drop(session)
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
        sweeping = sweep(self, self._engine.log_settings, self._engine.model_settings.orphan_grace_s)
        self._sweeper = asyncio.create_task(sweeping, name="pool sweep")
        await self.take_over.start()

    async def drain(self, within_s: float, left: Left = lambda _: None) -> None:
        """Takes no new messages, lets running turns end within the time, and hands over the others. Where nodes share
        the log every conversation becomes nobody's, as soon as nothing runs in it, and `left` hears of those that
        others have to go on with."""
        self.draining = True
        await self.take_over.close()
        await Leaving(self, self.journal.feeds, left).leave(within_s)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        await self.drain(0)
        await end_within([*self.loading.values(), *self.deletion.tasks])

    def evict(self, before: float) -> int:
        """Drops sessions that have been idle since `before` (loop time). Returns how many."""
        evicted = 0
        for session in list(takewhile(lambda session: session.last_active <= before, self.held.values())):
            if session.feed.fenced:
                self.drop(session)
            elif self._at_rest(session):
                self.release(session)
                evicted += 1
            else:
                self._touch(session)  # an open turn is activity
        return evicted

    def _at_rest(self, session: Session) -> bool:
        """Nothing is going on in it, and all of it is in the log."""
        feed = session.feed
        return session.idle and feed.committed == feed.seq and feed.key not in self.deletion

    def release(self, session: Session) -> asyncio.Task[None] | None:
        """Lets it go from the pool, and others own the conversation, of which all is in the log; the task is that."""
        key = session.feed.key
        if key in self.deletion or self.held.get(key) is not session:
            return None
        del self.held[key]
        return self.journal.feeds.release(session.feed)

    async def end_orphans(self, now: float, grace_s: float) -> None:
        """Cancels turns that nobody on any node has read for `grace_s`, unless they wait for a client's results.
        Raises `LogUnavailable`."""
        unread: list[tuple[TurnRun, Session]] = []
        for run, session in self.runs.values():
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
