"""A gateway's inside without sockets: a log, a journal, a pool, and a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.context.manager import ContextManager
from gateway.context.summary import Summarizer
from gateway.edge.reader import Reader
from gateway.logs.feed import Feed
from gateway.logs.feeds import Feeds
from gateway.logs.journal import Journal
from gateway.logs.log import Key, Log, Position
from gateway.logs.memory import MemoryLog
from gateway.logs.nodes import Nodes
from gateway.logs.slices import Slice
from gateway.logs.writer import Writer
from gateway.models.model import Model
from gateway.sessions.generation import Engine
from gateway.sessions.pool import SessionPool
from gateway.sessions.router import Router
from gateway.sessions.session import Acknowledged, Session
from gateway.settings import Limits, LogAndSessions, Upstream
from gateway.settings.tools import Tools
from gateway.telemetry.metrics import Metrics
from gateway.tools.toolbox import Toolbox
from protocol.frames import ChatMessage, Done, Entry, Error, FunctionCall, Token

KEY = Key("0:/anonymous", "c1")


class Node:
    """One node; `key` is the conversation that the shorthands use."""

    def __init__(
        self, log: Log, model: Model, toolbox: Toolbox | None = None, nodes: Nodes | None = None, **settings: Any
    ) -> None:
        self.log = log
        self.model = model
        self.metrics = Metrics()
        self.journal = Journal(log, nodes, token_delay_s=0.005)
        defaults: dict[str, Any] = {"batch_chars": 0}
        slices = [_slice(kind, {**defaults, **settings}) for kind in (Upstream, LogAndSessions, Limits)]
        upstream, log_settings, limits = slices
        self.pool = SessionPool(
            self.journal,
            Engine(
                model,
                ContextManager(upstream, Summarizer(model, upstream.model)),
                toolbox or Toolbox(Tools()),
                upstream,
                log_settings,
                self.metrics,
            ),
            limits,
        )
        self.router = Router(self.pool, self.journal)

    async def send(self, message: str = "hi", key: Key = KEY, **fields: Any) -> tuple[Session, Acknowledged]:
        return await self.pool.submit(key, ChatMessage(message=message, **fields))

    async def ask(self, message: str = "hi", key: Key = KEY, **fields: Any) -> list[Entry]:
        """Sends a message, and reads to the end of its turn."""
        session, done = await self.send(message, key, **fields)
        return await read(session, done)

    async def entries(self, key: Key = KEY) -> list[Entry]:
        """The whole log of a conversation, as the engine has it."""
        return await self.log.read(key, 0, 1 << 30)


def _slice(kind: Any, settings: dict[str, Any]) -> Any:
    return kind(**{name: value for name, value in settings.items() if name in kind.model_fields})


@asynccontextmanager
async def running_node(model: Model, log: Log | None = None, **settings: Any) -> AsyncIterator[Node]:
    log = log or MemoryLog()
    await log.open()
    node = Node(log, model, **settings)
    node.journal.start()
    await node.pool.start()
    try:
        yield node
    finally:
        await node.pool.close()
        await node.journal.close()
        await log.close()


async def read(session: Session, done: Acknowledged) -> list[Entry]:
    """What a reader that starts at its own message sees of its turn, to the end."""
    return await read_until(
        session, done.seq - 1, lambda frame: isinstance(frame, (Done, Error)) and frame.turn_id == done.turn_id
    )


async def read_until(session: Session, after: int, last: Any, timeout_s: float = 10) -> list[Entry]:
    """Frames after entry `after`, up to and with the first that `last` accepts; checks their order."""
    seen: list[Entry] = []
    at = after
    async with asyncio.timeout(timeout_s):
        with Reader(feeds_of(session.feed), session.feed, Position(after, 0), 60) as reader:
            async for made in reader.slices():
                assert isinstance(made, Slice), f"a snapshot after {at}"
                for frame in made.frames:
                    first = frame.first_seq if isinstance(frame, Token) and frame.first_seq else frame.seq
                    assert first == at + 1, f"{first} after {at}"
                    at = frame.seq
                    seen.append(frame)
                    if last(frame):
                        return seen
    raise AssertionError(f"the conversation ended after {seen}")


def feeds_of(feed: Feed) -> Feeds:
    """What a `Reader` needs beside a feed."""
    writer = feed._writer
    assert isinstance(writer, Writer)
    feeds = writer._reclaim_one.__self__  # type: ignore[attr-defined]  # a method of them
    assert isinstance(feeds, Feeds)
    return feeds


def is_call(frame: Entry) -> bool:
    return isinstance(frame, FunctionCall)


def is_token(frame: Entry) -> bool:
    return isinstance(frame, Token)


def is_end(frame: Entry) -> bool:
    return isinstance(frame, (Done, Error))


def text(frames: Sequence[Entry]) -> str:
    return "".join(frame.content for frame in frames if isinstance(frame, Token))


def kinds(frames: Sequence[Entry]) -> list[str]:
    """Types in order; a run of tokens counts once."""
    names = [str(frame.__struct_config__.tag) for frame in frames]
    return [name for i, name in enumerate(names) if name != "token" or i == 0 or names[i - 1] != "token"]
