"""A feed that follows another node: what continues it, what doesn't, and that it ends level with the log."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.logs import following as followings
from gateway.logs.cursor import Cursor
from gateway.logs.feed import Feed
from gateway.logs.following import Following, Place, level, placed
from gateway.logs.log import Append, Head, Key, LogUnavailable, OpenTurn, Position
from protocol.frames import Entry, Message, Metadata, Token
from tests.support.faults import FaultLog

KEY = Key("o", "c")


class Desk:
    available = runs_ahead = True

    def __init__(self, log: FaultLog) -> None:
        self.log = log

    def due(self, feed: Feed, *, urgent: bool) -> None:
        raise AssertionError("a follower writes nothing")


def token(seq: int, epoch: int = 0) -> Entry:
    return Token(
        conversation_id="c", turn_id="t", seq=seq, epoch=epoch, metadata=Metadata(1), content=f"{seq}.{epoch} "
    )


def tokens(first: int, last: int, epoch: int = 0) -> list[Entry]:
    return [token(seq, epoch) for seq in range(first, last + 1)]


def ask(seq: int = 1) -> Entry:
    return Message(conversation_id="c", turn_id="t", seq=seq, metadata=Metadata(1), content="hi", message_id="m")


def followed(log: FaultLog, seq: int = 0, epoch: int = 0) -> Feed:
    feed = Feed(KEY, Head(seq, epoch), Desk(log))
    feed.follows = True
    return feed


class Followed:
    """A log with another node that appends, and a feed that follows it."""

    def __init__(self, feed: Feed | None, log: FaultLog) -> None:
        self.feed, self.log = feed, log
        self.given_up: list[Feed] = []
        self.following = Following(KEY, log, lambda: self.feed, self._give_up, set())

    def _give_up(self, feed: Feed) -> None:
        self.given_up.append(feed)
        feed.refused()

    async def append(self, after: Position, entries: list[Entry], *, push: bool = True) -> None:
        assert await self.log.commit([Append(KEY, after, entries)]) == [True]
        if push:
            self.following.received(after, entries)


@pytest.fixture
async def log() -> FaultLog:
    log = FaultLog()
    await log.open()
    return log


@pytest.mark.parametrize(
    ("seq", "epoch", "after", "entries", "place"),
    [
        (0, 0, (0, 0), tokens(1, 3), Place.NEXT),
        (0, 0, (2, 0), tokens(3, 3), Place.GAP),
        (5, 0, (5, 0), tokens(6, 7), Place.NEXT),
        (5, 0, (5, 0), tokens(6, 7, 9), Place.NEXT),
        (5, 0, (6, 0), tokens(7, 8), Place.GAP),
        (5, 0, (3, 0), tokens(4, 7), Place.NEXT),
        (5, 0, (3, 0), tokens(4, 5), Place.KNOWN),
        (5, 0, (1, 0), tokens(2, 3), Place.KNOWN),
        # The tail was lost, and somebody wrote something else.
        (5, 0, (3, 0), tokens(4, 4, 9), Place.ELSEWHERE),
        (5, 0, (3, 0), tokens(4, 5, 9), Place.ELSEWHERE),
        (5, 0, (3, 0), tokens(4, 9, 9), Place.ELSEWHERE),
        (5, 7, (5, 9), tokens(6, 6, 9), Place.ELSEWHERE),
        (5, 7, (3, 7), tokens(4, 5, 7), Place.KNOWN),
    ],
)
async def test_what_continues_a_feed(
    log: FaultLog, seq: int, epoch: int, after: tuple[int, int], entries: list[Entry], place: Place
) -> None:
    assert placed(followed(log, seq, epoch), Position(*after), entries) is place


async def test_pushed_entries_are_seen_once_and_wake_readers_and_waiters(log: FaultLog) -> None:
    both = Followed(followed(log), log)
    assert both.feed is not None
    wakes: list[int] = []
    cursor = Cursor(both.feed, Position(0, 0), lambda: wakes.append(1))
    waiting = asyncio.create_task(both.feed.when_committed(3))
    await asyncio.sleep(0)
    await both.append(Position(0, 0), [ask(), *tokens(2, 3)])
    both.following.received(Position(0, 0), [ask(), *tokens(2, 3)])
    await waiting
    made = cursor.take()
    assert made is not None
    assert [frame.seq for frame in made.frames] == [1, 3]
    assert (wakes, both.given_up) == ([1], [])
    assert [turn.turn_id for turn in both.feed.open_turns] == ["t"]


async def test_a_gap_is_read_from_the_log_however_long_that_is_down(
    log: FaultLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followings, "RETRY_S", 0.005)
    both = Followed(followed(log), log)
    await both.append(Position(0, 0), [ask(), *tokens(2, 3)], push=False)
    log.down = True
    both.following.received(Position(3, 0), tokens(4, 4))
    await asyncio.sleep(0.02)
    assert both.feed is not None
    assert both.feed.seq == 0
    log.down = False
    await both.append(Position(3, 0), tokens(4, 4), push=False)
    async with asyncio.timeout(5):
        await both.feed.when_committed(4)
    assert both.given_up == []


async def test_what_was_pushed_before_the_feed_was_there_is_read(log: FaultLog) -> None:
    both = Followed(None, log)
    await both.append(Position(0, 0), [ask(), *tokens(2, 3)])
    both.feed = followed(log)
    both.following.feed_made()
    async with asyncio.timeout(5):
        await both.feed.when_committed(3)


@pytest.mark.parametrize("fate", ["erased", "lost", "lost whole"])
async def test_a_log_that_hasnt_what_the_feed_has(log: FaultLog, fate: str) -> None:
    both = Followed(followed(log), log)
    assert both.feed is not None
    await both.append(Position(0, 0), [ask(), *tokens(2, 3)])
    if fate == "erased":
        await log.erase(KEY)
    else:
        log._heads.clear()
        log._entries.clear()
    if fate == "lost whole":  # and noticed by the engine, which begins in a new epoch
        log._heads[KEY] = Head(0, 1_800_000_000, stale=True)
    both.following.missed()
    async with asyncio.timeout(5):
        while not both.given_up:
            await asyncio.sleep(0)
    assert both.feed.deleted is (fate == "erased")
    assert both.feed.fenced


async def test_an_erased_conversation_ends_for_its_followers(log: FaultLog) -> None:
    both = Followed(followed(log, 3), log)
    both.following.erased()
    assert both.feed is not None
    assert (both.feed.deleted, both.given_up) == (True, [both.feed])


async def test_what_began_anew_while_it_was_read_isnt_mixed_with_what_was_there(log: FaultLog) -> None:
    both = Followed(followed(log), log)
    await both.append(Position(0, 0), [ask()], push=False)
    both.feed = followed(log, 1)
    both.feed.open_turns = (OpenTurn("t", 1),)
    await both.append(Position(1, 0), tokens(2, 5))
    assert (await both.feed.fold()).seq == 5
    await log.erase(KEY)
    again = structs.replace(ask(), epoch=9, turn_id="again")
    assert await log.commit([Append(KEY, Position(0, 0), [again])]) == [True]
    with pytest.raises(LogUnavailable):
        await both.feed.fold()


@given(st.lists(st.sampled_from(["push", "lose", "repeat", "cut"]), max_size=30), st.randoms())
def test_whatever_gets_lost_or_comes_twice_it_ends_level(steps: list[str], rng: random.Random) -> None:
    async def run() -> None:
        log = FaultLog()
        await log.open()
        both = Followed(followed(log), log)
        assert both.feed is not None
        await both.append(Position(0, 0), [ask()])
        seq, pushed = 1, [(Position(0, 0), [ask()])]
        for step in steps:
            if step == "cut":
                both.following.missed()
            elif step == "repeat":
                both.following.received(*rng.choice(pushed))
            else:
                after, entries = Position(seq, 0), tokens(seq + 1, seq + rng.randint(1, 4))
                await both.append(after, entries, push=step == "push")
                seq = entries[-1].seq
                pushed.append((after, entries))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        both.following.missed()
        async with asyncio.timeout(5):
            await both.feed.when_committed(seq)
        assert [entry.seq for entry in both.feed.tail] == list(range(both.feed.tail_start + 1, seq + 1))
        assert await level(both.feed, log)
        assert both.given_up == []

    asyncio.run(run())
