"""Says in one plain line why Redis can't be used now. No line holds a password.

LogUnavailable            it can't be reached, or its state doesn't allow it: trying again may help
  Refused                 it refused just this command: a bug of ours, foreign data under our keys, a missing right
"""

from __future__ import annotations

from redis import exceptions

from gateway.logs.log import LogUnavailable

_LINE_CHARS = 200

# What a reply begins with when the server's state is the reason.
_STATES = {
    "OOM": "is out of memory",
    "READONLY": "is a replica, which takes no writes",
    "LOADING": "is loading its data",
    "MASTERDOWN": "is a replica whose primary is gone",
    "CLUSTERDOWN": "belongs to a cluster that is down",
    "TRYAGAIN": "is moving these keys to another node",
    "MOVED": "has handed these keys to another node",
    "ASK": "is handing these keys to another node",
    "MISCONF": "takes no writes, as it can't save them to its disk",
    "NOREPLICAS": "takes no writes, as it has too few replicas",
    "BUSY": "is busy with a script",
    "UNKILLABLE": "is busy with a script",
    "NOAUTH": "wants credentials",
    "WRONGPASS": "refuses the credentials",
    "NOTBUSY": "is busy with a script",
}
_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
)


class Refused(LogUnavailable):
    """The server refuses the command itself. Trying the same again won't help."""


def state_of(problem: Exception) -> str | None:
    """The word of `_STATES` that names the server's state; None when that isn't the reason."""
    for cls, state in _CLASSES:
        if isinstance(problem, cls):
            return state
    word = str(problem).partition(" ")[0]
    return word if isinstance(problem, exceptions.ResponseError) and word in _STATES else None


def explained(problem: Exception, server: str) -> LogUnavailable:
    """What to raise for an exception of redis-py, of the operating system, or a time-out."""
    if isinstance(problem, LogUnavailable):
        return problem
    if (state := state_of(problem)) is not None:
        return LogUnavailable(f"Redis at {server} {_STATES[state]}")
    line = " ".join(str(problem).split())[:_LINE_CHARS] or type(problem).__name__
    match problem:
        case exceptions.AuthenticationError():
            return LogUnavailable(f"Redis at {server} refuses the credentials")
        case exceptions.TimeoutError() | TimeoutError():
            return LogUnavailable(f"Redis at {server} doesn't answer")
        case exceptions.ResponseError():
            return Refused(f"Redis at {server} refuses a command: {line}")
        case _:
            return LogUnavailable(f"Redis at {server} can't be reached: {line}")
