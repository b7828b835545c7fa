"""A reader that one task follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog

from gateway.edge import reader as readers
from gateway.edge.reader import Reader
from gateway.logs.feed import Feed
from gateway.logs.log import Position
from gateway.logs.slices import Slice
from protocol.codec import JSON
from protocol.frames import Done, Entry, Token
from protocol.merge import SLICE_BYTES
from tests.support.faults import FaultLog, ask, begun, end, say
from tests.support.node import KEY, feeds_of, is_token, read_until, running_node
from tests.support.scripted import END, ScriptedModel


async def all_slices(reader: Reader) -> list[Slice]:
    return [made async for made in reader.slices()]


async def test_slices_then_level_then_heartbeats() -> None:
    async with running_node(ScriptedModel([["x"], END])) as node:
        frames = await node.ask()
        feed = (await node.pool.session(KEY)).feed
        seen: list[list[int]] = []
        with Reader(feeds_of(feed), feed, Position(1, 0), 0.01) as reader:
            async for made in reader.slices():
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
        with Reader(feeds_of(feed), feed, Position(0, 0), 60) as reader:
            async for made in reader.slices():
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
        with Reader(feeds_of(feed), feed, Position(0, 0), 60) as reader:
            reading = asyncio.create_task(all_slices(reader))
            while log.reads < 3:
                await asyncio.sleep(0.001)
            reader.leave()
            async with asyncio.timeout(5):
                assert await reading == []
        log.down = False
        with Reader(feeds_of(feed), feed, Position(0, 0), 60) as reader:
            async for made in reader.slices():
                assert made.frames[-1].seq == 3
                break


async def test_a_reader_ends_with_its_conversation() -> None:
    async with running_node(ScriptedModel([["a"], asyncio.Event()])) as node:
        session, _ = await node.send()
        await read_until(session, 0, is_token)
        with (
            Reader(feeds_of(session.feed), session.feed, session.feed.head(), 60) as reader,
            structlog.testing.capture_logs() as lines,
        ):
            reading = asyncio.create_task(all_slices(reader))
            await asyncio.sleep(0)
            await node.pool.delete(KEY)
            async with asyncio.timeout(5):
                slices = await reading
        assert [[frame.seq for frame in made.frames] for made in slices] == [[], [3], []]
        assert lines == []


# ---------------------------------------------------------------- passing text on


class Following:
    """A task that follows a feed. Text is passed on while `takes`, else the task gets it."""

    def __init__(self, feed: Feed, heartbeat_s: float = 60) -> None:
        self.takes = True
        self.passed: list[Slice] = []
        self.woken: list[Slice] = []
        self.all: list[Entry] = []
        self.busy = asyncio.Event()
        self.busy.set()
        self.reader = Reader(feeds_of(feed), feed, Position(0, 0), heartbeat_s, self.pass_on)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self.reader as reader:
            async for made in reader.slices():
                assert isinstance(made, Slice)
                self.woken.append(made)
                self.all += made.frames
                await self.busy.wait()

    def pass_on(self, made: Slice) -> bool:
        if self.takes:
            self.passed.append(made)
            self.all += made.frames
        return self.takes

    async def until(self, seq: int) -> None:
        async with asyncio.timeout(10):
            while self.reader.cursor.position.seq < seq:
                await asyncio.sleep(0.001)
        at = 0
        for frame in self.all:
            assert (frame.first_seq if isinstance(frame, Token) and frame.first_seq else frame.seq) == at + 1
            at = frame.seq
        assert at == seq


@pytest.fixture
async def log(monkeypatch: pytest.MonkeyPatch) -> FaultLog:
    monkeypatch.setattr(readers, "LOG_RETRY_S", 0.005)
    return FaultLog()


@pytest.fixture
async def feed(log: FaultLog) -> AsyncIterator[Feed]:
    async with begun(log, KEY) as feed:
        yield feed
        assert feed.cursors == ()


async def followed(feed: Feed, heartbeat_s: float = 60) -> Following:
    """Level with a feed of one entry."""
    following = Following(feed, heartbeat_s)
    await following.until(1)
    await asyncio.sleep(0)
    assert [len(made.frames) for made in following.woken] == [1, 0]
    return following


async def leave(following: Following) -> None:
    timer = following.reader._silence._timer
    following.reader.leave()
    async with asyncio.timeout(5):
        await following.task
    assert timer is not None
    assert timer.cancelled()
    assert following.reader._silence._timer is None


async def test_text_is_passed_on_and_the_task_sleeps_on(feed: Feed) -> None:
    following = await followed(feed)
    for text in ("a", "b", "c"):
        say(feed, text)
        await following.until(feed.seq)
    say(feed, "d")
    say(feed, "e")  # in one loop turn, hence in one frame
    await following.until(feed.seq)
    assert [frame.content for made in following.passed for frame in made.frames if isinstance(frame, Token)] == [
        "a", "b", "c", "de",
    ]  # fmt: skip
    assert len(following.woken) == 2
    end(feed)
    await following.until(feed.seq)
    assert [type(frame) for made in following.woken[2:] for frame in made.frames] == [Done]
    await leave(following)


async def test_text_behind_something_else_waits_for_the_task(feed: Feed) -> None:
    following = await followed(feed)
    following.busy.clear()
    end(feed)
    await following.until(2)
    for _ in range(3):
        say(feed, "x", turn_id="t2")
        await asyncio.sleep(0.002)
    assert (following.passed, following.reader.cursor.position.seq) == ([], 2)
    following.busy.set()
    await following.until(5)
    await leave(following)


async def test_what_isnt_taken_wakes_the_task(feed: Feed) -> None:
    following = await followed(feed)
    following.takes = False
    say(feed, "a")
    await following.until(2)
    following.takes = True
    await asyncio.sleep(0.002)
    say(feed, "b")
    await following.until(3)
    assert [[frame.seq for frame in made.frames] for made in following.woken] == [[1], [], [2], []]
    assert [made.upto.seq for made in following.passed] == [3]
    await leave(following)


async def test_more_than_one_slice_is_passed_on_in_several_loop_turns(feed: Feed) -> None:
    following = await followed(feed)
    say(feed, *["x" * 8000] * 40)
    await following.until(feed.seq)
    assert len(following.passed) > 4
    assert all(len(_encoded(made)) <= SLICE_BYTES for made in following.passed)
    await leave(following)


def _encoded(made: Slice) -> bytes:
    return b"".join(JSON.encode_all(made.frames))


async def test_a_wake_while_the_log_is_read_passes_nothing_on(feed: Feed, log: FaultLog) -> None:
    say(feed, *["x"] * 50)
    end(feed)
    await feed.when_committed(feed.seq)
    feed._trim_idle()
    log.read_s = 0.02
    following = Following(feed)
    ask(feed, turn_id="t2")
    await feed.when_committed(feed.seq)
    while not log.reads:
        await asyncio.sleep(0.001)
    for _ in range(5):  # visible at once, while the slice before them is on its way
        say(feed, "y", turn_id="t2")
        await asyncio.sleep(0.001)
    assert (following.passed, following.woken) == ([], [])
    await following.until(feed.seq)
    say(feed, "z", turn_id="t2")
    await following.until(feed.seq)
    assert len(following.passed) == 1
    await leave(following)


@pytest.mark.parametrize("behind_the_tail", [False, True])
async def test_it_wakes_for_what_came_together_with_text(feed: Feed, log: FaultLog, behind_the_tail: bool) -> None:
    """The loop is so slow that much comes before the pump's turn."""
    following = await followed(feed)
    following.reader.cursor.wake = lambda: None
    say(feed, "a")
    end(feed)
    await feed.when_committed(3)
    if behind_the_tail:
        feed._drop(len(feed.tail))
    following.reader._ring()
    await following.until(3)
    assert [[type(frame) for frame in made.frames] for made in following.woken[2:3]] == [[Token, Done]]
    assert (following.passed, log.reads) == ([], behind_the_tail)
    await leave(following)


