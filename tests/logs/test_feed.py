"""A feed alone: what is visible when, what memory it keeps, and that a cursor sees every entry once."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import feed as feeds
from gateway.logs.cursor import Cursor
from gateway.logs.feed import FULL_BYTES, TAIL_BYTES, Feed
from gateway.logs.log import Head, Key, LogUnavailable, Position
from gateway.logs.memory import MemoryLog
from gateway.logs.slices import NOTHING_NEW, Slice
from protocol.frames import Done, Entry, FunctionResult, Message, Token
from tests.support.faults import ask, end, place, say

KEY = Key("o", "c")


class Desk:
    """Does the journal's part, a step at a time."""

    def __init__(self) -> None:
        self.available = self.runs_ahead = True
        self.log = MemoryLog()
        self.calls: list[bool] = []

    def due(self, feed: Feed, *, urgent: bool) -> None:
        self.calls.append(urgent)

    async def commit(self, feed: Feed) -> bool:
        append = feed.take_append()
        if append is None:
            return False
        (written,) = await self.log.commit([append])
        if written:
            feed.written()
        else:
            feed.refused()
        return written


@pytest.fixture
async def desk() -> Desk:
    desk = Desk()
    await desk.log.open()
    return desk


async def opened(desk: Desk) -> Feed:
    return Feed(KEY, await desk.log.head(KEY), desk)


def cursor(feed: Feed, after: int = 0) -> tuple[Cursor, list[int]]:
    wakes: list[int] = []
    return Cursor(feed, Position(after, 0), lambda: wakes.append(feed.visible)), wakes


# ---------------------------------------------------------------- what is visible


async def test_tokens_are_seen_at_once_and_everything_else_when_it_is_in_the_log(desk: Desk) -> None:
    feed = await opened(desk)
    reader, wakes = cursor(feed)
    ask(feed)
    assert (feed.seq, feed.visible, feed.open_turns[0].turn_id) == (1, 0, "t1")
    say(feed, "a", "b")
    assert (feed.visible, wakes) == (0, []), "not past the message"
    await desk.commit(feed)
    assert (feed.visible, feed.committed, wakes) == (3, 3, [3])
    say(feed, "c")
    assert (feed.visible, feed.committed, wakes) == (4, 3, [3, 4])
    end(feed)
    ask(feed, turn_id="t2")
    say(feed, "d", turn_id="t2")
    assert (feed.visible, wakes) == (4, [3, 4])
    await desk.commit(feed)
    assert (feed.visible, wakes[-1], desk.calls) == (7, 7, [True, False, False, True, True, False])
    made = reader.take()
    assert made is not None
    assert [frame.seq for frame in made.frames] == [1, 4, 5, 6, 7]


