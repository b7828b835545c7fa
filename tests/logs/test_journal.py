"""The journal over a log that fails: nothing is lost, nothing is written twice, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from msgspec import structs

from gateway.logs import writer as writers
from gateway.logs.cursor import Cursor
from gateway.logs.feed import Feed
from gateway.logs.journal import Journal
from gateway.logs.log import Claim, Head, Key, LogUnavailable, Position
from gateway.logs.nodes import Follower, Handler
from protocol.frames import Token
from tests.support.faults import FaultLog, ask, asked, end, say

KEY, OTHER = Key("o", "c1"), Key("o", "c2")


@asynccontextmanager
async def running(log: FaultLog, **settings: Any) -> AsyncIterator[Journal]:
    await log.open()
    journal = Journal(log, **settings)
    journal.start()
    try:
        yield journal
    finally:
        log.gate.set()
        log.down = False
        await journal.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "RETRY_FIRST_S", 0.002)
    monkeypatch.setattr(writers, "RETRY_MOST_S", 0.01)


async def seqs(log: FaultLog, key: Key = KEY) -> list[int]:
    return [entry.seq for entry in await log.read(key, 0, 1 << 30)]


async def test_what_comes_in_one_turn_of_the_loop_shares_a_commit() -> None:
    log = FaultLog()
    async with running(log) as journal:
        feeds = [await journal.feeds.open(Key("o", f"c{i}")) for i in range(20)]
        for feed in feeds:
            ask(feed)
            say(feed, "a")
        await asyncio.gather(*(feed.when_committed(2) for feed in feeds))
        assert (journal.commits, journal.waiting) == (1, 0)


async def test_tokens_wait_a_little_and_never_for_ever() -> None:
    log = FaultLog()
    async with running(log, token_delay_s=0.02) as journal:
        feed = await asked(journal, KEY)
        for number in range(20):
            say(feed, "x")
            if number % 7 == 0:
                await asyncio.sleep(0)
        assert (feed.visible, feed.committed) == (21, 1)
        async with asyncio.timeout(5):
            await feed.when_committed(21)
        assert journal.commits == 2


async def test_what_comes_during_a_slow_commit_goes_with_the_next() -> None:
    log = FaultLog()
    async with running(log) as journal:
        feed = await journal.feeds.open(KEY)
        ask(feed)
        log.gate.clear()
        await log.asked.wait()
        say(feed, "a", "b")
        end(feed)
        other = await journal.feeds.open(OTHER)
        ask(other)
        assert (feed.visible, await seqs(log)) == (0, [])
        log.gate.set()
        await asyncio.gather(feed.when_committed(4), other.when_committed(1))
        assert (journal.commits, await seqs(log)) == (2, [1, 2, 3, 4])


async def test_tokens_wait_for_a_commit_that_takes_too_long() -> None:
    """What a crash then takes from readers is the text of a moment, however long the log hangs."""
    log = FaultLog()
    async with running(log, token_delay_s=0.001) as journal:
        feed, other = [await journal.feeds.open(key) for key in (KEY, OTHER)]
        ask(feed)
        await feed.when_committed(1)
        log.asked.clear()
        log.gate.clear()
        ask(other)
        say(feed, "at once")
        assert feed.visible == 2
        await log.asked.wait()
        say(feed, "while it hasn't been long")
        assert feed.visible == 3
        await asyncio.sleep(1.5 * writers.AHEAD_S)
        feed.append_text("t1", ["later"])
        say(feed, "still later")
        say(other, "an answer")
        assert (feed.visible, feed.seq, journal.available) == (3, 5, True)
        log.gate.set()
        await other.when_committed(1)
        assert (feed.visible, other.visible) == (3, 1), "what has waited isn't ahead of the log either"
        await feed.when_committed(5)
        say(feed, "at once again")
        assert feed.visible == 6


async def test_a_token_that_waited_for_one_commit_isnt_given_all_the_time_of_the_next() -> None:
    log = FaultLog()
    async with running(log, token_delay_s=0.001) as journal:
        feed = await asked(journal, KEY)
        log.asked.clear()
        log.gate.clear()
        say(feed, "of the first commit")
        await log.asked.wait()
        say(feed, "of the second")
        assert (feed.visible, feed.committed) == (3, 1)
        await asyncio.sleep(0.6 * writers.AHEAD_S)
        log.asked.clear()
        log.gate.set()
        log.gate.clear()  # lets go of the first only
        await log.asked.wait()
        await asyncio.sleep(0.6 * writers.AHEAD_S)
        say(feed, "later")
        assert (feed.visible, feed.committed) == (3, 2)


async def test_an_outage_is_buffered_and_said_once() -> None:
    log = FaultLog()
    with structlog.testing.capture_logs() as lines:
        async with running(log) as journal:
            feed = await journal.feeds.open(KEY)
            log.down = True
            ask(feed)
            while log.commits < 4:
                await asyncio.sleep(0.001)
            assert (journal.available, feed.visible) == (False, 0)
            say(feed, "a")
            log.down = False
            await feed.when_committed(2)
            assert (journal.available, feed.visible) == (True, 2)
            end(feed)
            await feed.when_committed(3)
            log.down = False
            assert await seqs(log) == [1, 2, 3]
    assert [line["event"] for line in lines] == [
        "log can't be written; buffering and trying again",
        "log can be written again",
    ]


async def test_a_commit_whose_answer_got_lost_isnt_written_twice() -> None:
    log = FaultLog()
    async with running(log) as journal:
        feed = await journal.feeds.open(KEY)
        log.lose_answer = True
        ask(feed)
        say(feed, "a")
        await feed.when_committed(2)
        assert (log.commits, await seqs(log), feed.fenced) == (2, [1, 2], False)


async def test_a_fenced_feed_is_forgotten_and_the_others_go_on() -> None:
    log = FaultLog()
    async with running(log) as journal:
        feed, other = await journal.feeds.open(KEY), await journal.feeds.open(OTHER)
        ask(feed)
        await feed.when_committed(1)
        await log.erase(KEY)
        end(feed)
        ask(other)
        with pytest.raises(LogUnavailable):
            await feed.when_committed(2)
        await other.when_committed(1)
        assert (feed.fenced, other.fenced) == (True, False)
        again = await journal.feeds.open(KEY)
        assert again is not feed
        assert (again.seq, again.stale) == (0, True)


async def test_an_append_that_cant_be_written_costs_only_its_own_conversation() -> None:
    log = FaultLog()
    log.poison = "poison"
    with structlog.testing.capture_logs() as lines:
        async with running(log) as journal:
            feed, other = await journal.feeds.open(KEY), await journal.feeds.open(OTHER)
            ask(feed, "poison")
            ask(other)
            await other.when_committed(1)
            with pytest.raises(LogUnavailable):
                await feed.when_committed(1)
            assert (feed.fenced, await seqs(log), await seqs(log, OTHER)) == (True, [], [1])
            end(other)
            await other.when_committed(2)
    assert [line["event"] for line in lines] == ["an append can't be written"]


async def test_a_feed_that_is_dropped_while_it_is_written() -> None:
    log = FaultLog()
    async with running(log) as journal:
        feed, other = await journal.feeds.open(KEY), await journal.feeds.open(OTHER)
        ask(feed)
        log.gate.clear()
        await log.asked.wait()
        feed.refused()
        log.gate.set()
        ask(other)
        await other.when_committed(1)
        assert feed.committed == 0


async def test_closing_writes_what_is_due() -> None:
    log = FaultLog()
    async with running(log, token_delay_s=60) as journal:
        feed = await asked(journal, KEY)
        say(feed, "a", "b")
    assert await seqs(log) == [1, 2, 3]


async def test_closing_doesnt_wait_for_a_log_that_is_gone() -> None:
    log = FaultLog()
    await log.open()
    journal = Journal(log)
    journal.start()
    feed = await journal.feeds.open(KEY)
    log.down = True
    ask(feed)
    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(5):
            await journal.close()
    assert lines[-1]["event"] == "stopping with entries that the log didn't take"


# ---------------------------------------------------------------- a log that nodes share


class Shared(FaultLog):
    """Loses what it is told to, and is asked whose a conversation is; `claiming` says how long that takes or raises."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[tuple[Key, str | None]] = []
        self.released: list[Key] = []
        self.claiming: Callable[[Key], Awaitable[None]] = self._at_once

    async def _at_once(self, key: Key) -> None: ...

    async def claim(self, key: Key, *, instead_of: str | None = None) -> Claim:
        self.claims.append((key, instead_of))
        await self.claiming(key)
        if instead_of == self.node_id:
            self._heads[key] = structs.replace(self._heads.get(key, Head()), stale=True)
        return Claim(await self.head(key), lost=instead_of is not None)

    async def release(self, key: Key) -> None:
        self.released.append(key)

    def lose(self, key: Key, count: int) -> None:
        """The end of a conversation."""
        entries = self._entries[key]
        del entries[-count:]
        self._heads[key] = Head(entries[-1].seq, entries[-1].epoch, open_turns=self._heads[key].open_turns)


