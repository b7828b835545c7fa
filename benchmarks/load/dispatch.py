"""Who says something next, and when.

A closed loop keeps a number of messages in flight: it slows down with the gateway. An open loop has a schedule that
doesn't care how the gateway is doing: messages are due at even distances, and when every conversation is busy they
wait for one here. Their durations are counted from when they were due, not from when they were sent, so that a
gateway that stands still for a second doesn't get away with one bad value (Gil Tene's "coordinated omission").
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from typing import Protocol

from benchmarks.load.asked import Asked
from benchmarks.load.conversation import Conversation
from benchmarks.load.plan import Plan
from benchmarks.load.tally import Tally

GRAIN_S = 0.002
"""The timers' own: a message that was sent less than this late counts as sent in time."""
REFUSED_PAUSE_S = 1.0
"""A conversation that was refused, or failed, is quiet for so long."""
DEFAULT_PROMPT = "Message {n} of a load test: tell me something about the number {n}."


class Carrier(Protocol):
    """A connection, as far as its conversations care."""

    number: int
    online: bool

    def ask(self, conversation: Conversation) -> None:
        """Sends what `conversation.asked` says."""

    def leave(self, conversation: Conversation) -> None:
        """Follows it no longer."""

    def adopt(self, conversation: Conversation) -> None:
        """Carries it from now on."""


class Dispatcher:
    """Of one process. `number` is the process', `plan` its part."""

    def __init__(self, plan: Plan, number: int, tally: Tally, chance: random.Random) -> None:
        self.running: dict[Conversation, None] = {}
        """Those with an unanswered message, in the order in which they were sent."""
        self.waiting: deque[float] = deque()
        """When messages were due that found no free conversation."""
        self.made: list[tuple[str, int]] = []
        """All conversations in which something was said: the id, and the number of the connection."""
        self._plan = plan
        self._number = number
        self._tally = tally
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._idle: deque[Conversation] = deque()
        self._parked: dict[Carrier, list[Conversation]] = {}
        """Idle ones whose connection is down."""
        self._prompts = plan.prompts or [DEFAULT_PROMPT]
        self._ids = 0
        self._sent = 0
        self._stopped = False
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        return len(self._idle)

    # ------------------------------------------------------------ the schedule

    def start(self, began: float) -> None:
        """`began`: on the monotonic clock."""
        self._began = began
        if self._plan.rate:
            self._tick()

    def stop(self) -> None:
        """Nothing more is said."""
        self._stopped = True
        self.waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _due_at(self, number: int) -> float:
        """When message `number` of this process is due: the rate grows with the ramp, then it is even."""
        plan = self._plan
        at = number + self._number / plan.processes
        in_ramp = plan.rate * plan.ramp_s / 2
        if at < in_ramp:
            return self._began + math.sqrt(2 * at * plan.ramp_s / plan.rate)
        return self._began + plan.ramp_s / 2 + at / plan.rate

    def _tick(self) -> None:
        now = time.monotonic()
        while (due := self._due_at(self._sent + len(self.waiting))) <= now:
            conversation = self._next()
            if conversation is None:
                self.waiting.append(due)
                self._tally.counts.late += 1
            else:
                self._ask(conversation, due if now - due > GRAIN_S else now)
        self._timer = self._loop.call_later(due - now, self._tick)

    # ------------------------------------------------------------ conversations

    def adopt(self, carrier: Carrier, *, timed: bool) -> None:
        """A new conversation for that connection."""
        self._ids += 1
        name = f"load-{self._plan.run_id}-{self._number}-{self._ids}"
        conversation = Conversation(name, carrier, self._tally, timed=timed)
        carrier.adopt(conversation)
        self.ready(conversation)

    def ready(self, conversation: Conversation) -> None:
        """It may be asked the next thing."""
        self._idle.append(conversation)
        self.fill()

    def back(self, carrier: Carrier) -> None:
        """The connection is up again."""
        for conversation in self._parked.pop(carrier, ()):
            self.ready(conversation)

    def fill(self) -> None:
        """Says what may be said now."""
        if self._plan.rate:
            while self.waiting and not self._stopped and (conversation := self._next()) is not None:
                self._ask(conversation, self.waiting.popleft())
            return
        limit = self._plan.in_flight
        while not self._stopped and (limit < 0 or len(self.running) < limit):
            if (conversation := self._next()) is None:
                return
            self._ask(conversation, time.monotonic())

    def _next(self) -> Conversation | None:
        while self._idle:
            conversation = self._idle.popleft()
            if conversation.carrier.online:
                return conversation
            self._parked.setdefault(conversation.carrier, []).append(conversation)
        return None

    def _ask(self, conversation: Conversation, due_at: float) -> None:
        self._sent += 1
        conversation.turns += 1
        if conversation.turns == 1:
            self.made.append((conversation.id, conversation.carrier.number))
        conversation.asked = Asked(f"m{conversation.turns}", self._prompt(conversation), due_at)
        self._tally.counts.messages += 1
        self.running[conversation] = None
        conversation.carrier.ask(conversation)

    def _prompt(self, conversation: Conversation) -> str:
        text = self._chance.choice(self._prompts)
        if "{" in text:
            values = {
                "{n}": str(self._sent),
                "{turn}": str(conversation.turns),
                "{conversation}": conversation.id,
                "{random}": f"{self._chance.getrandbits(32):08x}",
            }
            for name, value in values.items():
                text = text.replace(name, value)
        return text

    # ------------------------------------------------------------ ends

    def free(self, conversation: Conversation, *, refused: bool) -> None:
        """Its turn is over. After a refusal, and after enough turns, another conversation takes its place."""
        self.running.pop(conversation, None)
        pause_s = self._plan.think_s * self._chance.uniform(0.5, 1.5)
        if refused:
            pause_s = max(pause_s, REFUSED_PAUSE_S)
        if refused or conversation.turns >= self._plan.turns:
            conversation.carrier.leave(conversation)
            after = self._replace
        else:
            after = self.ready
        if pause_s and not self._stopped:
            self._loop.call_later(pause_s, after, conversation)
            self.fill()
        else:
            after(conversation)

    def _replace(self, conversation: Conversation) -> None:
        self.adopt(conversation.carrier, timed=conversation.timed)

    def give_up(self, before: float) -> None:
        """Those that were due before that moment, and aren't answered."""
        while self.running:
            conversation = next(iter(self.running))
            if conversation.asked is not None and conversation.asked.due_at >= before:
                return
            self.lose(conversation)

    def lose(self, conversation: Conversation) -> None:
        """Its turn will never end."""
        conversation.unended()
        self.free(conversation, refused=True)
