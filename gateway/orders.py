"""What a supervisor and its workers say to each other.

The supervisor writes one pickled `Order` to a worker's stdin; everything after that goes over a socket pair, which also
tells each that the other has ended: bytes to the worker, lines to the supervisor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from gateway.settings import Settings

DRAIN: Final = b"d"
"""Stop when running turns have ended. The end of the stream means the same: there is no supervisor any more."""
STOP: Final = b"s"
"""Stop at once."""

READY: Final = b"ready\n"
_FAILED: Final = b"failed "


class Order(NamedTuple):
    """What a worker has to be. The settings come whole, so that a worker that is started again a week later is the same
    as its siblings, whatever has become of the file and the environment."""

    settings: Settings
    number: int
    """1, 2 … `WORKERS`."""
    folder: Path
    """Of this supervisor's workers alone; see `gateway.telemetry.siblings`."""


def failed(line: str) -> bytes:
    """Why it can't start, in words for people."""
    return _FAILED + re.sub(r"\s+", " ", line).encode() + b"\n"


def why(said: bytes) -> str | None:
    """What `failed` was given; None: something else was said."""
    return said.removeprefix(_FAILED).decode().strip() if said.startswith(_FAILED) else None
