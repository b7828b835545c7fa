"""The pool: one session a conversation, gone when idle, back from the log, and the races around deletion."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
import structlog

from gateway.edge.reader import Reader
from gateway.logs import feed as feeds
from gateway.logs import writer as writers
from gateway.logs.log import Key, LogUnavailable, Position
from gateway.logs.memory import MemoryLog
from gateway.models.model import Finish
from gateway.sessions import deletion, leaving
from protocol.codes import Refusal
from protocol.frames import Done, Entry, Token
from tests.support.faults import FaultLog
from tests.support.node import KEY, Node, feeds_of, is_end, is_token, kinds, read, read_until, running_node, text
from tests.support.scripted import END, ScriptedModel, calls

OTHER = Key("0:/anonymous", "c2")
FOREVER = float("inf")


def short() -> ScriptedModel:
    return ScriptedModel([["x"], END])


def hanging() -> ScriptedModel:
    return ScriptedModel([["x"], asyncio.Event()])


async def idle(node: Node) -> None:
    while node.pool.running:
        await asyncio.sleep(0)


# ---------------------------------------------------------------- one session


async def test_a_question_about_nothing_beside_the_first_message() -> None:
    """Both wait for the same load. The one that finds nothing must not throw out what the other begins."""
    for order in (0, 1):
        async with running_node(short()) as node:
            commands: list[Any] = [node.pool.cancel(KEY, None), node.send("hi")]
            await asyncio.gather(*(commands if order else reversed(commands)))
            session = await node.pool.session(KEY)
            assert node.pool.sessions == 1
            assert session.feed.seq == session.fold.seq >= 1
            await node.ask("again")
            await idle(node)
            assert len([e for e in await node.entries() if is_end(e)]) == 2


async def test_a_session_that_was_just_loaded_isnt_idle() -> None:
    async with running_node(short()) as node:
        loading = asyncio.create_task(node.pool.session(KEY))
        while not node.pool.sessions:
            await asyncio.sleep(0)
        assert node.pool.evict(asyncio.get_running_loop().time() - 1) == 0
        assert await loading is await node.pool.session(KEY)


async def test_whoever_asks_for_nothing_leaves_nothing_behind() -> None:
    async with running_node(short()) as node:
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await node.pool.existing(KEY)
        node.pool.draining = True
        with pytest.raises(Refusal, match="OVERLOADED"):
            await node.send()
        await node.pool.delete(KEY)
        gc.collect()
        assert (node.pool.sessions, len(node.journal.feeds)) == (0, 0)


async def test_a_caller_that_leaves_costs_the_others_nothing() -> None:
    async with running_node(short()) as node:
        leaves, stays = (asyncio.create_task(node.pool.session(KEY)) for _ in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        assert (await stays).feed.key == KEY


# ---------------------------------------------------------------- limits


async def test_max_streams_and_draining() -> None:
    async with running_node(hanging(), max_streams=1) as node:
        _, first = await node.send(message_id="m1")
        with pytest.raises(Refusal, match="OVERLOADED"):
            await node.send(key=OTHER)
        assert (await node.send(message_id="m1"))[1].turn_id == first.turn_id
        await node.pool.cancel(KEY, None)
        await idle(node)
        node.pool.draining = True
        with pytest.raises(Refusal, match="about to stop") as refused:
            await node.send(key=OTHER)
        assert refused.value.retry_after_s
        assert (await node.send(message_id="m1"))[1].duplicate


# ---------------------------------------------------------------- eviction


async def test_an_evicted_conversation_comes_back_and_its_readers_go_on() -> None:
    async with running_node(short()) as node:
        session, done = await node.send("one")
        await read(session, done)
        await session.feed.when_committed(session.feed.seq)
        await idle(node)
        with Reader(feeds_of(session.feed), session.feed, session.feed.head(), 60) as reader:
            assert node.pool.evict(FOREVER) == 1
            assert node.pool.sessions == 0
            feed = session.feed
            del session
            session, done = await node.send("two")
            assert session.feed is feed
            frames: list[Entry] = []
            async with asyncio.timeout(10):
                async for made in reader.slices():
                    frames += made.frames
                    if frames and is_end(frames[-1]):
                        break
        assert kinds(frames) == ["message", "token", "done"]
        assert frames[0].seq == 4
        assert [line.content for line in session.fold.messages()] == ["one", "x", "two", "x"]


async def test_open_turns_and_what_isnt_written_are_activity() -> None:
    log = FaultLog()
    async with running_node(ScriptedModel([calls(("f", {}))], [asyncio.Event()]), log) as node:
        session, done = await node.send()
        await read_until(session, 0, lambda f: f.seq == 2)
        assert node.pool.evict(FOREVER) == 0, "a turn waits"
        log.gate.clear()
        session.cancel(done.turn_id)
        await idle(node)
        assert session.idle
        assert node.pool.evict(FOREVER) == 0, "its end isn't in the log yet"
        log.gate.set()
        await session.feed.when_committed(session.feed.seq)
        assert node.pool.evict(FOREVER) == 1


async def test_those_at_the_front_that_are_busy_dont_keep_the_others() -> None:
    async with running_node(ScriptedModel([asyncio.Event()], END, [["x"], END])) as node:
        await node.send("hangs")
        for number in range(3):
            await node.pool.session(Key("o", f"c{number}"))
        assert next(iter(node.pool.held)) == KEY
        assert node.pool.evict(FOREVER) == 3
        assert list(node.pool.held) == [KEY]


async def test_the_sweep_evicts_and_survives_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_node(short(), session_idle_s=0.05, retention_s=1) as node:
        with structlog.testing.capture_logs() as lines:
            monkeypatch.setattr(node.pool.deletion, "expire", lambda _: 1 / 0)
            await node.ask()
            async with asyncio.timeout(5):
                while node.pool.sessions or not lines:
                    await asyncio.sleep(0.01)
        assert "failed by a bug" in lines[0]["event"]


async def test_an_idle_pool_holds_no_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "IDLE_TAIL_S", 0.0)
    async with running_node(short()) as node:
        for number in range(20):
            await node.ask(key=Key("o", f"c{number}"))
        await idle(node)
        assert node.pool.evict(FOREVER) == 20
        await asyncio.sleep(0.02)
        gc.collect()
        assert len(node.journal.feeds) == 0


# ---------------------------------------------------------------- orphans


async def test_a_turn_isnt_orphaned_before_its_reader_can_come() -> None:
    async with running_node(hanging()) as node:
        session, done = await node.send()
        await node.pool.end_orphans(100.0, 0.0)
        assert session.fold.turns[done.turn_id].end is None
        with Reader(feeds_of(session.feed), session.feed, Position(0, 0), 60):
            await node.pool.end_orphans(101.0, 0.0)
        await node.pool.end_orphans(102.0, 5.0)
        await node.pool.end_orphans(106.0, 5.0)
        assert session.fold.turns[done.turn_id].end is None
        await node.pool.end_orphans(107.0, 5.0)
        assert isinstance(session.fold.turns[done.turn_id].end, Done)


# ---------------------------------------------------------------- deletion


async def test_deletion_ends_turns_tells_readers_and_erases() -> None:
    async with running_node(hanging()) as node:
        session, _ = await node.send("a")
        await node.send("b")
        await read_until(session, 0, is_token)
        frames: list[Entry] = []

        async def follow() -> None:
            with Reader(feeds_of(session.feed), session.feed, Position(0, 0), 60) as reader:
                async for made in reader.slices():
                    frames.extend(made.frames)

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await node.pool.delete(KEY)
        async with asyncio.timeout(5):
            await following
        ends = [frame for frame in frames if isinstance(frame, Done)]
        assert [end.finish_reason for end in ends] == ["cancelled", "cancelled"]
        assert session.feed.deleted
        assert await node.entries() == []
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await node.pool.existing(KEY)
        await idle(node)
        assert node.pool.sessions == 0


async def test_a_conversation_that_begins_anew_has_another_epoch() -> None:
    async with running_node(short()) as node:
        await node.ask()
        await node.pool.delete(KEY)
        before = int(time.time())
        frames = await node.ask("again")
        assert frames[0].seq == 1
        assert frames[0].epoch >= before > 0
        assert len(node.model.requests[-1].messages) == 1  # type: ignore[attr-defined]


async def test_two_deletions_at_once_dont_erase_what_begins_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "GRACE_S", 0.02)
    async with running_node(short()) as node:
        await node.ask()
        await idle(node)
        node.pool.evict(FOREVER)
        session = await node.pool.session(KEY)
        node.pool.evict(FOREVER)
        with Reader(feeds_of(session.feed), session.feed, Position(0, 0), 60):  # one that is stuck
            erased = 0
            erase = node.log.erase

            async def counting(key: Key) -> bool:
                nonlocal erased
                erased += 1
                return await erase(key)

            monkeypatch.setattr(node.log, "erase", counting)
            deletions = [asyncio.create_task(node.pool.delete(KEY)) for _ in range(3)]
            await asyncio.sleep(0)
            frames = await node.ask("again")
            await asyncio.gather(*deletions)
        assert erased == 1
        assert kinds(await node.entries()) == kinds(frames) == ["message", "token", "done"]


async def test_what_comes_during_a_deletion_waits_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "GRACE_S", 0.02)
    async with running_node(hanging()) as node:
        session, _ = await node.send("old")
        await read_until(session, 0, is_token)
        with Reader(feeds_of(session.feed), session.feed, Position(0, 0), 60):
            deleting = asyncio.create_task(node.pool.delete(KEY))
            while not session.feed.deleted:
                await asyncio.sleep(0)
            late = await node.journal.feeds.open(KEY)
            assert late is session.feed
            again, done = await node.send("new")
            assert again is not session
            assert again.feed is not session.feed
            await deleting
        assert again.fold.messages()[0].content == "new"
        assert (done.seq, session.fold.current()) == (1, None)


async def test_a_deletion_goes_on_when_its_caller_leaves() -> None:
    async with running_node(hanging()) as node:
        await node.send()
        caller = asyncio.create_task(node.pool.delete(KEY))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        await node.pool.delete(KEY)
        assert await node.entries() == []


async def test_a_deletion_that_the_log_refuses_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "WAIT_S", 0.05)
    monkeypatch.setattr(deletion, "RETRY_S", 0.01)
    async with running_node(short()) as node:
        await node.ask()
        erase, down = node.log.erase, asyncio.Event()

        async def not_yet(key: Key) -> bool:
            if not down.is_set():
                raise LogUnavailable("down")
            return await erase(key)

        monkeypatch.setattr(node.log, "erase", not_yet)
        with pytest.raises(Refusal, match="OVERLOADED"):
            await node.pool.delete(KEY)
        with pytest.raises(Refusal, match="OVERLOADED"):
            await node.pool.existing(KEY)
        down.set()
        await node.pool.delete(KEY)
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await node.pool.existing(KEY)
        assert kinds(await node.ask("anew")) == ["message", "token", "done"]


async def test_closing_doesnt_wait_for_a_deletion_that_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "CLOSE_WITHIN_S", 0.02)
    log = FaultLog()
    async with asyncio.timeout(10):
        async with running_node(hanging(), log) as node:
            session, done = await node.send()
            await session.feed.when_committed(done.seq)
            log.down = True
            deleting = asyncio.create_task(node.pool.delete(KEY))
            await asyncio.sleep(0.01)
        with pytest.raises((asyncio.CancelledError, Refusal)):
            await deleting


# ---------------------------------------------------------------- expiry


async def test_expired_conversations_go_and_their_readers_are_told() -> None:
    async with running_node(short()) as node:
        for key in (KEY, OTHER):
            await node.ask(key=key)
        await idle(node)
        session = await node.pool.session(KEY)
        with Reader(feeds_of(session.feed), session.feed, session.feed.head(), 60) as reader:
            await node.pool.deletion.expire(-10)
            async with asyncio.timeout(5):
                assert [made.frames async for made in reader.slices()] == [[]]
        assert (node.pool.sessions, session.feed.fenced, session.feed.deleted) == (0, True, True)
        assert await node.entries() == await node.entries(OTHER) == []
        frames = await node.ask("again")
        assert (frames[0].seq, frames[0].epoch > 0) == (1, True)


async def test_what_began_anew_during_an_expiry_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_node(short()) as node:
        await node.ask()
        await idle(node)
        session = await node.pool.session(KEY)
        old_feed = session.feed
        expire = node.log.expire

        async def slowly(before_ms: int, **options: Any) -> list[Key]:
            expired = await expire(before_ms, **options)
            # Its next command finds the feed fenced off, and the one after that begins the conversation anew.
            _, done = await node.send("lost")
            with pytest.raises(LogUnavailable):
                await old_feed.when_committed(done.seq)
            await node.ask("again")
            return expired

        monkeypatch.setattr(node.log, "expire", slowly)
        await node.pool.deletion.expire(-10)
        assert old_feed.fenced
        again = await node.pool.session(KEY)
        assert not again.feed.fenced
        assert again.fold.messages()[0].content == "again"
        assert kinds(await node.ask("and on")) == ["message", "token", "done"]


# ---------------------------------------------------------------- faults of the log


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "RETRY_FIRST_S", 0.002)
    monkeypatch.setattr(writers, "RETRY_MOST_S", 0.01)


@pytest.mark.usefixtures("_quick")
async def test_while_the_log_is_down_streams_go_on_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "FULL_BYTES", 20_000)
    go = asyncio.Event()
    pieces: list[Any] = [["y" * 100]] * 500
    log = FaultLog()
    async with running_node(ScriptedModel([["x"], go, *pieces, [Finish("stop")]]), log, token_timeout_s=0.2) as node:
        session, done = await node.send()
        await read_until(session, 0, is_token)
        await session.feed.when_committed(2)
        with structlog.testing.capture_logs():
            log.down = True
            go.set()
            while session.feed.has_room:
                await asyncio.sleep(0)
            stopped_at = session.feed.seq
            await asyncio.sleep(0.3)
            assert session.feed.seq == stopped_at, "upstream isn't read, and no time-out runs"
            assert session.feed.tail_bytes < 21_000
            with pytest.raises(Refusal, match="OVERLOADED"):
                await node.send("new", key=OTHER)
            log.down = False
            frames = await read(session, done)
        assert text(frames) == "x" + "y" * 50_000
        assert isinstance(frames[-1], Done)


async def test_a_conversation_that_cant_be_read_is_refused_and_then_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "IDLE_TAIL_S", 0.0)
    log = FaultLog()
    async with running_node(short(), log) as node:
        await node.ask()
        await idle(node)
        await asyncio.sleep(0.01)
        assert node.pool.evict(FOREVER) == 1
        log.down = True
        for _ in range(2):
            with pytest.raises(Refusal, match="OVERLOADED"):
                await node.send()
        log.down = False
        assert kinds(await node.ask()) == ["message", "token", "done"]


async def test_a_turn_whose_conversation_was_taken_away_stops_and_leaves_no_session() -> None:
    pieces: list[Any] = [["y"]] * 100_000
    async with running_node(ScriptedModel([["x"], *pieces, END], [["z"], END])) as node:
        session, _ = await node.send()
        await read_until(session, 0, is_token)
        await node.log.erase(KEY)  # as another node would
        await idle(node)
        assert session.feed.fenced
        assert node.pool.evict(FOREVER) == 0
        assert node.pool.sessions == 0
        assert text(await node.ask("again")) == "z"


async def test_a_waiting_turn_whose_conversation_was_taken_away() -> None:
    async with running_node(ScriptedModel([calls(("f", {}))], [["z"], END])) as node:
        session, _ = await node.send()
        await read_until(session, 0, lambda f: f.seq == 2)
        await node.send("queued")
        session.feed.refused()
        node.pool.evict(FOREVER)
        await idle(node)
        assert (node.pool.sessions, len(node.model.requests)) == (0, 1)  # type: ignore[attr-defined]


async def test_a_conversation_that_cant_be_taken_over_doesnt_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    async with running_node(hanging(), log) as node:
        for key in (KEY, OTHER):
            session, _ = await node.send(key=key)
            await read_until(session, 0, is_token)
            await session.feed.when_committed(session.feed.seq)
    read_entries = log.read

    async def broken(key: Key, after: int, limit_bytes: int) -> list[Entry]:
        if key == KEY:
            raise ValueError("not a segment")
        return await read_entries(key, after, limit_bytes)

    monkeypatch.setattr(log, "read", broken)
    with structlog.testing.capture_logs() as lines:
        async with running_node(short(), log) as node:
            await idle(node)
            feed = (await node.pool.session(OTHER)).feed
            await feed.when_committed(feed.seq)
            entries = await read_entries(OTHER, 0, 1 << 20)
    assert isinstance(entries[-1], Done)
    assert [line["conversation_id"] for line in lines if line["log_level"] == "error"] == [KEY.conversation_id]
    assert all(isinstance(entry, Token) for entry in entries[1:2])
