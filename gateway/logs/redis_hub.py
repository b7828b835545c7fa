"""The hub follows any number of channels over one connection to each Redis server, and sends commands on the same.

It knows nothing of what the channels carry. A `Line` keeps each connection; here is which channel is whose, and what
happens when a cluster hands slots from one server to another.
"""

from __future__ import annotations

import asyncio

import structlog

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_lane import Part
from gateway.logs.redis_line import TICK_S, Line
from gateway.logs.redis_link import RedisLink
from gateway.logs.redis_subscription import Receiver, State, Subscription
from gateway.logs.redis_wire import Answered, Reply, Wire

SUBSCRIBE_S = 3.0
REROUTE_PAUSE_S = 0.1
"""Between two questions for a cluster's slots."""

AFTER_BUG_S = 1.0

log_lines = structlog.get_logger(__name__)


class Hub:
    """Works on an open link, which it doesn't close. `start` before anything else."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._subscriptions: dict[bytes, Subscription] = {}
        self._lines: dict[str, Line] = {}
        self._running: dict[Line, asyncio.Task[None]] = {}
        self._refreshes = 0
        self._suspect = asyncio.Event()
        """Something shows that slots have moved."""
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._refreshes = self._link.refreshes
        self._keeper = asyncio.create_task(self._keep(), name="redis hub")

    async def close(self) -> None:
        """Idempotent. Whoever waits gets `LogUnavailable`."""
        keeper, self._keeper = self._keeper, None
        tasks = [*self._running.values(), *([keeper] if keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        subscriptions, self._subscriptions, self._lines = self._subscriptions, {}, {}
        for subscription in subscriptions.values():
            subscription.fail(LogUnavailable("this node follows nobody any more"))

    # ------------------------------------------------------------ channels

    async def subscribe(self, channel: bytes, slot: int, receiver: Receiver) -> None:
        """On return everything that is published later is delivered. A second receiver of a channel replaces the
        first. Raises `LogUnavailable`. Safe to cancel: then the channel isn't followed."""
        subscription = self._subscriptions.get(channel)
        if subscription is None:
            line = self._line(slot)
            subscription = self._subscriptions[channel] = Subscription(channel, slot, receiver)
            line.want(subscription)
        else:
            subscription.receiver = receiver
            if subscription.line is not None:
                subscription.line.keep(subscription)
        if subscription.state is State.STANDING:
            return
        try:
            await self._stands(subscription)
        except BaseException:
            if subscription.receiver is receiver:
                self.unsubscribe(channel)
            raise

    async def _stands(self, subscription: Subscription) -> None:
        line = subscription.line
        if line is not None and line.problem is not None:
            raise LogUnavailable(*line.problem.args)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        subscription.waiters.append(waiter)
        try:
            async with asyncio.timeout(SUBSCRIBE_S):
                await waiter
        except TimeoutError:
            raise LogUnavailable(f"Redis at {self._link} doesn't confirm a subscription") from None
        finally:
            subscription.waiters.remove(waiter)

    def unsubscribe(self, channel: bytes) -> None:
        """Nothing more is delivered. The server is told within a second, so that whoever comes back before costs
        nothing."""
        subscription = self._subscriptions.get(channel)
        if subscription is not None and subscription.line is not None:
            subscription.receiver = None
            subscription.line.release(subscription)

    def _deliver(self, channel: bytes, payload: bytes) -> None:
        subscription = self._subscriptions.get(channel)
        if subscription is None or subscription.receiver is None:
            return
        try:
            subscription.receiver.message(payload)
        except Exception:
            log_lines.exception("a message was not understood")

    # ------------------------------------------------------------ commands

    def problem(self, slot: int) -> LogUnavailable | None:
        """Why nothing can be sent to the server of `slot`, if connecting to it has failed."""
        try:
            return self._line(slot).problem
        except LogUnavailable as problem:
            return problem

    def send(self, slot: int, answered: Answered, *words: Part) -> None:
        """Sends a command to the server of `slot`, which some subscription must have a line to. Raises
        `LogUnavailable`; `answered` is called once if it doesn't."""
        self._wire(slot).send(answered, *words)

    async def ask(self, slot: int, *words: Part) -> Reply:
        """As `send`, and waits: there is no time-out. The reply may be an exception. Safe to cancel."""
        return await self._wire(slot).ask(*words)

    def _wire(self, slot: int) -> Wire:
        line = self._line(slot)
        if line.wire is None:
            raise line.problem or LogUnavailable(f"the connection to Redis at {line.server.name} was lost")
        return line.wire

    # ------------------------------------------------------------ lines

    def _line(self, slot: int) -> Line:
        """The line to whoever serves `slot` now, made if need be. Raises `LogUnavailable`."""
        if self._keeper is None:
            raise LogUnavailable("this node follows nobody")
        server = self._link.server(slot)
        line = self._lines.get(server.name)
        if line is None:
            line = self._lines[server.name] = Line(
                server, clustered=self._link.clustered, deliver=self._deliver, moved=self._suspect.set
            )
            asyncio.get_running_loop().call_soon(self._run, line)  # by then something is wanted of it
        return line

    def _run(self, line: Line) -> None:
        if self._keeper is None or line in self._running:
            return
        task = self._running[line] = asyncio.create_task(line.run(), name="redis line")
        task.add_done_callback(lambda task: self._ended(line, task))

    def _ended(self, line: Line, task: asyncio.Task[None]) -> None:
        del self._running[line]
        broke = None if task.cancelled() else task.exception()
        if broke is not None:
            log_lines.error("following other nodes failed by a bug", exc_info=broke)
        if self._keeper is not None and line.wanted:
            # It broke, or it was wanted again in the moment in which it ended.
            asyncio.get_running_loop().call_later(AFTER_BUG_S if broke is not None else 0, self._run, line)
        elif self._lines.get(line.server.name) is line:
            del self._lines[line.server.name]

    async def _keep(self) -> None:
        """Ends what nobody wants, and follows slots to where they are served."""
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._suspect.wait()
            except TimeoutError:
                pass
            try:
                await self._tidy()
            except Exception:
                log_lines.exception("following slots failed by a bug")
                await asyncio.sleep(AFTER_BUG_S)

    async def _tidy(self) -> None:
        if self._suspect.is_set():
            self._suspect.clear()
            await self._look_up()
        if self._link.refreshes != self._refreshes:
            self._refreshes = self._link.refreshes
            self._reroute()
        for line in list(self._lines.values()):
            line.ask_again()
            for subscription in line.sweep():
                del self._subscriptions[subscription.channel]

    async def _look_up(self) -> None:
        try:
            await self._link.refresh()
        except LogUnavailable:
            pass  # whatever made us ask happens again
        await asyncio.sleep(REROUTE_PAUSE_S)

    def _reroute(self) -> None:
        for line in list(self._lines.values()):
            for slot in list(line.wanted):
                try:
                    now = self._line(slot)
                except LogUnavailable:
                    continue  # served by nobody at the moment
                if now is not line:
                    for subscription in line.give_away(slot):
                        now.want(subscription)
