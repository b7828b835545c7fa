"""A line keeps the connection to one Redis server up, and on it the subscriptions that belong there.

A connection that says nothing, not even to a PING, for `SILENCE_TICKS` looks is cut and made anew, with all its
subscriptions. Looks are counted and not seconds: after a pause of this very process only one of them was missed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

import structlog
from redis import exceptions

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_errors import explained, state_of
from gateway.logs.redis_link import Server
from gateway.logs.redis_subscription import Subscription
from gateway.logs.redis_wire import Reply, Wire

TICK_S = 0.5
SILENCE_TICKS = 4
RETRY_FIRST_S, RETRY_MOST_S = 0.05, 1.0
LONG_LIVED_S = 5.0
"""A connection that lived so long was no failure: the next one is tried at once."""
BATCH = 500
"""Channels in one command."""
WINDOW = 4000
"""Channels asked for and not confirmed: their confirmations stay far below the server's bound for one client."""

log_lines = structlog.get_logger(__name__)


class Line:
    """See above. `deliver` gets every message. `moved` is called when something shows that slots are served elsewhere
    than was thought. `run` is the line's life; all else is synchronous."""

    def __init__(
        self,
        server: Server,
        *,
        clustered: bool,
        deliver: Callable[[bytes, bytes], None],
        moved: Callable[[], None],
    ) -> None:
        self.server = server
        self.wire: Wire | None = None
        self.problem: LogUnavailable | None = None
        """Why the last try to connect failed; None while there is a connection, or the first hope of one."""
        self.message = deliver
        self._clustered = clustered
        self._moved = moved
        self.wanted: dict[int, dict[bytes, Subscription]] = {}
        """By slot: in a cluster one command can't name channels of two."""
        self._due: dict[Subscription, None] = {}
        self._refused: dict[Subscription, None] = {}
        self._released: dict[Subscription, None] = {}
        self._unconfirmed = 0
        self._flushing = False

    # ------------------------------------------------------------ what is wanted

    def want(self, subscription: Subscription) -> None:
        subscription.line = self
        self.wanted.setdefault(subscription.slot, {})[subscription.channel] = subscription
        if subscription.receiver is None:
            self.release(subscription)
        self._ask_for([subscription])

    def release(self, subscription: Subscription) -> None:
        """Nobody wants it now. It ends at the next tick, unless `keep` comes before."""
        self._released[subscription] = None

    def keep(self, subscription: Subscription) -> None:
        self._released.pop(subscription, None)

    def give_away(self, slot: int) -> list[Subscription]:
        """All of `slot` that is wanted; it is another line's now, and nothing here."""
        subscriptions = list(self.wanted.pop(slot, {}).values())
        self._drop(subscriptions)
        for subscription in subscriptions:
            subscription.cut()
        return subscriptions

    def sweep(self) -> list[Subscription]:
        """Ends what was released before; returns it."""
        ended, self._released = list(self._released), {}
        for subscription in ended:
            of_slot = self.wanted[subscription.slot]
            del of_slot[subscription.channel]
            if not of_slot:
                del self.wanted[subscription.slot]
        self._drop(ended)
        return ended

    def _drop(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            subscription.line = None
            for queue in (self._due, self._refused, self._released):
                queue.pop(subscription, None)
        if self.wire is None:
            return
        for batch in self._batches(subscriptions):
            try:
                self.wire.unsubscribe([subscription.channel for subscription in batch], _ignored)
            except LogUnavailable:
                return  # the connection is being lost, and with it all that it followed

    # ------------------------------------------------------------ asking for it

    def _ask_for(self, subscriptions: Iterable[Subscription]) -> None:
        self._due.update(dict.fromkeys(subscriptions))
        if self._due and self.wire is not None and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if (wire := self.wire) is None:
            return
        now = list(islice(self._due, max(0, WINDOW - self._unconfirmed)))
        for batch in self._batches(now):
            try:
                wire.subscribe([one.channel for one in batch], partial(self._answered, wire, batch))
            except LogUnavailable:
                return  # they stay due for the next connection
            self._unconfirmed += len(batch)
            for subscription in batch:
                del self._due[subscription]

    def _answered(self, wire: Wire, batch: list[Subscription], reply: Reply) -> None:
        if wire is not self.wire:
            return  # all is asked for again on the next
        self._unconfirmed -= len(batch)
        mine = [subscription for subscription in batch if subscription.line is self]
        if not isinstance(reply, Exception):
            for subscription in mine:
                subscription.stands()
        elif not wire.gone.is_set():
            self._refused.update(dict.fromkeys(mine))
            if state_of(reply) is None:  # no matter of where the slot is
                for subscription in mine:
                    subscription.fail(explained(reply, self.server.name))
        self._ask_for(())

    def ask_again(self) -> None:
        """For what was refused, after the slots were looked up anew, or a tick later."""
        refused, self._refused = self._refused, {}
        self._ask_for(refused)

    def _batches(self, subscriptions: Iterable[Subscription]) -> Iterable[list[Subscription]]:
        by_slot: dict[int, list[Subscription]] = {}
        for subscription in subscriptions:
            by_slot.setdefault(subscription.slot if self._clustered else 0, []).append(subscription)
        for of_slot in by_slot.values():
            for start in range(0, len(of_slot), BATCH):
                yield of_slot[start : start + BATCH]

    # ------------------------------------------------------------ what the wire hears

    def unsubscribed(self, channel: bytes) -> None:
        for of_slot in self.wanted.values():
            if (subscription := of_slot.get(channel)) is not None:
                subscription.cut()
                self._refused[subscription] = None
                self._moved()

    def refused(self, problem: exceptions.ResponseError) -> None:
        match state_of(problem):
            case "MOVED" | "ASK" | "CLUSTERDOWN":
                self._moved()
            case "READONLY" | "LOADING" | "MASTERDOWN" if self.wire is not None:
                self.wire.abort()  # the primary may be another server now
            case _:
                pass

    # ------------------------------------------------------------ its life

    async def run(self) -> None:
        """Ends when nothing is wanted any more. Cancelling it closes the connection."""
        delay_s, loop = RETRY_FIRST_S, asyncio.get_running_loop()
        while self.wanted:
            try:
                wire = await Wire.open(await self.server.connect(), self.server.name, self)
            except LogUnavailable as problem:
                self._failed(problem)
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(RETRY_MOST_S, 2 * delay_s)
                continue
            since = loop.time()
            try:
                self._up(wire)
                await self._watch(wire)
            finally:
                self._down()
                await wire.close()
            if loop.time() - since >= LONG_LIVED_S:
                delay_s = RETRY_FIRST_S
            elif self.wanted:
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(RETRY_MOST_S, 2 * delay_s)

    def _failed(self, problem: LogUnavailable) -> None:
        if self.problem is None:
            log_lines.warning("can't follow other nodes; trying again", problem=str(problem))
        self.problem = problem
        for of_slot in self.wanted.values():
            for subscription in of_slot.values():
                subscription.fail(problem)
        self._moved()

    def _up(self, wire: Wire) -> None:
        if self.problem is not None:
            log_lines.info("other nodes can be followed again", server=self.server.name)
        self.wire, self.problem = wire, None
        self._unconfirmed = 0
        self._due, self._refused = {}, {}
        for of_slot in self.wanted.values():
            self._ask_for(of_slot.values())

    def _down(self) -> None:
        self.wire = None
        for of_slot in self.wanted.values():
            for subscription in of_slot.values():
                subscription.cut()

    async def _watch(self, wire: Wire) -> None:
        """Returns when the connection is lost, or nothing is wanted any more."""
        silent_ticks = 0
        while self.wanted and not wire.gone.is_set():
            wire.heard = False
            try:
                wire.send(_ignored, *self._probe())
            except LogUnavailable:
                pass  # stuck; the silence that comes with it is counted
            try:
                async with asyncio.timeout(TICK_S):
                    await wire.gone.wait()
            except TimeoutError:
                silent_ticks = 0 if wire.heard else silent_ticks + 1
            if silent_ticks >= SILENCE_TICKS:
                log_lines.warning("Redis says nothing; connecting again", server=self.server.name)
                return

    def _probe(self) -> tuple[bytes, ...]:
        """Something that is answered at once; in a cluster only by a server that serves our slots."""
        if not self._clustered:
            return (b"PING",)
        channel = next(iter(next(iter(self.wanted.values()))))
        return (b"EXISTS", channel)


def _ignored(reply: Reply) -> None:
    """What matters is that it came, and `refused` hears what must be acted on."""
