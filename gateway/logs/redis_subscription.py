"""A subscription: one channel that this node follows, and its receiver.

NEW --confirmed--> STANDING --the connection or the slot was lost--> CUT --confirmed: missed()--> STANDING
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Protocol

from gateway.logs.log import LogUnavailable


class Receiver(Protocol):
    """Gets the messages of one channel. Called on the event loop; should neither raise nor take long."""

    def message(self, payload: bytes) -> None: ...

    def missed(self) -> None:
        """The subscription was cut and stands again."""
        ...


class State(Enum):
    NEW = "new"
    STANDING = "standing"
    CUT = "cut"


class Holder(Protocol):
    """The line that a subscription belongs to."""

    problem: LogUnavailable | None

    def keep(self, subscription: Subscription) -> None: ...

    def release(self, subscription: Subscription) -> None: ...


class Subscription:
    __slots__ = ("channel", "line", "receiver", "slot", "state", "waiters")

    def __init__(self, channel: bytes, slot: int, receiver: Receiver | None) -> None:
        self.channel = channel
        self.slot = slot
        self.receiver = receiver
        """None: nobody wants it any more, but it may still stand."""
        self.line: Holder | None = None
        self.state = State.NEW
        self.waiters: list[asyncio.Future[None]] = []

    def stands(self) -> None:
        was, self.state = self.state, State.STANDING
        if was is State.CUT and self.receiver is not None:
            self.receiver.missed()
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def cut(self) -> None:
        if self.state is State.STANDING:
            self.state = State.CUT

    def fail(self, problem: LogUnavailable) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(type(problem)(*problem.args))
