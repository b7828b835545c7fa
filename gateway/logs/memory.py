"""`memory:`, the log for tests, benchmarks and trying things out: everything is gone when the process ends.

It keeps every entry as an object and has no bound of its own but retention and erasure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.logs import fencing, segment
from gateway.logs.log import Append, Claim, Head, Key, LogUnavailable, new_node_id
from protocol.frames import Entry

_NONE = Head()


class MemoryLog:
    """See `Log`. Every change is made at once, on the event loop; `commit` still lets the loop turn before it
    returns, as a real engine would. Safe to cancel."""

    def __init__(self) -> None:
        self.node_id = new_node_id()
        self.unclean = False
        self._heads: dict[Key, Head] = {}
        self._entries: dict[Key, list[Entry]] = {}
        self._opened = False

    async def open(self) -> None:
        self._opened = True

    async def close(self) -> None:
        self._opened = False

    async def ping(self) -> None:
        self._check_open()

    def domain(self, key: Key) -> str:
        return ""

    async def head(self, key: Key) -> Head:
        self._check_open()
        return self._heads.get(key, _NONE)

    async def claim(self, key: Key, *, instead_of: str | None = None) -> Claim:
        return Claim(await self.head(key), lost=self.unclean)

    async def release(self, key: Key) -> None:
        self._check_open()

    async def commit(self, batch: Sequence[Append]) -> list[bool]:
        self._check_open()
        for append in batch:
            fencing.check(append)
        verdicts = [self._commit(append) for append in batch]
        await asyncio.sleep(0)
        return verdicts

    def _commit(self, append: Append) -> bool:
        head = self._heads.get(append.key, _NONE)
        if not fencing.takes(head, append):
            start = append.after.seq
            there = self._entries.get(append.key, [])[start : start + len(append.entries)]
            return fencing.may_be_stored(head, append) and there == list(append.entries)
        self._entries.setdefault(append.key, []).extend(append.entries)
        self._heads[append.key] = fencing.advanced(head, append, plain=fencing.only_tokens(append.entries))
        return True

    async def read(self, key: Key, after: int, limit_bytes: int) -> list[Entry]:
        self._check_open()
        most = 1 + limit_bytes // segment.LEAST_BYTES
        entries = segment.cut(self._entries.get(key, [])[after : after + most], limit_bytes)
        await asyncio.sleep(0)  # a reader of many slices lets others run, too
        return entries

    async def epoch_at(self, key: Key, seq: int) -> int | None:
        self._check_open()
        entries = self._entries.get(key, ())
        return entries[seq - 1].epoch if 0 < seq <= len(entries) else None

    async def erase(self, key: Key) -> bool:
        self._check_open()
        if key in self._heads:
            self._heads[key] = fencing.erased(self._heads[key])
            self._entries.pop(key, None)
        return True

    async def unfinished(self, owner: str | None = None) -> list[Key]:
        self._check_open()
        if owner not in (None, "", self.node_id):
            return []
        return [key for key, head in self._heads.items() if head.open_turns]

    async def owners(self) -> set[str]:
        return set()

    async def expire(self, before_ms: int, *, leave_to: Sequence[str] = ()) -> list[Key]:
        self._check_open()
        old = [key for key, entries in self._entries.items() if entries and self._is_over(key, entries[-1], before_ms)]
        for key in old:
            await self.erase(key)
        return old

    def _is_over(self, key: Key, last: Entry, before_ms: int) -> bool:
        return not self._heads[key].open_turns and last.metadata is not None and last.metadata.timestamp < before_ms

    def _check_open(self) -> None:
        if not self._opened:
            raise LogUnavailable("the log isn't open")
