"""A log that fails as it is told, and the entries that tests put into one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.logs.feed import Feed
from gateway.logs.journal import Journal
from gateway.logs.log import Append, Key, LogUnavailable
from gateway.logs.memory import MemoryLog
from protocol.frames import Done, Entry, Message, Metadata, Token


class FaultLog(MemoryLog):
    """`MemoryLog`, until a test sets `down` (reads and writes fail), `poison` (an append that holds it can't be
    encoded), or clears `gate` (writes wait). `lose_answer`: the next commit is written and then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.poison: str | None = None
        self.lose_answer = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        """A commit was asked for."""
        self.read_s = 0.0
        """How long a read takes."""
        self.commits = 0
        self.reads = 0

    async def commit(self, batch: Sequence[Append]) -> list[bool]:
        self.commits += 1
        self.asked.set()
        await self.gate.wait()
        self._check_up()
        if any(self.poison is not None and self.poison in repr(append.entries) for append in batch):
            raise ValueError("can't be encoded")
        verdicts = await super().commit(batch)
        if self.lose_answer:
            self.lose_answer = False
            raise LogUnavailable("the answer got lost")
        return verdicts

    async def read(self, key: Key, after: int, limit_bytes: int) -> list[Entry]:
        self.reads += 1
        self._check_up()
        if self.read_s:
            await asyncio.sleep(self.read_s)
        return await super().read(key, after, limit_bytes)

    async def epoch_at(self, key: Key, seq: int) -> int | None:
        self._check_up()
        return await super().epoch_at(key, seq)

    async def expire(self, before_ms: int, *, leave_to: Sequence[str] = ()) -> list[Key]:
        self._check_up()
        return await super().expire(before_ms, leave_to=leave_to)

    def _check_up(self) -> None:
        if self.down:
            raise LogUnavailable("the log is down")


def place(feed: Feed, turn_id: str = "t1", offset: int = 0) -> dict[str, Any]:
    seq, epoch = feed.next_position()
    return {
        "conversation_id": feed.key.conversation_id,
        "turn_id": turn_id,
        "seq": seq + offset,
        "epoch": epoch,
        "metadata": Metadata(1),
    }


def say(feed: Feed, *texts: str, turn_id: str = "t1") -> None:
    """Appends tokens."""
    feed.append(*(Token(**place(feed, turn_id, i), content=text) for i, text in enumerate(texts)))


def ask(feed: Feed, content: str = "hi", turn_id: str = "t1") -> None:
    feed.append(Message(**place(feed, turn_id), content=content, message_id=f"m_{turn_id}"))


async def asked(journal: Journal, key: Key) -> Feed:
    """A conversation with a question in its log."""
    feed = await journal.feeds.open(key)
    ask(feed)
    await feed.when_committed(1)
    return feed


@asynccontextmanager
async def begun(log: FaultLog, key: Key) -> AsyncIterator[Feed]:
    """The same in a journal of its own."""
    await log.open()
    journal = Journal(log, token_delay_s=0.001)
    journal.start()
    yield await asked(journal, key)
    await journal.close()


def end(feed: Feed, turn_id: str = "t1") -> None:
    feed.append(Done(**place(feed, turn_id), finish_reason="stop", usage=None, text_length=0))
