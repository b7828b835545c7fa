"""The Lua scripts of the Redis engine, which stand in `lua/` beside this file. What they share, in the hash `meta`:

    f         "<epoch>-<seq> <owner><flags>" of the last entry; the owner is empty when it is nobody's. Flags:
              + turns are open    ! stale: the next append begins a new epoch    ? its last owner was lost
              "0-0 <owner>" is claimed and not written yet; "<epoch>-0 !" is the tombstone of an erased one
    e         its epochs: "<epoch>:<first seq> …"
    n         how many turns are open
    t:<turn>  seq of the `message` of an open turn

Each is executed at once and whole. All keys are named in the call, so that a server that is handing a slot over
refuses it before anything was done.
"""

from __future__ import annotations

from pathlib import Path

from gateway.logs.redis_lane import Script

_FOLDER = Path(__file__).with_name("lua")


def _script(name: str) -> Script:
    return Script((_FOLDER / f"{name}.lua").read_text("utf-8"))


TOKENS = _script("tokens")
APPEND = _script("append")
CLAIM = _script("claim")
RELEASE = _script("release")
ERASE = _script("erase")
READ = _script("read")
SINCE = _script("since")
PROBE = _script("probe")
