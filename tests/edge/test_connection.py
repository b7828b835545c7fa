"""The commands of one connection, over a shell that takes nothing for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway.edge import connection as connections
from gateway.edge.answers import committed, message_entry
from gateway.edge.connection import Connection
from gateway.edge.principal import NoAuthentication
from gateway.logs.log import Append, Position
from gateway.settings import Limits
from protocol.codes import Refusal
from protocol.frames import Done, Entry, Message, Metadata, Token, Welcome
from tests.support.faults import FaultLog
from tests.support.node import KEY, Node, running_node
from tests.support.scripted import END, ScriptedModel

CONVERSATION = KEY.conversation_id


class FakeShell:
    """Takes everything, or, while it is `paused`, direct answers only."""

    subprotocol = None

    def __init__(self) -> None:
        self.paused = False
        self.frames: list[dict[str, Any]] = []
        self.closed: list[int] = []

    def write(self, messages: Sequence[bytes]) -> None:
        self.frames += map(orjson.loads, messages)

    def close(self, code: int, reason: str = "") -> None:
        self.closed.append(code)

    pause_reading = resume_reading = lambda self: None


class Peer:
    """A client of `node`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.shell = FakeShell()
        authenticator = NoAuthentication()
        self.connection = Connection(
            self.shell,  # type: ignore[arg-type]
            principal=authenticator.authenticate(None),
            authenticator=authenticator,
            router=node.router,
            limits=Limits(),
            welcome=lambda connection: Welcome(connection.id, connection.protocol, 20, {}),
            on_closed=lambda _: None,
        )

    def send(self, kind: str, **fields: Any) -> None:
        self.connection.received(orjson.dumps({"type": kind, "conversation_id": CONVERSATION, **fields}), False)

    async def until(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(5):
            while not (found := [frame for frame in self.shell.frames if what(frame)]):
                await asyncio.sleep(0.001)
        return found[0]

    async def answer(self, ref: str) -> dict[str, Any]:
        return await self.until(lambda frame: frame.get("ref") == ref)


@asynccontextmanager
async def peer(log: FaultLog | None = None) -> AsyncIterator[Peer]:
    async with running_node(ScriptedModel([["a"], END]), log or FaultLog()) as node:
        peer = Peer(node)
        yield peer
        peer.connection.closed()


def take_over(node: Node, *entries: Entry) -> None:
    """As when another node owns the conversation now, and has written this."""
    session = node.pool.known(KEY)
    assert session is not None
    assert isinstance(node.log, FaultLog)
    if entries:
        assert node.log._commit(Append(KEY, Position(entries[0].seq - 1, 0), entries))
    node.pool.drop(session)


async def test_an_answer_that_never_comes_isnt_taken_for_another_one() -> None:
    log = FaultLog()
    async with peer(log) as client:
        client.shell.paused = True
        log.gate.clear()
        client.send("chat_message", message="one", ref="1", message_id="m1")
        await log.asked.wait()
        place: dict[str, Any] = {"conversation_id": CONVERSATION, "turn_id": "t", "metadata": Metadata(1)}
        take_over(
            client.node,
            Message(**place, seq=1, content="somebody else's", message_id="m0"),
            Done(**place, seq=2, finish_reason="stop", usage=None, text_length=0),
        )
        client.send("chat_message", message="two", ref="2", message_id="m2")
        while client.node.pool.known(KEY) is None:
            await asyncio.sleep(0)
        log.gate.set()
        await asyncio.sleep(0.02)
        client.shell.paused = False
        client.connection.writable()
        first, second = await client.answer("1"), await client.answer("2")
        assert (first["type"], first["error"]["code"]) == ("error", "OVERLOADED")
        assert (second["type"], second["message_id"], second["seq"]) == ("message", "m2", 3)


async def test_who_was_refused_before_it_saw_anything_follows_nothing() -> None:
    log = FaultLog()
    async with peer(log) as client:
        await client.node.ask()
        log.gate.clear()
        log.asked.clear()
        client.send("chat_message", message="one", ref="1", message_id="m1")
        await log.asked.wait()
        place: dict[str, Any] = {"conversation_id": CONVERSATION, "turn_id": "t", "metadata": Metadata(1)}
        take_over(
            client.node,
            Message(**place, seq=4, content="somebody else's", message_id="m0"),
            Token(**place, seq=5, content="a"),
            Done(**place, seq=6, finish_reason="stop", usage=None, text_length=1),
        )
        log.gate.set()
        assert (await client.answer("1"))["error"]["code"] == "OVERLOADED"
        await asyncio.sleep(0.02)
        client.send("chat_message", message="one", ref="2", message_id="m1")
        assert (await client.answer("2"))["seq"] == 7
        assert [frame.get("ref") for frame in client.shell.frames][:2] == ["1", "2"]


async def test_a_slow_reader_hears_of_the_deletion_before_what_begins_anew() -> None:
    async with peer() as client:
        client.send("chat_message", message="one", ref="1")
        await client.until(lambda frame: frame["type"] == "done")
        client.shell.paused = True
        session = await client.node.pool.session(KEY)
        client.send("chat_message", message="two", ref="2")
        await session.feed.when_committed(6)
        await client.node.pool.delete(KEY)
        client.send("chat_message", message="three", ref="3")
        await asyncio.sleep(0.02)
        client.shell.paused = False
        client.connection.writable()
        await client.answer("3")
        await client.answer("2")
        after = [frame for frame in client.shell.frames if frame["type"] in ("message", "deleted", "error")][1:]
        assert [(frame["type"], frame.get("ref"), frame.get("seq")) for frame in after] == [
            ("error", "2", None),
            ("deleted", None, None),
            ("message", "3", 1),
        ]


async def test_a_bug_in_the_background_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("t")

    monkeypatch.setattr(connections, "moved", broken)
    async with peer() as client:
        client.send("chat_message", message="one", ref="1")
        await client.answer("1")
        take_over(client.node)
        async with asyncio.timeout(5):
            while not client.shell.closed:
                await asyncio.sleep(0.001)
        assert client.shell.closed == [1011]


@pytest.mark.parametrize(("deleted", "code"), [(True, "NOT_FOUND"), (False, "OVERLOADED")])
async def test_what_is_said_of_an_entry_that_never_comes(deleted: bool, code: str) -> None:
    log = FaultLog()
    async with running_node(ScriptedModel([["a"], END]), log) as node:
        session, done = await node.send()
        feed = session.feed
        await node.entries()
        waiting = asyncio.create_task(committed(feed, done.seq + 10))
        looking = asyncio.create_task(message_entry(feed, done.seq + 10))
        await asyncio.sleep(0)
        feed.deleted = deleted
        take_over(node)
        for asking in (waiting, looking):
            with pytest.raises(Refusal, match=code):
                await asking
