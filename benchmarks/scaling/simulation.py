"""A discrete-event simulation of nodes and Redis shards, each a server that works off all that has come meanwhile.

That they do is what makes a figure depend on the load: a node's loop turn takes all tokens that have arrived, a commit
all conversations that have something new, a shard all calls that are in its sockets. So what is simulated is

    upstream --tokens, paced, each stream in its own phase--> node, which reads a stream when a batch should be there
    (`Batcher`, `Pacer`): a turn = wake + streams read + tokens; what a read brings is one entry
    entries --10 ms at most, one commit at a time--> calls, one on a single server, one a partition on a cluster
    calls --network--> shard: a turn = commits + calls + appends --network--> node: the commit is over, the next begins

with the costs of `costs`. Nothing is random but the phases and the partitions of conversations.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from enum import IntEnum
from itertools import count
from typing import NamedTuple

from benchmarks.scaling.costs import Costs
from gateway.logs.journal import TOKEN_DELAY_S
from gateway.logs.redis_appends import CALL_APPENDS
from gateway.logs.redis_keys import PARTITIONS
from gateway.models.pacing import TICK_S

SLEEP_S = 0.001
"""Who had nothing to do for so long begins with cold caches."""


class System(NamedTuple):
    """What is simulated. Times are seconds."""

    nodes: int
    shards: int
    """0: the log is in the node's memory, and costs nothing."""
    streams: int
    """Of all nodes together, evenly spread."""
    rate: float
    """Tokens a second of each."""
    batch_chars: int = 10
    batch_s: float = 0.05
    token_chars: int = 6
    network_s: float = 0.0
    """One way, between a node and a shard."""
    followed: float = 0.0
    """The part of the conversations that some other node follows, too."""
    token_delay_s: float = TOKEN_DELAY_S


class Result(NamedTuple):
    """What was seen after the warm-up."""

    tokens_per_s: float
    node_us: float
    """CPU for a token, of the nodes."""
    redis_us: float
    node_busy: float
    """Part of the time, of a node on average."""
    shard_busy: float
    """Of the busiest shard."""
    appends_per_token: float
    appends_per_call: float
    commit_p50_s: float
    commit_p99_s: float
    """From an entry's being due to its being in the log."""


class Step(IntEnum):
    """Where a node's commit is; but for `SENT` each takes one turn of the loop (see `journal`, `redis_lane`)."""

    IDLE, WANTED, TAKEN, SENT, ANSWERED = range(5)


class Tally:
    """What is counted once the warm-up is over."""

    def __init__(self, from_s: float, until_s: float) -> None:
        self.from_s, self.until_s = from_s, until_s
        self.tokens = self.appends = self.calls = 0
        self.node_us = 0.0
        self.commits_s: list[float] = []

    def part_us(self, began_s: float, us: float) -> float:
        """What falls into the time that is counted: who is overloaded is busy with one turn for longer than that."""
        return max(0.0, min(began_s + us / 1e6, self.until_s) - max(began_s, self.from_s)) * 1e6


class Shard:
    def __init__(self, costs: Costs, tally: Tally) -> None:
        self.costs, self.tally = costs, tally
        self.inbox: deque[tuple[float, Node, int, int]] = deque()
        """When a commit's calls arrive, whose they are, how many calls, how many appends."""
        self.free_s = 0.0
        self.busy_us = 0.0

    def turn(self, now: float, followed: float) -> tuple[float, list[Node]]:
        """Works off what is there; returns when it is done, and who is answered then."""
        us, answered = self.costs.redis.wake if now - self.free_s >= SLEEP_S else 0.0, list[Node]()
        while self.inbox and self.inbox[0][0] <= now:
            _, node, calls, appends = self.inbox.popleft()
            us += self.costs.redis.of(calls, appends, followed)
            answered.append(node)
        self.busy_us += self.tally.part_us(now, us)
        self.free_s = now + us / 1e6
        return self.free_s, answered


