"""Streams that never cease: so many conversations at once, each answer followed by the next question elsewhere.

They are read through the gateway's own client, as an application does: it mends its connections by itself, and checks
order and length of everything that it reads. What it read is told as `Answered`; what it couldn't, as problems.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from uuid import uuid4

from protocol.client import Client, Connected, Event, Reconnecting, Turn
from protocol.client.errors import ClientClosed, ClientError, RequestError
from protocol.frames import Restart, Snapshot, Token

ASK_AGAIN_S = 0.5


@dataclass
class Answered:
    """One turn, as its reader saw it."""

    conversation_id: str
    text: str
    finish_reason: str | None
    error: str | None
    """The code."""
    restarts: int
    snapshots: int


@dataclass
class Pauses:
    """Seconds between two tokens of a stream, of those that lost their node or their connection in between."""

    cut: list[float] = field(default_factory=list)
    """Their node lives; only the connection was through the one that died."""
    restarted: list[float] = field(default_factory=list)
    """Their own node died: another one took the turn over."""


class _Reader:
    """One connection and its streams."""

    def __init__(self, streams: Streams, url: str) -> None:
        self.streams = streams
        self.client = Client(url, on_event=self._event)
        self.lost = False
        self.touched: set[str] = set()
        """Conversations whose connection was lost; until their next token."""
        self.reading: set[str] = set()
        self.last_token: dict[str, float] = {}

    def _event(self, event: Event) -> None:
        match event:
            case Reconnecting() if not self.lost:
                self.lost = True
                self.streams.reconnects += 1
                self.touched |= self.reading
            case Connected():
                self.lost = False
            case _:
                pass


class Streams:
    """`count` of them over `connections`; enter, and leave it only after `finish`."""

    def __init__(self, url: str, script: str, *, count: int, connections: int) -> None:
        self._url, self._script = url, script
        self._count, self._connections = count, connections
        self._prefix = uuid4().hex[:8]
        self.answered: list[Answered] = []
        self.problems: list[str] = []
        """Answers that came out of order or incomplete."""
        self.refused: dict[str, int] = {}
        """Error codes of refused messages, each sent again."""
        self.reconnects = 0
        self.tokens = 0
        self.pauses = Pauses()
        self.open: set[str] = set()
        """Conversations whose turn was asked for and has no end yet."""
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._readers: list[_Reader] = []

    async def start(self, ramp_s: float) -> None:
        """Connects, and begins one stream after the other."""
        self._readers = [_Reader(self, self._url) for _ in range(self._connections)]
        for reader in self._readers:
            await reader.client.__aenter__()
        for slot in range(self._count):
            reader = self._readers[slot % self._connections]
            delay_s = ramp_s * slot / self._count
            self._tasks.append(asyncio.create_task(self._keep(reader, slot, delay_s), name=f"stream {slot}"))

    async def finish(self, within_s: float) -> None:
        """Asks nothing more, and reads what was asked to its end. What hasn't ended in time stays in `open`."""
        self._stopping.set()
        await asyncio.wait(self._tasks, timeout=within_s)
        await self.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                self.problems.append(f"{type(ended).__name__}: {ended}")
        for reader in self._readers:
            await reader.client.aclose()

    async def _keep(self, reader: _Reader, slot: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        number = 0
        while not self._stopping.is_set():
            name = f"{self._prefix}-{slot}-{number}"
            number += 1
            self.open.add(name)
            reader.reading.add(name)
            try:
                await self._one(reader, name)
                self.open.discard(name)
            except ClientError as problem:
                self.problems.append(f"{name}: {type(problem).__name__}: {problem}")
            finally:
                reader.reading.discard(name)
                reader.touched.discard(name)
                reader.last_token.pop(name, None)

    async def _one(self, reader: _Reader, name: str) -> None:
        turn = await self._sent(reader.client, name)
        restarts = snapshots = 0
        restarting = False
        async for frame in turn:
            match frame:
                case Token():
                    self._token(reader, name, frame, restarting)
                    restarting = False
                case Restart():
                    restarts += 1
                    restarting = True
                case Snapshot():
                    snapshots += 1
                case _:
                    pass
        if turn.finish_reason is None and turn.error is None:
            raise ClientClosed("the turn wasn't read to its end")
        code = str(turn.error.code) if turn.error else None
        self.answered.append(Answered(name, turn.text, turn.finish_reason, code, restarts, snapshots))

    async def _sent(self, client: Client, name: str) -> Turn:
        while True:
            try:
                return await client.send(f"key={name} {self._script}", conversation_id=name, message_id="q1")
            except RequestError as refusal:
                self.refused[refusal.code] = self.refused.get(refusal.code, 0) + 1
                if not refusal.retryable:
                    raise
            await asyncio.sleep(ASK_AGAIN_S)

    def _token(self, reader: _Reader, name: str, frame: Token, restarting: bool) -> None:
        self.tokens += 1 if frame.first_seq is None else frame.seq - frame.first_seq + 1
        now = time.monotonic()
        before = reader.last_token.get(name)
        reader.last_token[name] = now
        if before is not None:
            if restarting:
                self.pauses.restarted.append(now - before)
            elif name in reader.touched:
                self.pauses.cut.append(now - before)
        reader.touched.discard(name)
