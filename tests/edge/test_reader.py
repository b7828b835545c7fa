"""A reader that one task follows."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from gateway.edge import reader as readers
from gateway.edge.reader import Reader
from gateway.logs.log import Position
from gateway.logs.slices import Slice
from protocol.frames import Token
from tests.support.faults import FaultLog
from tests.support.node import KEY, feeds_of, is_token, read_until, running_node
from tests.support.scripted import END, ScriptedModel


async def all_slices(reader: Reader, heartbeat_s: float = 60) -> list[Slice]:
    return [made async for made in reader.slices(heartbeat_s)]


async def test_slices_then_level_then_heartbeats() -> None:
    async with running_node(ScriptedModel([["x"], END])) as node:
        frames = await node.ask()
        feed = (await node.pool.session(KEY)).feed
        seen: list[list[int]] = []
        with Reader(feeds_of(feed), feed, Position(1, 0)) as reader:
            async for made in reader.slices(0.01):
                seen.append([frame.seq for frame in made.frames])
                if len(seen) == 4:
                    reader.leave()
        assert seen == [[2, 3], [], [], []]
        assert feed.cursors == ()
        assert len(frames) == 3


async def test_a_reader_that_lags_reads_the_log() -> None:
    log = FaultLog()
    async with running_node(ScriptedModel([["a"], ["b"], END]), log) as node:
        await node.ask()
        feed = (await node.pool.session(KEY)).feed
        feed._trim_idle()
        reads = log.reads
        with Reader(feeds_of(feed), feed, Position(0, 0)) as reader:
            async for made in reader.slices(60):
                assert [f.content for f in made.frames if isinstance(f, Token)] == ["ab"]
                assert log.reads == reads + 1
                break
            assert reader.cursor.level


async def test_while_the_log_cant_be_read_it_tries_again_until_the_peer_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LOG_RETRY_S", 0.005)
    log = FaultLog()
    async with running_node(ScriptedModel([["a"], END]), log) as node:
        await node.ask()
        feed = (await node.pool.session(KEY)).feed
        feed._trim_idle()
        log.down = True
        with Reader(feeds_of(feed), feed, Position(0, 0)) as reader:
            reading = asyncio.create_task(all_slices(reader))
            while log.reads < 3:
                await asyncio.sleep(0.001)
            reader.leave()
            async with asyncio.timeout(5):
                assert await reading == []
        log.down = False
        with Reader(feeds_of(feed), feed, Position(0, 0)) as reader:
            async for made in reader.slices(60):
                assert made.frames[-1].seq == 3
                break


async def test_a_reader_ends_with_its_conversation() -> None:
    async with running_node(ScriptedModel([["a"], asyncio.Event()])) as node:
        session, _ = await node.send()
        await read_until(session, 0, is_token)
        with (
            Reader(feeds_of(session.feed), session.feed, session.feed.head()) as reader,
            structlog.testing.capture_logs() as lines,
        ):
            reading = asyncio.create_task(all_slices(reader))
            await asyncio.sleep(0)
            await node.pool.delete(KEY)
            async with asyncio.timeout(5):
                slices = await reading
        assert [[frame.seq for frame in made.frames] for made in slices] == [[], [3], []]
        assert lines == []