class Node:
    """Its loop, and the commit that it is at."""

    def __init__(self, system: System, costs: Costs, streams: int, tally: Tally, rng: random.Random) -> None:
        self.system, self.costs, self.tally = system, costs, tally
        self.period_s = 1 / system.rate
        self.hold_s = min(system.batch_s, system.batch_chars / (system.rate * system.token_chars))
        self.phases = [rng.random() * self.period_s for _ in range(streams)]
        self.places = [rng.randrange(PARTITIONS) for _ in range(streams)]
        self.taken = [0] * streams
        """Tokens of each stream so far."""
        self.reads: dict[int, list[int]] = {}
        """By the pacer's ticks: the streams to read."""
        for stream, phase in enumerate(self.phases):
            self._read_at(stream, phase + rng.random() * self.hold_s)
        self.due: set[int] = set()
        self.due_since_s = self.wanted_s = 0.0
        self.calls: list[tuple[int, int, int]] = []
        self.step = Step.IDLE
        self.unanswered = 0
        self.free_s = 0.0

    def next_s(self) -> float:
        """When its loop has something to do, as far as it knows now."""
        if self.step not in (Step.IDLE, Step.SENT) or (self.step is Step.SENT and not self.unanswered):
            return self.free_s
        at = min(self.reads) * TICK_S
        if self.due and self.step is Step.IDLE:
            at = min(at, self.due_since_s + self.system.token_delay_s)
        return max(self.free_s, at)

    def turn(self, now: float) -> list[tuple[int, int, int]]:
        """One turn of the loop; returns what is sent at its end: shard, calls, appends."""
        reads, tokens = self._read(now)
        us = self.costs.node.of(reads, tokens) + (self.costs.node.wake if now - self.free_s >= SLEEP_S else 0.0)
        sent: list[tuple[int, int, int]] = []
        if self.system.shards:
            more_us, sent = self._commit(now)
            us += more_us
        us += tokens * self.system.followed * self.costs.follower_us
        self.free_s = now + us / 1e6
        self.tally.node_us += self.tally.part_us(now, us)
        if now >= self.tally.from_s:
            self.tally.tokens += tokens
        return sent

    def _read(self, now: float) -> tuple[int, int]:
        """Reads the streams whose time has come; how many brought something, and how many tokens."""
        reads = tokens = 0
        for tick in sorted(tick for tick in self.reads if tick * TICK_S <= now):
            for stream in self.reads.pop(tick):
                came = int((now - self.phases[stream]) / self.period_s) + 1 - self.taken[stream]
                if came <= 0:  # it is read as soon as something comes
                    self._read_at(stream, self.phases[stream] + self.taken[stream] * self.period_s)
                    continue
                reads, tokens = reads + 1, tokens + came
                self.taken[stream] += came
                self._read_at(stream, now + self.hold_s)
                if self.system.shards:
                    self.due_since_s = self.due_since_s if self.due else now
                    self.due.add(stream)
        return reads, tokens

    def _read_at(self, stream: int, at: float) -> None:
        self.reads.setdefault(math.ceil(at / TICK_S), []).append(stream)

    def _commit(self, now: float) -> tuple[float, list[tuple[int, int, int]]]:
        """The next step of it, its CPU in microseconds, and what is sent."""
        match self.step:
            case Step.IDLE if self.due and now >= self.due_since_s + self.system.token_delay_s:
                self.step = Step.WANTED
            case Step.WANTED:
                self.wanted_s, self.step = self.due_since_s, Step.TAKEN
                self.calls = self._calls()
                self.due = set()
                appends = sum(appends for _, _, appends in self.calls)
                calls = sum(calls for _, calls, _ in self.calls)
                if now >= self.tally.from_s:
                    self.tally.appends += appends
                    self.tally.calls += calls
                return self.costs.commit.of(calls, appends), []
            case Step.TAKEN:
                self.step, self.unanswered = Step.SENT, len(self.calls)
                return 0.0, self.calls
            case Step.SENT if not self.unanswered:
                self.step = Step.ANSWERED
            case Step.ANSWERED:
                ready = self.due and now >= self.due_since_s + self.system.token_delay_s
                self.step = Step.WANTED if ready else Step.IDLE
                if now >= self.tally.from_s:
                    self.tally.commits_s.append(now - self.wanted_s)
            case _:
                pass
        return 0.0, []

    def _calls(self) -> list[tuple[int, int, int]]:
        shards = self.system.shards
        if shards == 1:
            return [(0, -(-len(self.due) // CALL_APPENDS), len(self.due))]
        appends, partitions = [0] * shards, [set[int]() for _ in range(shards)]
        for stream in self.due:
            place = self.places[stream]
            shard = place * shards // PARTITIONS
            appends[shard] += 1
            partitions[shard].add(place)
        return [(shard, len(partitions[shard]), appends[shard]) for shard in range(shards) if appends[shard]]


class Events:
    """Who is looked at next, and when: each has one appointment, the earliest."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Node | Shard]] = []
        self._appointed: dict[Node | Shard, float] = {}
        self._order = count()

    def appoint(self, who: Node | Shard, at: float) -> None:
        if at < self._appointed.get(who, float("inf")):
            self._appointed[who] = at
            heapq.heappush(self._heap, (at, next(self._order), who))

    def next(self) -> tuple[float, Node | Shard]:
        while True:
            at, _, who = heapq.heappop(self._heap)
            if self._appointed.get(who) == at:
                del self._appointed[who]
                return at, who


def simulate(system: System, costs: Costs, *, warm_up_s: float = 0.5, seconds: float = 1.0, seed: int = 1) -> Result:
    """Deterministic for a seed. Takes about two seconds for every million tokens."""
    rng, tally, events = random.Random(seed), Tally(warm_up_s, warm_up_s + seconds), Events()
    shards = [Shard(costs, tally) for _ in range(system.shards)]
    for _ in range(system.nodes):
        node = Node(system, costs, system.streams // system.nodes, tally, rng)
        events.appoint(node, node.next_s())
    while True:
        now, who = events.next()
        if now >= tally.until_s:
            return _result(system, tally, shards, seconds)
        if isinstance(who, Node):
            _node_turn(who, now, shards, events)
        else:
            _shard_turn(who, now, events, system)


def _node_turn(node: Node, now: float, shards: list[Shard], events: Events) -> None:
    for number, calls, appends in node.turn(now):
        arrival = node.free_s + node.system.network_s
        shards[number].inbox.append((arrival, node, calls, appends))
        events.appoint(shards[number], max(arrival, shards[number].free_s))
    events.appoint(node, node.next_s())


def _shard_turn(shard: Shard, now: float, events: Events, system: System) -> None:
    done, answered = shard.turn(now, system.followed)
    if shard.inbox:
        events.appoint(shard, max(done, shard.inbox[0][0]))
    for node in answered:
        node.unanswered -= 1
        if not node.unanswered:
            events.appoint(node, max(node.free_s, done + system.network_s))


def _result(system: System, tally: Tally, shards: list[Shard], seconds: float) -> Result:
    tokens, commits = max(1, tally.tokens), sorted(tally.commits_s) or [0.0]
    return Result(
        tokens_per_s=tokens / seconds,
        node_us=tally.node_us / tokens,
        redis_us=sum(shard.busy_us for shard in shards) / tokens,
        node_busy=tally.node_us / 1e6 / seconds / system.nodes,
        shard_busy=max((shard.busy_us for shard in shards), default=0.0) / 1e6 / seconds,
        appends_per_token=tally.appends / tokens,
        appends_per_call=tally.appends / max(1, tally.calls),
        commit_p50_s=commits[len(commits) // 2],
        commit_p99_s=commits[int(len(commits) * 0.99)],
    )
