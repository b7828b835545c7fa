"""The file behind a `SqliteLog`: its lock, its connections, its schema, and its faults in plain words."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.logs.log import LogUnavailable
from gateway.logs.segment import SegmentError

APPLICATION_ID = 0x436F6E76
"""In the file's header: this database is ours ("Conv")."""
SCHEMA_VERSION = 2
"""In schema 1 all of `recent` moved to segments at once, so that no row held anything that is in a segment, too."""
WAL_LIMIT_BYTES = 16 << 20
"""The write-ahead log is cut back to this after a checkpoint."""
BUSY_S = 5.0
"""How long to wait for other programs that look into the file, such as a backup."""

_SCHEMA = """
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    clean INTEGER NOT NULL,  -- the last run closed the log
    floor INTEGER NOT NULL   -- goes up with every unclean stop
);
INSERT INTO meta VALUES (1, 1, 0);
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,       -- the last one when the row was written; all that counts once it is erased
    floor INTEGER NOT NULL,       -- meta.floor at the last write of this row; a lower one than now: stale
    open_turns BLOB,              -- MessagePack [[turn_id, seq], ...]; NULL: none
    updated_ms INTEGER NOT NULL,  -- Unix ms of the last entry, but for tokens not yet in a segment
    erased INTEGER NOT NULL,
    UNIQUE (owner, conversation_id)
);
CREATE INDEX unfinished ON conversations (id) WHERE open_turns IS NOT NULL;
CREATE INDEX over ON conversations (updated_ms) WHERE open_turns IS NULL AND erased = 0;
CREATE TABLE segments (
    conversation INTEGER NOT NULL REFERENCES conversations (id),
    last_seq INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    entries BLOB NOT NULL,        -- see segment.py
    PRIMARY KEY (conversation, last_seq)
) WITHOUT ROWID;
CREATE TABLE recent (
    id INTEGER PRIMARY KEY,
    appends BLOB NOT NULL         -- one commit, or what is left of one; see packed.py
);
"""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the errors of SQLite, of the file system and of stored bytes into a `LogUnavailable` of one line."""
    try:
        yield
    except (SegmentError, msgspec.MsgspecError) as problem:
        raise LogUnavailable(f"{path} is damaged: {problem}") from problem
    except sqlite3.Error as problem:
        raise LogUnavailable(f"{path}: {problem}") from problem
    except OSError as problem:
        raise LogUnavailable(f"{path}: {problem.strerror or problem}") from problem


class FileLock:
    """Keeps a second gateway off the file. The kernel holds it for the process, so `kill -9` gives it back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Raises `LogUnavailable` when another gateway, or another log in this process, has the file."""
        if not self._path.parent.is_dir():
            raise LogUnavailable(f"{self._path}: the folder {self._path.parent} doesn't exist")
        with explained(self._path):
            file = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            holder = os.read(file, 20).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise LogUnavailable(
                f"{self._path} is in use by another gateway (pid {holder}): stop that one first, or give this one "
                "another LOG_URL"
            ) from problem
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any one thread at a time may use, with transactions in our own hands."""
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def open_database(path: Path) -> sqlite3.Connection:
    """The writer's connection, with the schema made or checked. Raises `LogUnavailable` with what is wrong."""
    with explained(path):
        # Conversations are private, also on a machine with other users.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = connect(path)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    application = pragma(db, "application_id")
    version = int(pragma(db, "user_version"))
    if application != APPLICATION_ID and (application or db.execute("SELECT 1 FROM sqlite_master").fetchone()):
        raise LogUnavailable(f"{path} is a SQLite database of another program; name another file in LOG_URL")
    if version > SCHEMA_VERSION:
        raise LogUnavailable(
            f"{path} was written by a later version of the gateway (schema {version}; this one knows {SCHEMA_VERSION})"
        )
    # Erased content is overwritten, not just unlinked from the tree.
    db.execute("PRAGMA secure_delete = ON")
    db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    if pragma(db, "journal_mode = WAL") != "wal":
        raise LogUnavailable(f"{path}: this file system can't do write-ahead logging; put the file on a local disk")
    db.execute("PRAGMA synchronous = FULL")
    if version == 0:
        db.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
            f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    elif version < SCHEMA_VERSION:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def pragma(db: sqlite3.Connection, name: str) -> int | str:
    value: int | str = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def checkpoint(db: sqlite3.Connection) -> None:
    """Moves the write-ahead log into the database and empties it, so that erased content is in neither.

    A reader at work delays it to the next checkpoint.
    """
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
