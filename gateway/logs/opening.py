"""Chooses the log engine that `LOG_URL` names."""

from __future__ import annotations

from pathlib import Path
from typing import get_args
from urllib.parse import parse_qsl

from gateway.logs.log import Log
from gateway.logs.memory import MemoryLog
from gateway.logs.nodes import Alone, Nodes
from gateway.logs.redis_log import RedisLog
from gateway.logs.redis_nodes import RedisNodes
from gateway.logs.redis_url import SCHEMES
from gateway.logs.sqlite import SqliteLog
from gateway.logs.sqlite_store import Synchronous

_RIGHT = "memory:, sqlite:convobase.db, sqlite:/path/to/convobase.db or redis://host:6379/0"


def open_log(url: str, *, retention_s: float = 0) -> Log:
    """The engine for `url`, not opened yet: `memory:`, `sqlite:PATH[?synchronous=auto|full|normal|off]`, or one of
    `redis_url`. `retention_s`: how long conversations are kept, for an engine that has to know; 0: for ever.

    Raises `ValueError` with one line for people. It never repeats what may be a password.
    """
    scheme, colon, rest = url.strip().partition(":")
    match scheme.lower():
        case "memory" if colon and not rest:
            return MemoryLog()
        case "memory" if colon:
            raise ValueError("LOG_URL: memory: takes nothing after the colon")
        case "sqlite" if colon:
            return _sqlite(rest)
        case named if named in SCHEMES:
            return RedisLog(url, retention_s=retention_s)
        case _:
            named = f"{scheme}: is no log engine" if colon and scheme.isalnum() else "that names no log engine"
            raise ValueError(f"LOG_URL: {named}; use {_RIGHT}")


def _sqlite(rest: str) -> SqliteLog:
    name, _, query = rest.partition("?")
    if not name or name.startswith((":", "//")) or "\0" in name or name.endswith("/"):
        raise ValueError("LOG_URL: sqlite: needs the path of a file, as in sqlite:convobase.db or sqlite:/path/to/x.db")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "auto")
    if options:
        raise ValueError(f"LOG_URL: sqlite: has no option {next(iter(options))!r}; the only one is ?synchronous=")
    for mode in get_args(Synchronous):
        if synchronous == mode:
            return SqliteLog(Path(name).expanduser(), synchronous=mode)
    raise ValueError(f"LOG_URL: synchronous={synchronous!r} isn't one of {', '.join(get_args(Synchronous))}")


def open_nodes(log: Log) -> Nodes:
    """Those that share `log`, not opened yet; that has to be open when they are."""
    return RedisNodes(log.link, log.node_id) if isinstance(log, RedisLog) else Alone(log.node_id)