class Others:
    """Other nodes, of which nothing is seen."""

    node_id = "me"
    on_lost: Callable[[str], None] | None = None
    on_away: Callable[[], None] | None = None

    async def open(self, handler: Handler) -> None: ...

    async def close(self) -> None: ...

    def __init__(self) -> None:
        self.followers: dict[Key, Follower] = {}

    async def follow(self, key: Key, follower: Follower) -> None:
        self.followers[key] = follower

    def unfollow(self, key: Key) -> None:
        self.followers.pop(key, None)

    async def followed(self, keys: Sequence[Key]) -> list[bool]:
        return [False] * len(keys)

    def is_lost(self, node_id: str) -> bool | None:
        return False

    def others(self) -> list[str]:
        return []

    async def request(self, node_id: str, payload: bytes, timeout_s: float) -> bytes:
        raise AssertionError("nobody is asked")


async def test_a_lost_tail_is_written_again_though_another_conversation_cant_be_asked_for() -> None:
    log, refused = Shared(), list[Feed]()
    async with running(log, nodes=Others()) as journal:
        journal.on_refused = refused.append
        feeds = [await journal.feeds.open(key) for key in (KEY, OTHER)]
        for feed in feeds:
            ask(feed)
            say(feed, "a", "b")
            await feed.when_committed(3)
            log.lose(feed.key, 2)
        slow = asyncio.Event()

        async def claiming(key: Key) -> None:
            if key == KEY:
                if log.claims.count((KEY, None)) == 1:
                    raise LogUnavailable("this server is down")
            elif log.claims.count((OTHER, None)) == 1:
                await slow.wait()

        log.claiming = claiming
        for feed in feeds:
            end(feed)
        async with asyncio.timeout(5):
            while log.claims.count((OTHER, None)) < 1:
                await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.02, slow.set)
            await asyncio.gather(*(feed.when_committed(4) for feed in feeds))
        assert refused == []
        assert [await seqs(log, key) for key in (KEY, OTHER)] == [[1, 2, 3, 4]] * 2
        assert log.claims.count((OTHER, None)) == 1


