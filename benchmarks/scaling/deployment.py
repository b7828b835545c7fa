"""The sums for a deployment that no machine here could hold, from the measured costs and the simulation.

A node is one process on one core, a shard one primary on one; both are planned to be busy for `BUSY` of the time, so
that they have room for a neighbour's death and a burst. Whatever isn't measured is an assumption of `Workload`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.scaling.costs import Costs
from benchmarks.scaling.points import Points
from benchmarks.scaling.simulation import Result, System, simulate
from gateway.logs.membership import BEAT_S
from gateway.logs.redis_keys import PARTITIONS

BUSY = 0.6
GIB = 1 << 30
NETWORK_S = 0.0002
"""One way within a data centre's zone."""
STREAM_BYTES = 20_000
"""Memory of a node for a running stream, its upstream connection included: an upper bound."""


class Workload(NamedTuple):
    """What is asked of it, at its peak."""

    connections: int = 1_000_000
    streams: int = 100_000
    rate: float = 50.0
    """Tokens a second of a stream, of 6 characters."""
    answer_tokens: int = 334
    """So that an answer is the one whose size in Redis is measured."""
    followed: float = 0.1
    """The part of the conversations that some other node's clients read, too."""
    connection_s: float = 600.0
    """After which a connection is cut and made again."""
    mean_load: float = 0.4
    """Of the peak, over a day."""
    batch_chars: int = 10
    batch_s: float = 0.05
    shard_gib: float = 48.0
    """For data, of a machine with 64: the rest is for the fork of a rewrite and for buffers."""

    @property
    def turns_per_s(self) -> float:
        return self.streams * self.rate / self.answer_tokens

    @property
    def answers_per_day(self) -> float:
        return self.turns_per_s * self.mean_load * 86400


class Plan(NamedTuple):
    """How many of what, and what it comes to."""

    nodes: int
    shards: int
    node_busy: float
    """Of which everything that isn't tokens:"""
    other_busy: float
    node_gib: float
    result: Result
    beat_busy: float
    """Of the shard that holds the table of the nodes."""
    kept_gib_per_day: float
    file_mib_per_s: float
    """Written by all shards, to their files and to their replicas each."""


def other_us_per_s(workload: Workload, points: Points) -> float:
    """CPU of all nodes for turns, connections and heartbeats."""
    connects = workload.connections / workload.connection_s * points.node["connect_us"]
    return (
        workload.turns_per_s * points.turn_us
        + connects
        + workload.connections * points.node["idle_connection_us_per_s"]
    )


def plan(workload: Workload, points: Points, costs: Costs) -> Plan:
    """As few nodes and shards as are busy for no more than `BUSY`."""
    nodes = _fewest(lambda count: _node_busy(workload, points, costs, count))
    shards = _fewest(lambda count: whole(workload, costs, nodes, count).shard_busy)
    return told(workload, points, costs, nodes, shards)


def told(workload: Workload, points: Points, costs: Costs, nodes: int, shards: int) -> Plan:
    result = whole(workload, costs, nodes, shards)
    other = other_us_per_s(workload, points) / nodes / 1e6
    appends_per_s = workload.streams * workload.rate * result.appends_per_token
    memory = workload.connections * points.node["idle_connection_bytes"] + workload.streams * STREAM_BYTES
    return Plan(
        nodes=nodes,
        shards=shards,
        node_busy=result.node_busy + other,
        other_busy=other,
        node_gib=(points.node["base_bytes"] + memory / nodes) / GIB,
        result=result,
        beat_busy=nodes / BEAT_S * beat_us(points, nodes) / 1e6,
        kept_gib_per_day=workload.answers_per_day * points.kept["next_bytes"] / GIB,
        file_mib_per_s=appends_per_s * points.kept["file_bytes_per_append"] / (1 << 20),
    )


def whole(workload: Workload, costs: Costs, nodes: int, shards: int) -> Result:
    """All of it, for a short while: each node and shard is there."""
    return simulate(_system(workload, nodes, shards, workload.streams), costs, warm_up_s=0.2, seconds=0.2)


def beat_us(points: Points, nodes: int) -> float:
    """On the straight line through the two nearest measured table sizes."""
    sizes = sorted((int(size), us) for size, us in points.beats.items())
    (low, low_us), (high, high_us) = sizes[:2] if nodes <= sizes[1][0] else sizes[-2:]
    return max(low_us, low_us + (high_us - low_us) * (nodes - low) / (high - low))


def folded_part(points: Points) -> float:
    """What would be left of an answer in Redis if its tokens were one entry: its text, and two small appends."""
    small = points.kept["next_bytes"] / points.kept["appends"]
    return (points.kept["answer_characters"] + 2 * small) / points.kept["next_bytes"]


def most_retention_days(workload: Workload, gib_per_day: float, shards: int = PARTITIONS) -> float:
    """That fits into the memory of so many shards: by default of as many as there can be."""
    return shards * workload.shard_gib / gib_per_day


def shards_for(workload: Workload, gib_per_day: float, retention_days: float) -> int:
    return math.ceil(gib_per_day * retention_days / workload.shard_gib)


def _system(workload: Workload, nodes: int, shards: int, streams: int) -> System:
    return System(
        nodes, shards, streams, workload.rate, workload.batch_chars, workload.batch_s,
        network_s=NETWORK_S, followed=workload.followed,
    )  # fmt: skip


def _node_busy(workload: Workload, points: Points, costs: Costs, nodes: int) -> float:
    """Of one node of so many, on a cluster that nobody else uses."""
    alone = simulate(_system(workload, 1, PARTITIONS // 4, workload.streams // nodes), costs)
    return alone.node_busy + other_us_per_s(workload, points) / nodes / 1e6


def _fewest(busy: Callable[[int], float]) -> int:
    least, most = 1, 2
    while busy(most) > BUSY:
        least, most = most, most * 2
    while most - least > max(1, most // 50):
        middle = (least + most) // 2
        least, most = (middle, most) if busy(middle) > BUSY else (least, middle)
    return most
