"""What a conversation takes in memory, counted in bytes that are allocated: idle in the pool, and evicted.

The log keeps its entries in a file here, so what is counted is the gateway's own. When a conversation gets smaller,
lower the bound to what is measured plus a tenth, so that it stays worth something.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.edge.principal import Principal
from gateway.logs.sqlite import SqliteLog
from gateway.sessions.session import Session
from tests.support.node import KEY, Node, running_node
from tests.support.scripted import END, ScriptedModel

OWNER = Principal("", "anonymous")
CONVERSATIONS = 400
IDLE_BYTES = 1660
"""At most, of a conversation with one question and one answer of a few words."""
EVICTED_BYTES = 150
"""At most: what a few tables that are larger now, and the log's newest entries, come to when they are shared out."""


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", 2000)
    monkeypatch.setattr("gateway.logs.feed.IDLE_TAIL_S", 0.0)
    async with running_node(ScriptedModel([["abc"], ["def"], END]), SqliteLog(tmp_path / "log.db")) as node:
        yield node


async def converse(node: Node, prefix: str) -> None:
    """One question in each of many conversations, answered and all but forgotten."""
    for number in range(CONVERSATIONS):
        await node.ask(key=OWNER.key(f"{prefix}{number:04}"))
    await asyncio.sleep(0.05)  # for readers that were level, the last tails are kept a moment longer
    assert node.pool.running == 0
    assert isinstance(node.model, ScriptedModel)
    node.model.requests.clear()


def allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def measured(node: Node) -> tuple[float, float]:
    """Bytes of a conversation: idle, and evicted."""
    tracemalloc.start()
    try:
        await converse(node, "warm")  # tables grow to what they take
        node.pool.evict(float("inf"))
        before = allocated()
        await converse(node, "then")
        assert node.pool.sessions == CONVERSATIONS
        idle = allocated()
        node.pool.evict(float("inf"))
        evicted = allocated()
    finally:
        tracemalloc.stop()
    return (idle - before) / CONVERSATIONS, (evicted - before) / CONVERSATIONS


async def test_an_idle_conversation_is_small_and_an_evicted_one_is_nothing(node: Node) -> None:
    idle, evicted = await measured(node)
    assert idle <= IDLE_BYTES
    assert evicted <= EVICTED_BYTES


async def test_counts_of_ended_turns_are_kept_once_there_are_some(node: Node) -> None:
    await node.ask()
    session = await node.pool.session(KEY)
    assert session.token_counts is None
    for ended in (1, 2):
        await node.ask()
        assert len(session.token_counts or ()) == ended


async def test_a_table_more_in_each_session_is_noticed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bounds are for. Nobody gives back what this keeps, so both have to trip."""
    kept: list[dict[str, int]] = []
    begin = Session.__init__

    def heavier(self: Session, *args: Any) -> None:
        begin(self, *args)
        kept.append({"one": 1})

    monkeypatch.setattr(Session, "__init__", heavier)
    idle, evicted = await measured(node)
    assert idle > IDLE_BYTES
    assert evicted > EVICTED_BYTES