async def test_a_feed_that_was_given_up_while_it_was_written_takes_nothing_back() -> None:
    log = Shared()
    async with running(log, nodes=Others()) as journal:
        feed = await asked(journal, KEY)
        log.gate.clear()
        log.asked.clear()
        end(feed)
        await log.asked.wait()
        await log.erase(KEY)
        journal.feeds.give_up(feed)
        log.gate.set()
        other = await journal.feeds.open(OTHER)
        ask(other)
        await other.when_committed(1)
        assert log.claims == []


@pytest.mark.parametrize("follows", [True, False])
async def test_who_has_seen_what_the_log_lost_begins_a_new_epoch(follows: bool) -> None:
    log = Shared()
    async with running(log, nodes=Others()) as journal:
        writer = (await journal.feeds.own(KEY)).feed
        ask(writer)
        say(writer, "a", "b")
        await writer.when_committed(3)
        if follows:
            journal.feeds.forget(writer)
        seen = await journal.feeds.open(KEY)
        assert (seen.follows, seen.seq) == (follows, 3)
        log.lose(KEY, 2)
        feed, lost = await journal.feeds.own(KEY)
        assert (seen.fenced, feed.fenced, feed.seq, lost) == (True, False, 1, True)
        end(feed)
        await feed.when_committed(2)
        assert feed.epoch > 0


async def test_who_owned_all_the_time_goes_on() -> None:
    log = Shared()
    async with running(log, nodes=Others()) as journal:
        writer = (await journal.feeds.own(KEY)).feed
        ask(writer)
        await writer.when_committed(1)
        feed, lost = await journal.feeds.own(KEY)
        assert feed is writer
        assert (feed.stale, lost) == (False, False)


