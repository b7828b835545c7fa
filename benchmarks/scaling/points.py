"""The measured points: where they are kept, and the command that makes each group of them again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scaling import parts, whole
from benchmarks.scaling.parts import CommitPoint
from benchmarks.scaling.whole import FollowedPoint, WholePoint

FILE = Path(__file__).with_name("points.json")
GROUPS: dict[str, Callable[[Callable[[str], None]], Any]] = {
    "commits": parts.commit_points,
    "kept": parts.kept_bytes,
    "beats": parts.beat_us,
    "alone": whole.alone,
    "shared": whole.shared,
    "followed": whole.followed_point,
    "turn": whole.turn_us,
    "node": whole.node_sizes,
}
"""By name: a coroutine function of what it tells of its progress."""
FIELDS = {
    "commits": CommitPoint._fields,
    "alone": WholePoint._fields,
    "shared": WholePoint._fields,
    "followed": FollowedPoint._fields,
}


def command(group: str) -> str:
    return f"python -m benchmarks.scaling measure {group}"


class Points:
    """What the file says."""

    def __init__(self) -> None:
        told: dict[str, Any] = json.loads(FILE.read_text())
        self.machine: str = told["machine"]
        groups = {name: group["points"] for name, group in told["groups"].items()}
        self.commits = [CommitPoint(*point) for point in groups["commits"]]
        self.whole = [WholePoint(*point) for name in ("alone", "shared") for point in groups[name]]
        self.followed = FollowedPoint(*groups["followed"])
        self.kept: dict[str, float] = groups["kept"]
        self.beats: dict[str, float] = groups["beats"]
        self.turn_us: float = groups["turn"]
        self.node: dict[str, float] = groups["node"]


def keep(group: str, points: Any, machine: str) -> None:
    """Writes one group's new points into the file."""
    told = json.loads(FILE.read_text()) if FILE.exists() else {"groups": {}}
    told["machine"] = machine
    fields = FIELDS.get(group)
    told["groups"][group] = {
        "command": command(group),
        **({"fields": fields} if fields else {}),
        "points": points,
    }
    FILE.write_text(_written(told))


def _written(told: Any) -> str:
    """One point a line, so that a change shows which one it was."""
    text = json.dumps(told, indent=1, sort_keys=True)
    return re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
