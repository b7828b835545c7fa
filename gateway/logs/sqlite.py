"""`sqlite:`, the embedded log and the default: one file, no service, nothing accepted is lost by a restart."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from gateway.logs import segment
from gateway.logs.log import Append, Claim, Head, Key, LogUnavailable, new_node_id
from gateway.logs.recent import Recent
from gateway.logs.sqlite_file import FileLock, connect, explained
from gateway.logs.sqlite_queries import epoch_in_segments, read_segments
from gateway.logs.sqlite_store import EXPIRE_AT_ONCE, Store, Synchronous
from gateway.logs.worker import Worker
from protocol.frames import Entry

READERS = 2
"""Threads that read. Together they hold so many connections."""

P = ParamSpec("P")
T = TypeVar("T")


class SqliteLog:
    """See `Log`. `path` is the file; `<path>.lock` beside it keeps a second gateway away.

    What is lost, of what `commit` has said is in the log:

    - when the process is killed (`kill -9`, a crash of Python): nothing, in every mode;
    - when the machine loses power or its kernel crashes, by `synchronous`:
      `auto`: only tokens written since the last commit that held anything else. A commit with any other entry, or
      the first of a conversation or an epoch, is on the disk before it returns, with all that was before it; so is
      an erasure. Every `message`, `function_call`, `function_result` and `done` that a reader saw is still there.
      `full`: nothing. `normal`: all commits since the last checkpoint (about 4 MB of write-ahead log).
      `off`: as `normal`, and the file itself may be damaged.

    It trusts the disk to have written what it says it has. What is lost is always the newest part of the whole file,
    never something in between, and the epoch rule (SPEC.md section 2) makes readers notice.

    One thread writes, two read; the event loop never waits for the disk. All methods are safe to cancel: what a
    thread has begun it ends, so that a cancelled `commit` may still have been written, but never half. `open` raises
    `LogUnavailable` with one line for people when the file can't be used. After an error every call tries afresh.

    An erased conversation leaves its owner, id and last epoch, some 100 bytes, for as long as the file exists.
    """

    def __init__(self, path: str | Path, *, synchronous: Synchronous = "auto") -> None:
        self.node_id = new_node_id()
        self.unclean = False
        self._path = Path(path)
        self._synchronous: Synchronous = synchronous
        self._lock = FileLock(self._path)
        self._recent = Recent()
        self._store: Store | None = None
        self._writer: Worker | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._idle_readers: list[sqlite3.Connection] = []

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        if self._writer is not None:
            raise RuntimeError("the log is open already")
        self._writer = Worker("log-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="log-reader")
        try:
            await self._on_writer(self._open)
        except BaseException:
            await asyncio.shield(self._stop())
            raise

    def _open(self) -> None:
        self._lock.acquire()
        self._store = Store(self._path, self._synchronous, self._recent)
        self.unclean = self._store.unclean

    async def close(self) -> None:
        """Waits for what was begun. Closing a closed log does nothing. A cancelled close goes on by itself."""
        if self._writer is not None:
            await asyncio.shield(self._stop())

    async def _stop(self) -> None:
        writer, readers = self._writer, self._readers
        self._writer = self._readers = None
        if writer is None or readers is None:
            return
        try:
            await writer.run(lambda: self._close(readers))
        finally:
            writer.stop()

    def _close(self, readers: ThreadPoolExecutor) -> None:
        readers.shutdown()
        while self._idle_readers:
            self._idle_readers.pop().close()
        store, self._store = self._store, None
        try:
            if store is not None:
                store.close()
        finally:
            self._lock.release()

    # ------------------------------------------------------------ the log

    async def ping(self) -> None:
        await self._on_writer(lambda: self._opened().ping())

    def domain(self, key: Key) -> str:
        return ""

    async def head(self, key: Key) -> Head:
        return await self._on_writer(lambda: self._opened().head(key))

    async def claim(self, key: Key, *, instead_of: str | None = None) -> Claim:
        return Claim(await self.head(key), lost=self.unclean)

    async def release(self, key: Key) -> None:
        if self._writer is None:
            raise LogUnavailable(f"{self._path} isn't open")

    async def commit(self, batch: Sequence[Append]) -> list[bool]:
        return await self._on_writer(lambda: self._opened().commit(batch))

    async def read(self, key: Key, after: int, limit_bytes: int) -> list[Entry]:
        most = 1 + limit_bytes // segment.LEAST_BYTES
        while True:
            # In this order: what moves from `recent` to segments in between is seen twice, never missed.
            erasures, recent = self._recent.erasures, self._recent.after(key, after, most)
            if recent and recent[0].seq == after + 1 and self._store is not None:
                await asyncio.sleep(0)  # a reader of many slices lets others run, too
                return segment.cut(recent, limit_bytes)
            entries, whole = await self._on_reader(read_segments, key, after, limit_bytes)
            if self._recent.erasures == erasures:
                break
        last = entries[-1].seq if entries else after
        if whole and recent and recent[0].seq == last + 1:  # else all of it has moved meanwhile
            entries = segment.cut([*entries, *recent], limit_bytes)
        return entries

    async def epoch_at(self, key: Key, seq: int) -> int | None:
        found = self._recent.epoch_at(key, seq) if self._store is not None else None
        return await self._on_reader(epoch_in_segments, key, seq) if found is None else found

    async def erase(self, key: Key) -> bool:
        await self._on_writer(lambda: self._opened().erase(key))
        return True

    async def unfinished(self, owner: str | None = None) -> list[Key]:
        if owner not in (None, "", self.node_id):
            return []
        return await self._on_writer(lambda: self._opened().unfinished())

    async def owners(self) -> set[str]:
        return set()

    async def expire(self, before_ms: int, *, leave_to: Sequence[str] = ()) -> list[Key]:
        """In steps, with commits in between. Cancelled, it leaves the rest for the next time."""
        erased: list[Key] = []
        while True:
            step = await self._on_writer(lambda: self._opened().expire(before_ms))
            erased += step
            if len(step) < EXPIRE_AT_ONCE:
                return erased

    # ------------------------------------------------------------ threads

    def _opened(self) -> Store:
        if self._store is None:
            raise LogUnavailable(f"{self._path} isn't open")
        return self._store

    async def _on_writer(self, job: Callable[[], T]) -> T:
        """Runs `job` after those that were asked for before it."""
        if self._writer is None:
            raise LogUnavailable(f"{self._path} isn't open")
        return await self._writer.run(job)

    async def _on_reader(self, query: Callable[..., T], *args: object) -> T:
        if self._readers is None:
            raise LogUnavailable(f"{self._path} isn't open")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._with_reader, query, args)

    def _with_reader(self, query: Callable[..., T], args: tuple[object, ...]) -> T:
        with explained(self._path):
            try:
                db = self._idle_readers.pop()
            except IndexError:
                db = self._connect_reader()
            try:
                return query(db, *args)
            finally:
                self._idle_readers.append(db)

    def _connect_reader(self) -> sqlite3.Connection:
        db = connect(self._path)
        db.execute("PRAGMA query_only = ON")
        return db