async def test_tokens_after_an_entry_are_seen_with_it(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    feed.take_append()
    say(feed, "a", "b")
    end(feed)
    say(feed, "c", turn_id="t2")
    await desk.commit(feed)
    assert (feed.committed, feed.visible) == (1, 3), "the tokens that follow, but not the `done` behind them"


@given(st.lists(st.sampled_from(["token", "message", "done", "take", "commit"]), max_size=40))
def test_visibility_rule(steps: list[str]) -> None:
    async def run() -> None:
        desk = Desk()
        await desk.log.open()
        feed = await opened(desk)
        reader, wakes = cursor(feed)
        got: list[Entry] = []
        for step in steps:
            before = feed.visible
            if step == "token":
                say(feed, "x")
            elif step == "message":
                ask(feed)
            elif step == "done":
                end(feed)
            elif step == "take":
                made = reader.take()
                assert made is not None
                got += made.frames
            else:
                await desk.commit(feed)
            assert feed.committed <= feed.visible <= feed.seq
            assert all(type(e) is Token for e in feed.uncommitted if e.seq <= feed.visible)
            following = [e for e in feed.uncommitted if e.seq == feed.visible + 1]
            assert not any(type(e) is Token for e in following), "what may be seen is seen"
            assert (feed.visible > before) == (bool(wakes) and wakes[-1] == feed.visible and feed.visible != before)
            assert reader.level == (reader.position.seq >= feed.visible)
        while await desk.commit(feed):
            pass
        made = reader.take() or await reader.fetch()
        got += made.frames
        assert reader.position.seq == feed.seq
        whole = await desk.log.read(KEY, 0, 1 << 30)
        assert [e.seq for e in whole] == list(range(1, feed.seq + 1))
        assert sum(len(e.content) for e in got if isinstance(e, Token)) == sum(isinstance(e, Token) for e in whole)
        assert [e for e in got if not isinstance(e, Token)] == [e for e in whole if not isinstance(e, Token)]

    asyncio.run(run())


async def test_appends_have_to_follow_each_other(desk: Desk) -> None:
    feed = await opened(desk)
    with pytest.raises(AssertionError, match="can't follow"):
        feed.append(Token(**{**place(feed), "seq": 5}, content="x"))


async def test_what_cant_be_encoded_isnt_taken(desk: Desk) -> None:
    feed = await opened(desk)
    good = FunctionResult(**place(feed), call_id="k", name="f", result=1)
    bad = FunctionResult(**place(feed, offset=1), call_id="k", name="f", result=object())
    with pytest.raises(TypeError):
        feed.append(good, bad)
    assert (feed.seq, feed.tail, feed.tail_bytes) == (0, [], 0)


# ---------------------------------------------------------------- epochs and fencing


async def test_a_stale_head_begins_a_new_epoch_once(desk: Desk) -> None:
    feed = Feed(KEY, Head(0, 2_000_000_000, stale=True), desk)
    assert feed.head() == Position(0, 0)
    ask(feed)
    say(feed, "a")
    assert [entry.epoch for entry in feed.uncommitted] == [2_000_000_001] * 2
    append = feed.take_append()
    assert append is not None
    assert append.after == Position(0, 0)


async def test_one_append_has_one_epoch(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    feed.stale = True
    say(feed, "a")
    feed.stale = True
    say(feed, "b")
    sizes = []
    while (append := feed.take_append()) is not None:
        assert feed.take_append() == append, "the same again, until it is written"
        sizes.append(len(append.entries))
        await desk.commit(feed)
    assert sizes == [1, 1, 1]
    assert len({entry.epoch for entry in await desk.log.read(KEY, 0, 1 << 20)}) == 3


async def test_a_fenced_feed_takes_nothing_and_tells_those_who_wait(desk: Desk) -> None:
    feed = await opened(desk)
    _, wakes = cursor(feed)
    ask(feed)
    waiting = asyncio.create_task(feed.when_committed(1))
    left = asyncio.create_task(feed.when_committed(1))
    await asyncio.sleep(0)
    left.cancel()
    feed.take_append()
    feed.refused()
    feed.written()  # the answer to what was being written comes late
    with pytest.raises(LogUnavailable):
        await waiting
    with pytest.raises(LogUnavailable):
        await feed.when_committed(1)
    with pytest.raises(LogUnavailable):
        await feed.when_room()
    say(feed, "late")
    assert (feed.seq, feed.has_room, feed.take_append(), len(wakes)) == (1, False, None, 1)


# ---------------------------------------------------------------- waiting


async def test_waiters_wake_in_their_turn_and_leave_nothing_behind(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    first = asyncio.create_task(feed.when_committed(1))
    later = asyncio.create_task(feed.when_committed(2))
    gone = asyncio.create_task(feed.when_committed(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    await desk.commit(feed)
    await first
    await feed.when_committed(1)
    assert not later.done()
    assert len(feed._committed_waiters) == 1
    end(feed)
    await desk.commit(feed)
    await later
    assert feed._committed_waiters == ()


async def test_room_is_bounded_while_nothing_is_written(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    while feed.has_room:
        say(feed, "x" * 1000)
    assert FULL_BYTES <= feed.tail_bytes < FULL_BYTES + 2000
    waiting = asyncio.create_task(feed.when_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await desk.commit(feed)
    await waiting
    assert (feed.committed, feed.has_room) == (feed.seq, True)


# ---------------------------------------------------------------- memory


async def test_the_tail_is_bounded_whatever_the_entries_are(desk: Desk) -> None:
    feed = await opened(desk)
    cursor(feed)
    for number in range(40):
        ask(feed, "y" * 30_000, turn_id=f"t{number}")
        say(feed, *["x" * 50] * 40, turn_id=f"t{number}")
        await desk.commit(feed)
        held = sum(len(e.content) for e in feed.tail if isinstance(e, (Message, Token)))
        assert held <= feed.tail_bytes <= 2 * TAIL_BYTES
    assert feed.tail_start + len(feed.tail) == feed.seq
    assert feed.slice_after(0) is None


@pytest.mark.parametrize("followed", [False, True])
async def test_an_idle_feed_keeps_no_tail(desk: Desk, followed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "IDLE_TAIL_S", 0.01)
    feed = await opened(desk)
    reader = cursor(feed)[0] if followed else None
    ask(feed)
    say(feed, "a")
    end(feed)
    await desk.commit(feed)
    if reader is not None:
        made = reader.take()
        assert made is not None, "those that are level get it from memory"
        assert len(made.frames) == 3
        async with asyncio.timeout(5):
            while feed.tail:
                await asyncio.sleep(0.005)
    assert (feed.tail, feed.tail_bytes, feed.tail_start, feed._slice) == ([], 0, 3, None)
    assert (feed.head(), feed.slice_after(3), feed.slice_after(2)) == (Position(3, 0), NOTHING_NEW, None)


async def test_a_feed_that_went_on_keeps_its_tail(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "IDLE_TAIL_S", 0)
    feed = await opened(desk)
    cursor(feed)
    ask(feed)
    end(feed)
    await desk.commit(feed)
    ask(feed, turn_id="t2")
    await asyncio.sleep(0.01)
    assert len(feed.tail) == 3
    await desk.commit(feed)
    end(feed, "t2")
    await desk.commit(feed)
    await asyncio.sleep(0.01)
    assert feed.tail == []


async def test_a_closed_cursor_holds_nothing(desk: Desk) -> None:
    feed = await opened(desk)
    reader, wakes = cursor(feed)
    other, _ = cursor(feed)
    reader.close()
    ask(feed)
    await desk.commit(feed)
    assert (wakes, feed.cursors) == ([], (other,))
    reader.wake()
    assert wakes == []


# ---------------------------------------------------------------- reading


async def test_readers_at_one_place_share_a_slice(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    say(feed, "a", "b")
    await desk.commit(feed)
    one, two = cursor(feed)[0], cursor(feed)[0]
    assert one.take() is two.take()
    say(feed, "c")
    first = one.take()
    say(feed, "d")
    second = two.take()
    assert first is not None
    assert second is not None
    assert [frame.seq for frame in first.frames] == [4]
    assert [(frame.seq, frame.content) for frame in second.frames if isinstance(frame, Token)] == [(5, "cd")]


@pytest.mark.parametrize(("readers", "kept"), [(0, 0), (1, 0), (2, 100)])
async def test_a_slice_is_kept_only_for_readers_to_come(desk: Desk, readers: int, kept: int) -> None:
    conversations = [await opened(desk) for _ in range(100)]
    each = [[cursor(feed)[0] for _ in range(readers)] for feed in conversations]
    for feed in conversations:
        ask(feed)
        feed.visible = feed.seq
        say(feed, "a")
    gc.collect()
    before = count_slices()
    for feed, cursors in zip(conversations, each, strict=True):
        for reader in cursors:
            assert reader.take() is not None
        if not cursors:
            feed.slice_after(0)
    assert count_slices() - before == kept


def count_slices() -> int:
    return sum(type(thing) is Slice for thing in gc.get_objects())


async def test_a_slice_is_at_most_64_kib_and_the_rest_follows(desk: Desk) -> None:
    feed = await opened(desk)
    reader, _ = cursor(feed)
    ask(feed)
    say(feed, *["x" * 8000] * 15)
    await desk.commit(feed)
    counts = []
    while not reader.level:
        made = reader.take()
        assert made is not None
        assert made.whole == (made.upto.seq < feed.visible)
        counts.append(sum(len(f.content) for f in made.frames if isinstance(f, Token)))
    assert counts == [64_000, 56_000]


async def test_reading_from_the_log_goes_on_where_it_was_cancelled(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    say(feed, "a")
    end(feed)
    await desk.commit(feed)
    reader, _ = cursor(feed)
    assert reader.take() is None
    reading = asyncio.create_task(reader.fetch())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    assert reader.position.seq == 0
    made = await reader.fetch()
    assert (made.upto, reader.level) == (Position(3, 0), True)
    assert await reader.fetch() is NOTHING_NEW


@pytest.mark.parametrize("step_bytes", [1, 50, 1 << 20])
async def test_the_fold_of_log_and_tail(desk: Desk, step_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "FOLD_BYTES", step_bytes)
    feed = await opened(desk)
    for number in range(3):
        ask(feed, turn_id=f"t{number}")
        say(feed, "a", "🙂", turn_id=f"t{number}")
        end(feed, f"t{number}")
        await desk.commit(feed)
    ask(feed, turn_id="t3")
    await desk.commit(feed)
    say(feed, "b", turn_id="t3")
    ask(feed, turn_id="t4")
    snapshot = await feed.snapshot()
    assert (snapshot.seq, snapshot.turn.turn_id if snapshot.turn else "") == (14, "t3")
    assert [line.content for line in snapshot.messages] == ["hi", "a🙂"] * 3 + ["hi", "b"]


async def test_the_fold_of_what_was_erased_is_empty(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    end(feed)
    await desk.commit(feed)
    await desk.log.erase(KEY)
    assert (await feed.fold()).seq == 0


async def test_validity_of_cursors(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    end(feed)
    await desk.commit(feed)
    feed.stale = True
    ask(feed, turn_id="t2")
    await desk.commit(feed)
    say(feed, "a", turn_id="t2")
    epoch = feed.epoch
    ask(feed, turn_id="t3")
    table: list[tuple[tuple[int, int], bool]] = [
        ((0, 0), True), ((0, 9), True), ((1, 0), True), ((1, 1), False), ((2, 0), True), ((3, 0), False),
        ((3, epoch), True), ((4, epoch), True), ((5, epoch), False), ((99, epoch), False),
    ]  # fmt: skip
    assert [(at, await feed.is_valid(Position(*at))) for at, _ in table] == table
    assert feed.head() == Position(4, epoch)


# ---------------------------------------------------------------- the end of a conversation


async def test_the_end_waits_for_readers_and_not_for_ever(desk: Desk) -> None:
    feed = await opened(desk)
    await feed.end(60)
    assert feed.deleted
    reader, wakes = cursor(feed)
    await feed.end(0.001)
    ending = asyncio.create_task(feed.end(60))
    await asyncio.sleep(0)
    assert len(wakes) == 2
    reader.close()
    await ending


async def test_a_done_is_an_entry_like_others(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    end(feed)
    assert feed.open_turns == ()
    await desk.commit(feed)
    entries: list[Any] = await desk.log.read(KEY, 0, 1 << 20)
    assert isinstance(entries[-1], Done)


async def test_while_none_may_run_ahead_not_even_tokens_are_shown(desk: Desk) -> None:
    feed = await opened(desk)
    ask(feed)
    await desk.commit(feed)
    desk.runs_ahead = False
    say(feed, "a", "b")
    assert (feed.visible, feed.seq) == (1, 3)
    desk.runs_ahead = True
    await desk.commit(feed)
    say(feed, "c")
    assert feed.visible == 4


# ---------------------------------------------------------------- a log that lost its tail


async def test_what_the_log_lost_is_due_again_at_the_same_places(desk: Desk) -> None:
    feed = await opened(desk)
    reader, _ = cursor(feed)
    ask(feed)
    await desk.commit(feed)
    say(feed, "a", "b")
    await desk.commit(feed)
    say(feed, "c")
    del desk.log._entries[KEY][1:]
    desk.log._heads[KEY] = Head(1, 0, False, feed.open_turns)
    append = feed.take_append()
    assert append is not None
    assert append.after == Position(3, 0)
    assert feed.rewind(await desk.log.head(KEY))
    assert (feed.committed, feed.visible, feed.seq) == (1, 4, 4)
    assert await desk.commit(feed)
    assert [entry.seq for entry in await desk.log.read(KEY, 0, 1 << 20)] == [1, 2, 3, 4]
    made = reader.take()
    assert made is not None
    assert [frame.seq for frame in made.frames] == [1, 4]


async def test_a_log_that_lost_more_than_the_tail_holds_or_was_erased_isnt_written_again(desk: Desk) -> None:
    feed = await opened(desk)
    reader, _ = cursor(feed)
    ask(feed)
    say(feed, "a", "b")
    await desk.commit(feed)
    assert not feed.rewind(Head(3, 0))  # it has all
    assert not feed.rewind(Head(2, 7))  # somebody else's entries
    assert not feed.rewind(Head(0, 0, stale=True))  # it was erased
    feed._drop(2)
    assert not feed.rewind(Head(1, 0))
    reader.close()
