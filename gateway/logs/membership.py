"""Which nodes are alive, told from the beats that they leave in a shared table. Pure: time is an argument.

Every node writes its beat each `BEAT_S` and reads the whole table in the same step. A beat is the server's time of
that moment, but no clocks are compared: all that counts is whether a node's beat *changed* while we looked.

    UNKNOWN --beat changed, or new in the table--> LIVE
    LIVE, UNKNOWN --unchanged, or not in the table, for LEASE_S of observation--> LOST
    LOST --beat changed: it was only frozen--> LIVE
    LIVE --the observation was interrupted--> UNKNOWN
    any --its beat says that it left--> LEFT, for good

The same holds the other way: who finds that `LEASE_S` may have passed between two of its own beats, by its own clock or
by the server's, may have been found lost, and what it owned may be another's.

The observation is interrupted when one of our own beats fails, or comes more than `PAUSE_S` after the one before. So
whatever keeps all nodes from beating (the server is down, slow, full) never makes a live one look dead: whoever can
beat again has to look for another `LEASE_S`, and that is enough for the others to beat again, too. Nor does a table
that was lost with its server's data: a missing node has as long to write itself into the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

BEAT_S = 0.5
LEASE_S = 3.0
PAUSE_S = 1.0


class Sight(Enum):
    """What is known of a node; see above."""

    UNKNOWN = "unknown"
    LIVE = "live"
    LOST = "lost"
    LEFT = "left"


class _Seen(Struct):
    beat: int | None
    """In the table of the last beat; None: not in it any more."""
    since_s: float
    """Watched without interruption, and unchanged, since then."""
    sight: Sight


class Membership:
    """See above. `now_s` and `asked_s` are seconds of one clock that never goes back."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._nodes: dict[str, _Seen] = {}
        self._watching_since_s = 0.0
        self._asked_s = 0.0
        self._last_s: float | None = None
        """Of the last beat; None: it failed, or there was none yet."""
        self._mine: tuple[float, int] | None = None
        """When the last beat was sent that got through, and what it was by the server."""
        self.was_away = False
        """Before the last beat others may have found this node lost."""

    def beaten(self, table: Mapping[str, int], *, asked_s: float, now_s: float) -> list[str]:
        """Takes the table that a beat, sent at `asked_s`, brought at `now_s`; a node's value is negative once it
        left. Returns the nodes that are found lost or to have left by it: each node once, unless it came back."""
        anew = not self._watching(now_s)
        if anew:
            self._watching_since_s = now_s
        self._note_mine(table.get(self._node_id, 0), asked_s, now_s)
        self._asked_s, self._last_s = asked_s, now_s
        found: list[str] = []
        for node_id in [*table, *(known for known in self._nodes if known not in table)]:
            if node_id == self._node_id:
                continue
            before = self._nodes.get(node_id)
            gone_before = before is not None and before.sight in (Sight.LOST, Sight.LEFT)
            seen = self._nodes[node_id] = self._look(before, table.get(node_id), anew)
            if seen.sight in (Sight.LOST, Sight.LEFT):
                if not gone_before:
                    found.append(node_id)
                if seen.beat is None:
                    del self._nodes[node_id]  # `is_lost` knows without it
        return found

    def _note_mine(self, beat: int, asked_s: float, now_s: float) -> None:
        before, self._mine = self._mine, (asked_s, beat)
        # A machine that was suspended may have a clock that was, too.
        self.was_away = before is not None and max(now_s - before[0], (beat - before[1]) / 1000) >= LEASE_S

    def _look(self, before: _Seen | None, beat: int | None, anew: bool) -> _Seen:
        """The table says `beat` of a node that was seen as `before`."""
        now_s = self._watching_since_s if anew else self._last_s or 0.0
        if beat is not None and beat < 0:
            return _Seen(beat, now_s, Sight.LEFT)
        if before is None:
            return _Seen(beat, now_s, Sight.UNKNOWN if anew else Sight.LIVE)
        if before.sight in (Sight.LOST, Sight.LEFT) and beat in (None, before.beat):
            return _Seen(beat, before.since_s, before.sight)
        if beat != before.beat:
            return _Seen(beat, now_s, Sight.UNKNOWN if beat is None else Sight.LIVE)
        if anew:
            return _Seen(beat, now_s, Sight.UNKNOWN)
        if self._asked_s - before.since_s >= LEASE_S:
            return _Seen(beat, before.since_s, Sight.LOST)
        return before

    def failed(self) -> None:
        """A beat of ours didn't get through."""
        self._last_s = None

    def is_lost(self, node_id: str, now_s: float) -> bool | None:
        """Whether it is lost, or left; None: not known yet."""
        if node_id == self._node_id:
            return False
        seen = self._nodes.get(node_id)
        if seen is not None and seen.sight is Sight.LEFT:
            return True
        if not self._watching(now_s):
            return None
        if seen is None:
            return True if self._asked_s - self._watching_since_s >= LEASE_S else None
        return None if seen.sight is Sight.UNKNOWN else seen.sight is Sight.LOST

    def live(self, now_s: float) -> list[str]:
        """The other nodes that certainly live."""
        return [node_id for node_id in self._nodes if self.is_lost(node_id, now_s) is False]

    def _watching(self, now_s: float) -> bool:
        return self._last_s is not None and now_s - self._last_s <= PAUSE_S