async def test_what_cant_be_followed_from_now_on_is_released_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    log, others = Shared(), Others()

    async def broken(key: Key, follower: Follower) -> None:
        raise LogUnavailable("no line to this server")

    async with running(log, nodes=others) as journal:
        feed = (await journal.feeds.own(KEY)).feed
        Cursor(feed, Position(0, 0), lambda: None)
        monkeypatch.setattr(others, "follow", broken)
        journal.feeds.release(feed)
        await journal.feeds.released()
        assert log.released == [KEY]
        assert feed.fenced, "its readers open it anew, when that can be"


async def test_closing_ends_what_reads_on_in_a_log_that_is_down() -> None:
    log, others = Shared(), Others()
    await log.open()
    journal = Journal(log, others)
    journal.start()
    feed = await journal.feeds.open(KEY)
    ask((await journal.feeds.own(OTHER)).feed)
    feed.seq = feed.committed = 1
    log.down = True
    others.followers[KEY].missed()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await journal.close()
    assert (feed.follows, others.followers) == (True, {})
    assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


# ---------------------------------------------------------------- feeds


async def test_openers_share_a_feed_that_lives_as_long_as_somebody_holds_it() -> None:
    log = FaultLog()
    async with running(log) as journal:
        one, two = await asyncio.gather(journal.feeds.open(KEY), journal.feeds.open(KEY))
        assert one is two is journal.feeds.known(KEY)
        ask(one)
        say(one, "a")
        await one.when_committed(2)
        del one, two
        gc.collect()
        assert journal.feeds.known(KEY) is None
        assert (await journal.feeds.open(KEY)).seq == 2


async def test_unwritten_entries_keep_their_feed_alive() -> None:
    log = FaultLog()
    async with running(log) as journal:
        ask(await journal.feeds.open(KEY))
        gc.collect()
        feed = journal.feeds.known(KEY)
        assert feed is not None
        await feed.when_committed(1)


async def test_an_opener_that_leaves_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = FaultLog()
    gate = asyncio.Event()

    async def slow_head(key: Key) -> Head:
        await gate.wait()
        log._check_up()
        return Head()

    monkeypatch.setattr(log, "head", slow_head)
    async with running(log) as journal:
        left = asyncio.create_task(journal.feeds.open(KEY))
        stays = asyncio.create_task(journal.feeds.open(KEY))
        await asyncio.sleep(0)
        left.cancel()
        gate.set()
        assert isinstance(await stays, Feed)
        # A failure that nobody waits for any more is no warning either.
        gate.clear()
        log.down = True
        left = asyncio.create_task(journal.feeds.open(OTHER))
        await asyncio.sleep(0)
        left.cancel()
        gate.set()
        await asyncio.sleep(0.01)
        gc.collect()
        log.down = False
        assert (await journal.feeds.open(OTHER)).seq == 0


async def test_many_feeds_over_a_flapping_log_lose_and_double_nothing() -> None:
    log = FaultLog()
    async with running(log, token_delay_s=0.001) as journal:
        feeds = [await journal.feeds.open(Key("o", f"c{i}")) for i in range(10)]

        async def write(feed: Feed) -> None:
            for number in range(30):
                turn = f"t{number}"
                ask(feed, turn_id=turn)
                say(feed, "a", "b", turn_id=turn)
                await asyncio.sleep(0)
                end(feed, turn)
                if number % 5 == 0:
                    await feed.when_committed(feed.seq)

        async def flap() -> None:
            while True:
                log.down = not log.down
                log.lose_answer = not log.down
                await asyncio.sleep(0.003)

        with structlog.testing.capture_logs():
            flapping = asyncio.create_task(flap())
            async with asyncio.timeout(20):
                await asyncio.gather(*map(write, feeds))
            flapping.cancel()
            await asyncio.wait([flapping])
            log.down = log.lose_answer = False
            await asyncio.gather(*(feed.when_committed(feed.seq) for feed in feeds))
        for feed in feeds:
            entries = await log.read(feed.key, 0, 1 << 30)
            assert [entry.seq for entry in entries] == list(range(1, 121))
            assert sum(isinstance(entry, Token) for entry in entries) == 60
            assert not feed.fenced
