"""What a connection sends, over a shell that takes nothing for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
import structlog

from gateway.edge import outbox as outboxes
from gateway.edge.outbox import FLUSH_BYTES, Outbox, Subscription
from gateway.logs.feed import Feed
from gateway.logs.journal import Journal
from gateway.logs.log import Key, Position
from protocol.codec import MSGPACK
from protocol.frames import Pong, Subscribed
from protocol.merge import SLICE_BYTES
from tests.support.faults import FaultLog, ask, end, say


class FakeShell:
    """Takes `room` writes at once, then is paused until `drain`."""

    def __init__(self) -> None:
        self.paused = False
        self.writes: list[list[bytes]] = []
        self.closed: list[int] = []
        self.pause_after_write = False

    def write(self, messages: Sequence[bytes]) -> None:
        self.writes.append(list(messages))
        self.paused = self.paused or self.pause_after_write

    def close(self, code: int, reason: str = "") -> None:
        self.closed.append(code)

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [orjson.loads(message) for write in self.writes for message in write]


class Desk:
    """One connection over a journal, and its feed."""

    def __init__(self, log: FaultLog, journal: Journal) -> None:
        self.log, self.journal = log, journal
        self.shell = FakeShell()
        self.moved: list[Subscription] = []
        self.out = Outbox(self.shell, self.moved.append)  # type: ignore[arg-type]
        self._feeds: list[Feed] = []

    async def feed(self, name: str = "c") -> Feed:
        feed = await self.journal.feeds.open(Key("o", name))
        self._feeds.append(feed)
        return feed

    def drain(self) -> None:
        self.shell.paused = False
        self.out.writable()

    async def until_level(self, *names: str) -> None:
        async with asyncio.timeout(10):
            while not all(self.out.subscriptions[name].cursor.level for name in names or ("c",)):
                if self.shell.paused:
                    self.drain()
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(outboxes, "LOG_RETRY_S", 0.005)
    log = FaultLog()
    await log.open()
    journal = Journal(log, token_delay_s=0.001)
    journal.start()
    desk = Desk(log, journal)
    yield desk
    desk.out.close()
    await journal.close()


def check(frames: list[dict[str, Any]], upto: int, after: int = 0) -> str:
    """In order, without gap or duplicate; returns the text."""
    for frame in frames:
        assert frame.get("first_seq", frame["seq"]) == after + 1
        after = frame["seq"]
    assert after == upto
    return "".join(frame["content"] for frame in frames if frame["type"] == "token")


async def test_one_write_for_all_that_is_due_answers_first(desk: Desk) -> None:
    feeds = [await desk.feed(f"c{i}") for i in range(5)]
    for feed in feeds:
        ask(feed)
        say(feed, "a", "b")
    await asyncio.gather(*(feed.when_committed(3) for feed in feeds))
    for feed in feeds:
        desk.out.attach(feed.key.conversation_id, feed, Position(0, 0))
    desk.out.answer(Pong(ref="r"))
    await asyncio.sleep(0)
    assert len(desk.shell.writes) == 1
    assert [frame["type"] for frame in desk.shell.frames] == ["pong"] + ["message", "token"] * 5


async def test_readers_of_one_place_share_the_bytes_unless_they_wait_for_an_answer(desk: Desk) -> None:
    feed = await desk.feed()
    others = [Outbox(FakeShell(), list[Subscription]().append) for _ in range(3)]  # type: ignore[arg-type]
    subs = [out.attach("c", feed, Position(0, 0)) for out in (desk.out, *others)]
    subs[1].refs[1] = "mine"
    others[2].codec = MSGPACK
    ask(feed)
    await feed.when_committed(1)
    await asyncio.sleep(0.005)
    sent = [out._shell.writes[-1][0] for out in (desk.out, *others)]  # type: ignore[attr-defined]
    assert sent[0] is sent[2]
    assert orjson.loads(sent[1])["ref"] == "mine"
    assert "ref" not in orjson.loads(sent[0])
    assert sent[3][0] != ord("{")
    assert subs[1].refs == {}
    for out in others:
        out.close()
    assert len(feed.cursors) == 1


async def test_an_entry_that_comes_before_its_senders_answer_is_the_answer(desk: Desk) -> None:
    feed = await desk.feed()
    desk.out.attach("c", feed, Position(0, 0))
    desk.out.sending = {("c", "m_t1"): "mine", ("other", "m_t1"): "another's", ("c", "m_t9"): "later"}
    ask(feed)
    await feed.when_committed(1)
    await desk.until_level()
    (frame,) = desk.shell.frames
    assert (frame["ref"], frame["message_id"]) == ("mine", "m_t1")
    assert desk.out.sending == {("other", "m_t1"): "another's", ("c", "m_t9"): "later"}


async def test_a_paused_reader_gets_merged_slices_and_costs_no_memory(desk: Desk) -> None:
    feed = await desk.feed()
    desk.out.attach("c", feed, Position(0, 0))
    ask(feed)
    await feed.when_committed(1)
    await asyncio.sleep(0.005)
    desk.shell.paused = True
    written = len(desk.shell.writes)
    for _ in range(300):
        say(feed, *["x" * 40] * 100)
        await feed.when_committed(feed.seq)
    assert len(desk.shell.writes) == written
    assert len(desk.out._ready) + len(desk.out._lagging) == 1
    assert feed.tail_bytes < 300_000
    desk.shell.pause_after_write = True
    await desk.until_level()
    assert check(desk.shell.frames, feed.seq) == "x" * (300 * 100 * 40)
    sizes = [len(message) for write in desk.shell.writes for message in write]
    assert max(sizes) <= SLICE_BYTES
    assert all(sum(map(len, write)) <= FLUSH_BYTES + SLICE_BYTES for write in desk.shell.writes)
    assert len(sizes) < 30, "large slices"


async def test_a_lagging_reader_of_a_running_stream_gets_nothing_twice(desk: Desk) -> None:
    """New tokens wake it while its slice is read from the log: that must not be a second helper."""
    feed = await desk.feed()
    ask(feed)
    for _ in range(40):
        say(feed, *["x" * 40] * 100)
        await feed.when_committed(feed.seq)
    assert feed.tail_start > 0
    desk.log.read_s = 0.005
    desk.out.attach("c", feed, Position(0, 0))
    for _ in range(400):
        say(feed, "y")
        await asyncio.sleep(0.0002)
    end(feed)
    await feed.when_committed(feed.seq)
    await desk.until_level()
    assert check(desk.shell.frames, feed.seq) == "x" * 160_000 + "y" * 400
    assert (desk.out._catching_up, desk.out._lagging) == (None, {})


async def test_lagging_readers_take_turns(desk: Desk) -> None:
    names = ["c0", "c1", "c2"]
    for name in names:
        feed = await desk.feed(name)
        ask(feed)
        for _ in range(60):
            say(feed, *["x" * 40] * 100)
            await feed.when_committed(feed.seq)
    for name in names:
        desk.out.attach(name, await desk.feed(name), Position(0, 0))
    await desk.until_level(*names)
    order = [frame["conversation_id"] for frame in desk.shell.frames if frame["type"] == "token"]
    assert order[:3] == names
    for name in names:
        check([frame for frame in desk.shell.frames if frame["conversation_id"] == name], 6001)


async def test_a_log_that_cant_be_read_is_asked_again(desk: Desk) -> None:
    feed = await desk.feed()
    ask(feed)
    end(feed)
    await feed.when_committed(2)
    desk.log.down = True
    desk.out.attach("c", feed, Position(0, 0))
    while desk.log.reads < 3:
        await asyncio.sleep(0.001)
    assert desk.shell.writes == []
    desk.log.down = False
    await desk.until_level()
    check(desk.shell.frames, 2)


async def test_a_cursor_that_is_moved_or_dropped_while_it_is_read(desk: Desk) -> None:
    feed = await desk.feed()
    ask(feed)
    end(feed)
    await feed.when_committed(2)
    desk.out.attach("c", feed, Position(0, 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    desk.out.answer(Subscribed(conversation_id="c", after=1, head=2, epoch=0))
    desk.out.attach("c", feed, Position(1, 0))
    await desk.until_level()
    assert [frame["type"] for frame in desk.shell.frames] == ["subscribed", "done"]
    desk.out.attach("c", feed, Position(0, 0))
    await asyncio.sleep(0)
    desk.out.detach("c")
    await asyncio.sleep(0.01)
    assert len(desk.shell.frames) == 2
    assert (feed.cursors, desk.out.detach("c")) == ((), None)


async def test_a_reader_whose_feed_was_given_up_is_handed_on_once_with_its_place(desk: Desk) -> None:
    feed = await desk.feed()
    sub = desk.out.attach("c", feed, Position(0, 0))
    ask(feed)
    await feed.when_committed(1)
    await desk.until_level()
    sub.refs[2] = "mine"
    desk.journal.feeds.give_up(feed)
    await asyncio.sleep(0.01)
    assert (desk.moved, desk.shell.closed, feed.cursors) == ([sub], [], ())
    assert desk.out.subscriptions["c"].cursor.position == Position(1, 0)
    refusal = desk.shell.frames[-1]
    assert (refusal["ref"], refusal["error"]["code"]) == ("mine", "OVERLOADED")


async def test_deleted_comes_last_and_ends_the_subscription(desk: Desk) -> None:
    feed, behind = await desk.feed(), await desk.feed("behind")
    for one in (feed, behind):
        ask(one)
        end(one)
        await one.when_committed(2)
        await one.when_committed(2)
    desk.out.attach("c", feed, Position(2, 0))
    desk.out.attach("behind", behind, Position(0, 0))
    await desk.log.erase(behind.key)
    await feed.end(0)
    await behind.end(0)
    async with asyncio.timeout(5):
        while desk.out.subscriptions:
            await asyncio.sleep(0.001)
    assert {(f["type"], f["conversation_id"]) for f in desk.shell.frames} == {("deleted", "c"), ("deleted", "behind")}
    assert len(desk.shell.frames) == 2


async def test_a_bug_while_catching_up_closes_the_connection(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = await desk.feed()
    ask(feed)
    end(feed)
    await feed.when_committed(2)

    async def broken(*_: Any) -> Any:
        raise ValueError("not a segment")

    monkeypatch.setattr(desk.log, "read", broken)
    with structlog.testing.capture_logs() as lines:
        desk.out.attach("c", feed, Position(0, 0))
        async with asyncio.timeout(5):
            while not desk.shell.closed:
                await asyncio.sleep(0.001)
    assert desk.shell.closed == [1011]
    assert [line["log_level"] for line in lines] == ["error"]


async def test_closing_leaves_no_cursor_and_no_task(desk: Desk) -> None:
    feed = await desk.feed()
    ask(feed)
    end(feed)
    await feed.when_committed(2)
    desk.shell.paused = True
    desk.out.attach("c", feed, Position(0, 0))
    desk.out._lag(desk.out.subscriptions["c"])
    await asyncio.sleep(0)
    desk.out.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (feed.cursors, desk.out._catching_up, desk.out.subscriptions) == ((), None, {})
