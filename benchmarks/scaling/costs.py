"""What things cost, found from the measured points: straight lines through what was measured of the parts.

Only the costs of a node's loop can't be measured by themselves; `calibrate` finds those with which the simulation tells
the CPU time of whole gateways on `memory:`. Those on `redis:` then have to come out by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.scaling.parts import CommitPoint


class NodeCosts(NamedTuple):
    """CPU microseconds of a node's loop, sockets and upstream included."""

    wake: float
    """Of a turn after a sleep; one that follows another one at once costs what it does."""
    read: float
    """Of a stream that brought something: the read, its entry, and its share of the write to the client."""
    token: float

    def of(self, reads: int, tokens: int) -> float:
        return self.read * reads + self.token * tokens


class CommitCosts(NamedTuple):
    """CPU microseconds of a commit, on one of its sides."""

    commit: float
    call: float
    append: float
    delivery: float = 0.0
    """More of an append that another node follows."""
    wake: float = 0.0
    """More of the first commit after a sleep."""

    def of(self, calls: int, appends: int, followed: float = 0.0) -> float:
        return self.commit + self.call * calls + (self.append + followed * self.delivery) * appends


class Costs(NamedTuple):
    node: NodeCosts
    commit: CommitCosts
    """On the node's side."""
    redis: CommitCosts
    follower_us: float
    """CPU of a node for a token that it reads from another one's log."""


def node_side(points: Sequence[CommitPoint]) -> CommitCosts:
    """Of commits that follow each other at once: a node's loop doesn't sleep, and its own costs are counted apart."""
    return _line([point for point in points if not point.paced], lambda point: point.node_us)


def redis_side(points: Sequence[CommitPoint]) -> CommitCosts:
    """The same, and what it costs more to find the caches cold: once a sleep, and for every append.

    An append is taken to be a cold one always: with many conversations its memory isn't cached.
    """
    hot = _line([point for point in points if not point.paced], lambda point: point.redis_us)
    paced = [point for point in points if point.paced]
    took = np.array([point.redis_us for point in paced])
    rows = np.array([(1.0, point.appends) for point in paced])
    more = took - np.array([hot.of(point.calls, point.appends, point.followers) for point in paced])
    wake, append = _not_negative(rows / took[:, None], more / took)
    return hot._replace(append=hot.append + float(append), wake=float(wake))


def _line(points: Sequence[CommitPoint], side: Callable[[CommitPoint], float]) -> CommitCosts:
    """The one with the least relative errors."""
    rows = np.array(
        [(1.0, point.calls, point.appends, point.appends * point.followers) for point in points], dtype=float
    )
    took = np.array([side(point) for point in points], dtype=float)
    return CommitCosts(*(float(value) for value in _not_negative(rows / took[:, None], np.ones(len(took)))))


def _not_negative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares without negative costs: those that would be are left out."""
    kept = list(range(rows.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(rows[:, kept], wanted, rcond=None)
        if (found >= 0).all():
            whole = np.zeros(rows.shape[1])
            whole[kept] = found
            return whole
        del kept[int(np.argmin(found))]


def calibrate(error: Callable[[NodeCosts], float], start: NodeCosts) -> NodeCosts:
    """The costs near `start` with the least error: one after the other is tried larger and smaller, ever less."""
    best, least, factor = start, error(start), 1.6
    while factor > 1.02:
        better = False
        for name in NodeCosts._fields:
            for by in (factor, 1 / factor):
                tried = best._replace(**{name: getattr(best, name) * by})
                if (found := error(tried)) < least:
                    best, least, better = tried, found, True
        if not better:
            factor = factor**0.5
    return best