async def test_a_bug_in_passing_on_is_the_tasks(feed: Feed) -> None:
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    following = await followed(feed)

    def broken(made: Slice) -> bool:
        raise ZeroDivisionError

    following.reader._pass_on = broken
    say(feed, "a")
    async with asyncio.timeout(5):
        with pytest.raises(ZeroDivisionError):
            await following.task
    say(feed, "b")
    await asyncio.sleep(0.002)
    assert unhandled == []


async def test_text_that_passes_is_no_silence(feed: Feed) -> None:
    following = await followed(feed, heartbeat_s=0.3)
    for _ in range(15):
        say(feed, "a")
        await asyncio.sleep(0.03)
    assert len(following.woken) == 2
    await asyncio.sleep(0.4)
    assert [made.frames for made in following.woken[2:]] == [[]]
    await leave(following)


@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_a_task_that_goes_while_a_pump_is_due(feed: Feed, how: str) -> None:
    following = await followed(feed)
    say(feed, "a")
    if how == "left":
        following.reader.leave()
    else:
        following.task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([following.task])
    assert (following.passed, feed.cursors) == ([], ())


async def test_a_deletion_while_the_task_is_busy_is_told(feed: Feed) -> None:
    """It had seen that there is nothing new, and comes back to entries and their end at once."""
    with Reader(feeds_of(feed), feed, Position(0, 0), 60) as reader:
        slices = reader.slices()
        seen = [await anext(slices), await anext(slices)]
        end(feed)
        await feed.when_committed(2)
        feed.deleted = True
        feed._wake()
        async with asyncio.timeout(5):
            seen += [made async for made in slices]
    assert [[frame.seq for frame in made.frames] for made in seen] == [[1], [], [2], []]


async def test_a_node_that_stops_shows_what_is_on_its_way_to_the_log(log: FaultLog, feed: Feed) -> None:
    following = await followed(feed)
    log.gate.clear()
    say(feed, "a")
    end(feed)
    feed.hand_over()
    await asyncio.sleep(0.005)
    log.gate.set()
    async with asyncio.timeout(5):
        await following.task
    assert isinstance(following.all[-1], Done)


async def test_a_pump_that_comes_too_late_leaves_the_task_alone(feed: Feed) -> None:
    following = await followed(feed)
    following.reader._silence.until = 0.0
    following.reader._silence._look()  # wakes the task, which is there before the pump
    say(feed, "a")
    await asyncio.sleep(0.005)
    assert [[frame.seq for frame in made.frames] for made in following.woken] == [[1], [], [2], []]
    await leave(following)
