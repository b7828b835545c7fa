"""Several nodes in one process over a real Valkey: who owns a conversation, and what comes of losing it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Any

import pytest
from msgspec import UNSET

from gateway.edge.reader import Reader
from gateway.logs import membership
from gateway.logs.feed import Feed
from gateway.logs.feeds import Elsewhere
from gateway.logs.following import Following
from gateway.logs.log import Claim, Key, Position
from gateway.logs.opening import open_log, open_nodes
from gateway.logs.redis_link import Call
from gateway.logs.redis_log import RedisLog
from gateway.logs.redis_nodes import RedisNodes
from gateway.models.model import Model
from gateway.sessions import router as routers
from gateway.sessions import takeover
from protocol.codes import Refusal
from protocol.frames import ChatMessage, Done, Entry, Error, Restart, Snapshot
from tests.support.node import KEY, Node, feeds_of, is_call, is_end, is_token, kinds, text
from tests.support.scripted import END, ScriptedModel, calls
from tests.support.valkey import Valkey

BEGINNING = Position(0, 0)

Start = Callable[..., Awaitable[Node]]


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LEASE_S", 1.5)


@pytest.fixture
async def start(redis_server: Valkey) -> AsyncIterator[Start]:
    """Starts nodes that share a log; `stop(node)` ends one in an orderly way, `die(node)` without a word."""
    prefix = token_hex(6)
    async with AsyncExitStack() as stack:

        async def start(model: Model, *, takes_over: bool = True, **settings: Any) -> Node:
            log = open_log(f"{redis_server.url}?prefix={prefix}", retention_s=3600)
            node = Node(log, model, nodes=open_nodes(log), **settings)
            await log.open()
            stack.push_async_callback(log.close)
            await node.journal.nodes.open(node.router.serve)
            stack.push_async_callback(node.journal.nodes.close)
            node.journal.start()
            stack.push_async_callback(node.journal.close)
            if takes_over:
                await node.pool.start()
            stack.push_async_callback(node.pool.close)
            return node

        yield start


async def frames_until(
    node: Node, last: Callable[[Entry], bool], after: Position = BEGINNING, key: Key = KEY, timeout_s: float = 15
) -> list[Entry | Snapshot]:
    """What a reader on that node sees, up to and with the first frame that `last` accepts, or a snapshot without an
    open turn; checks the order."""
    feed = await node.router.feed(key)
    seen: list[Entry | Snapshot] = []
    at = after.seq
    async with asyncio.timeout(timeout_s):
        with Reader(feeds_of(feed), feed, after, 60) as reader:
            async for made in reader.slices():
                if isinstance(made, Snapshot):
                    seen.append(made)
                    at = made.seq
                    if made.turn is None:
                        return seen
                    continue
                for frame in made.frames:
                    assert (getattr(frame, "first_seq", None) or frame.seq) == at + 1
                    at = frame.seq
                    seen.append(frame)
                    if last(frame):
                        return seen
    raise AssertionError(f"the conversation ended after {seen}")


async def say(node: Node, message: str = "hi", key: Key = KEY, **fields: Any) -> tuple[Feed, Any]:
    return await node.router.submit(key, ChatMessage(message=message, **fields))


def entries_only(frames: list[Entry | Snapshot]) -> list[Entry]:
    assert not any(isinstance(frame, Snapshot) for frame in frames), frames
    return [frame for frame in frames if not isinstance(frame, Snapshot)]


async def die(node: Node) -> None:
    """Others don't see it any more; it doesn't know, as after SIGSTOP and SIGCONT."""
    nodes = node.journal.nodes
    assert isinstance(nodes, RedisNodes)
    beats, nodes._beats = nodes._beats, None
    assert beats is not None
    beats.cancel()
    await asyncio.wait([beats])


async def finds_lost(one: Node, other: Node) -> None:
    async with asyncio.timeout(10):
        while not one.journal.nodes.is_lost(other.log.node_id):
            await asyncio.sleep(0.02)


def revive(node: Node) -> None:
    """Undoes `die`."""
    nodes = node.journal.nodes
    assert isinstance(nodes, RedisNodes)
    nodes._beats = asyncio.create_task(nodes._keep_beating())


async def lose_last(node: Node, key: Key, entries: list[Entry | Snapshot]) -> None:
    """What a failover to a replica that was an append behind does to a conversation whose last append was a `done`."""
    log, end = node.log, entries[-1]
    assert isinstance(log, RedisLog)
    assert isinstance(end, Done)
    place = log._opened().place(key)
    names = log.link.names

    async def run(*command: bytes | str | int) -> Any:
        return await log.link.call(Call(place.slot, None, [], list(command)))

    [[last, _], [before, _]] = await run("XREVRANGE", place.log, "+", "-", "COUNT", 2)
    await run("XDEL", place.log, last)
    await run("HSET", place.meta, "f", f"{before.decode()} {log.node_id}+", f"t:{end.turn_id}", 1, "n", 1)
    await run("HSET", names.open(place.partition), place.member, log.node_id)
    await run("HSET", names.owners(place.partition), log.node_id, 1)


async def knows(one: Node, other: Node) -> None:
    async with asyncio.timeout(5):
        while other.log.node_id not in one.journal.nodes.others():
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------- following


async def test_what_one_node_writes_is_read_on_another(start: Start) -> None:
    gate = asyncio.Event()
    one, two = await start(ScriptedModel([["a"], ["b"], gate, ["c"], END])), await start(ScriptedModel([END]))
    reading = asyncio.create_task(frames_until(two, is_end))
    await asyncio.sleep(0.05)
    await say(one)
    await asyncio.sleep(0.05)
    gate.set()
    seen = entries_only(await reading)
    assert kinds(seen) == ["message", "token", "done"]
    assert text(seen) == "abc"
    late = entries_only(await frames_until(two, is_end))
    assert text(late) == "abc"


async def test_who_attaches_sees_all_that_the_log_has_however_late_it_is_pushed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await start(ScriptedModel([["a"], asyncio.Event()])), await start(ScriptedModel([END]))
    reading = await two.router.feed(KEY)
    monkeypatch.setattr(Following, "received", lambda *_: None)
    _, done = await say(one)
    await (await one.router.feed(KEY)).when_committed(done.seq)
    feed, turn = await two.router.attach(KEY)
    assert feed is reading
    assert turn is not None
    assert turn.turn_id == done.turn_id
    assert await feed.is_valid(Position(done.seq, 0))


async def test_commands_find_the_owner(start: Start) -> None:
    one = await start(ScriptedModel([calls(("f", {"x": 1}))], [["thanks"], END], [["x"], asyncio.Event()]))
    two = await start(ScriptedModel([END]))
    await say(one)
    seen = entries_only(await frames_until(two, is_call))
    call = seen[-1]
    await two.router.answer(KEY, call.call_id, {"y": 2}, error=UNSET)  # type: ignore[union-attr]
    await two.router.answer(KEY, call.call_id, {"y": 2}, error=UNSET)  # type: ignore[union-attr]
    with pytest.raises(Refusal, match="CALL_CLOSED"):
        await two.router.answer(KEY, call.call_id, {"y": 3}, error=UNSET)  # type: ignore[union-attr]
    await frames_until(two, is_end)
    feed, done = await say(two, "again", message_id="m2")
    assert (await say(two, "again", message_id="m2"))[1] == done._replace(duplicate=True)
    assert (await say(one, "again", message_id="m2"))[1] == done._replace(duplicate=True)
    assert one.pool.sessions == 1
    assert two.pool.sessions == 0
    await frames_until(two, is_token, Position(done.seq - 1, -1))
    stopped = await two.router.cancel(KEY, None)
    assert stopped == ("stopped", done.turn_id, 0)
    ended = await frames_until(two, is_end, Position(done.seq - 1, -1))
    assert isinstance(ended[-1], Done)
    assert ended[-1].finish_reason == "cancelled"
    with pytest.raises(Elsewhere):
        await two.pool.session(KEY)
    assert feed.follows


async def test_two_nodes_asked_at_once_start_one_turn(start: Start) -> None:
    nodes = [await start(ScriptedModel([["a"], END])) for _ in range(2)]
    for number in range(20):
        key = Key("o", f"c{number}")
        answers = await asyncio.gather(*(say(node, "hi", key, message_id="m") for node in nodes))
        assert answers[0][1].seq == answers[1][1].seq == 1
        assert answers[0][1].turn_id == answers[1][1].turn_id
        assert sorted(done.duplicate for _, done in answers) == [False, True]
        both = [entries_only(await frames_until(node, is_end, key=key)) for node in nodes]
        assert kinds(both[0]) == kinds(both[1]) == ["message", "token", "done"]
    assert sum(len(node.model.requests) for node in nodes) == 20  # type: ignore[attr-defined]


async def test_deleting_reaches_the_owner_and_all_readers(start: Start) -> None:
    one, two = await start(ScriptedModel([["a"], asyncio.Event()])), await start(ScriptedModel([END]))
    await say(one)
    reading = asyncio.create_task(frames_until(two, lambda _: False))
    await frames_until(two, is_token)
    await two.router.delete(KEY)
    with pytest.raises(AssertionError, match="ended after") as ended:
        await reading
    assert "cancelled" in str(ended.value)
    with pytest.raises(Refusal, match="NOT_FOUND"):
        await two.router.attach(KEY)
    await two.router.delete(KEY)
    _, done = await say(two)
    assert done.seq == 1
    assert (await frames_until(one, is_end))[0].epoch > 0


@pytest.mark.parametrize("messages", [0, 1, 3])
async def test_a_message_whose_conversation_is_deleted_before_its_sender_hears_of_it(
    start: Start, monkeypatch: pytest.MonkeyPatch, messages: int
) -> None:
    one, two = await start(ScriptedModel([["a"], END])), await start(ScriptedModel([END]))
    for _ in range(2):
        await say(one)
    feed = two.router.feed

    async def late(key: Key) -> Feed:
        await one.router.delete(key)
        for _ in range(messages):
            found, done = await say(one)
            await found.when_committed(done.seq)
        return await feed(key)

    monkeypatch.setattr(two.router, "feed", late)
    with pytest.raises(Refusal, match="OVERLOADED"):
        await say(two, message_id="m")


async def test_who_was_frozen_over_a_deletion_erases_nothing_that_came_after(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await start(ScriptedModel([["a"], END])), await start(ScriptedModel([["b"], END]))
    await say(one)
    await frames_until(one, is_end)
    erase, frozen, thawed = one.log.erase, asyncio.Event(), asyncio.Event()

    async def later(key: Key) -> bool:
        frozen.set()
        await thawed.wait()
        return await erase(key)

    monkeypatch.setattr(one.log, "erase", later)
    deleting = asyncio.create_task(one.router.delete(KEY))
    await frozen.wait()
    await knows(two, one)
    await die(one)
    await finds_lost(two, one)
    _, done = await say(two, "and then?")
    await frames_until(two, is_end, Position(done.seq - 1, -1))
    thawed.set()
    with pytest.raises(Refusal, match="OVERLOADED"):
        await deleting
    assert text(await two.entries()) == "ab"


async def test_a_deletion_that_was_asked_of_a_frozen_node_is_the_new_owners(start: Start) -> None:
    one, two = await start(ScriptedModel([["a"], END])), await start(ScriptedModel([["b"], END]))
    await say(one)
    await frames_until(one, is_end)
    await knows(two, one)
    await die(one)
    await finds_lost(two, one)
    _, done = await say(two, "and then?")
    await frames_until(two, is_end, Position(done.seq - 1, -1))
    reading = asyncio.create_task(frames_until(one, lambda _: False))
    with pytest.raises(Elsewhere):
        await one.pool.delete(KEY)
    assert text(await two.entries()) == "ab"
    await one.router.delete(KEY)
    assert await two.entries() == []
    with pytest.raises(AssertionError, match="ended after"):
        await reading


# ---------------------------------------------------------------- handing over


async def test_an_evicted_conversation_is_anybodys(start: Start) -> None:
    one = await start(ScriptedModel([["a"], END]), session_idle_s=0.1)
    two = await start(ScriptedModel([["b"], END]))
    await say(one)
    await frames_until(one, is_end)
    reading = asyncio.create_task(frames_until(one, lambda frame: is_end(frame) and frame.seq > 3))
    async with asyncio.timeout(10):
        while one.pool.sessions:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.05)
    _, done = await say(two)
    assert two.pool.sessions == 1
    seen = entries_only(await reading)
    assert text(seen) == "ab"
    assert {frame.epoch for frame in seen} == {0}
    assert done.seq == 4


async def test_a_node_that_drains_hands_its_turns_on_without_spending_an_attempt(start: Start) -> None:
    one = await start(ScriptedModel([["lost "], asyncio.Event()]))
    await say(one)
    two = await start(ScriptedModel([["whole"], END]))
    await knows(one, two)
    await frames_until(two, is_token)
    reading = asyncio.create_task(frames_until(two, is_end))
    await one.router.drain(0)
    seen = entries_only(await reading)
    assert kinds(seen) == ["message", "token", "restart", "token", "done"]
    restart = next(frame for frame in seen if isinstance(frame, Restart))
    assert (restart.attempt, restart.keep_seq) == (0, 1)
    assert {frame.epoch for frame in seen} == {0}
    # Whoever still asks here is served by the other one.
    feed, done = await one.router.submit(Key("o", "new"), ChatMessage(message="hi"))
    assert (feed.follows, done.seq) == (True, 1)
    await two.journal.nodes.close()
    await one.router.journal.nodes.close()
    with pytest.raises(Refusal, match="about to stop"):
        await one.router.submit(Key("o", "newer"), ChatMessage(message="hi"))


async def test_what_ends_while_a_node_drains_is_anybodys_at_once(start: Start) -> None:
    """Other turns that still run there hold up nobody, neither the next question nor one that waits already."""
    gate, long = asyncio.Event(), asyncio.Event()
    one = await start(ScriptedModel([["a"], gate, END], [["slow"], long, END]))
    two = await start(ScriptedModel([["b"], END], [["c"], END]))
    await say(one)
    await frames_until(one, is_token)
    await one.router.submit(Key("o", "slow"), ChatMessage(message="hi"))
    await knows(one, two)
    await knows(two, one)
    draining = asyncio.create_task(one.router.drain(10))
    await asyncio.sleep(0.05)
    _, waits = await say(one, "and then?")
    gate.set()
    async with asyncio.timeout(5):
        await frames_until(two, lambda frame: isinstance(frame, Done) and frame.turn_id == waits.turn_id)
        _, done = await say(one, "and now?")
        seen = await frames_until(two, lambda frame: isinstance(frame, Done) and frame.turn_id == done.turn_id)
    assert text(entries_only(seen)) == "abc"
    assert not any(isinstance(frame, Restart) for frame in seen), "what waits has nothing to take back"
    assert not draining.done()
    long.set()
    await draining


async def test_what_a_node_that_left_could_hand_to_nobody_is_found(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "FIRST_LOOK_S", 60)
    one = await start(ScriptedModel([["lost "], asyncio.Event()]))
    two = await start(ScriptedModel([["whole"], END]))
    await say(one)
    await knows(two, one)
    await frames_until(two, is_token)
    reading = asyncio.create_task(frames_until(two, is_end, timeout_s=5))
    monkeypatch.setattr(one.journal.nodes, "others", list)
    await one.router.drain(0)
    await one.journal.nodes.close()
    seen = entries_only(await reading)
    assert [frame.attempt for frame in seen if isinstance(frame, Restart)] == [0]


async def test_behind_a_running_turn_a_message_is_taken_while_its_node_drains(start: Start) -> None:
    gate = asyncio.Event()
    one = await start(ScriptedModel([["a"], gate, END]))
    two = await start(ScriptedModel([["b"], END]))
    await say(one)
    await knows(one, two)
    await frames_until(two, is_token)
    draining = asyncio.create_task(one.router.drain(10))
    await asyncio.sleep(0.05)
    _, done = await say(two, "and then?")
    gate.set()
    await draining
    seen = entries_only(
        await frames_until(two, lambda frame: isinstance(frame, Done | Error) and frame.turn_id == done.turn_id)
    )
    assert text(seen) == "ab"
    assert all(isinstance(frame, Done) for frame in seen if is_end(frame))


async def test_what_has_come_to_rest_on_a_node_that_drains_goes_on_elsewhere_at_once(start: Start) -> None:
    """Though the node takes its time for others: here one that hangs."""
    gate = asyncio.Event()
    one = await start(ScriptedModel([["hangs"], asyncio.Event()], [["a"], gate, END]))
    two = await start(ScriptedModel([["b"], END], [["c"], END]))
    await say(one, key=Key("o", "other"))
    await frames_until(two, is_token, key=Key("o", "other"))
    await say(one)
    await frames_until(two, is_token)
    await say(one, "queued")
    await knows(one, two)
    draining = asyncio.create_task(one.router.drain(30))
    await asyncio.sleep(0.05)
    gate.set()

    def ended(count: int) -> Callable[[Entry], bool]:
        ends: list[Entry] = []
        return lambda frame: is_end(frame) and (ends.append(frame), len(ends) == count)[1]  # type: ignore[func-returns-value]

    assert text(entries_only(await frames_until(two, ended(2), timeout_s=5))) == "ab"
    async with asyncio.timeout(5):
        await say(two, "once more")
        assert text(entries_only(await frames_until(two, ended(3)))) == "abc"
    assert not draining.done()
    draining.cancel()


async def test_whom_a_draining_node_refuses_the_next_owner_serves(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    one, two = await start(ScriptedModel([["a"], gate, END])), await start(ScriptedModel([["b"], END]))
    await say(one)
    await frames_until(two, is_token)
    commit, written = one.log.commit, asyncio.Event()

    async def slow(batch: Any) -> list[bool]:
        await written.wait()
        return await commit(batch)

    draining = asyncio.create_task(one.router.drain(10))
    monkeypatch.setattr(one.log, "commit", slow)
    gate.set()
    while one.pool.running:
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.2, written.set)
    _, done = await say(two, "and then?")
    await draining
    assert text(entries_only(await frames_until(two, lambda frame: is_end(frame) and frame.seq > done.seq))) == "ab"


async def test_a_draining_node_finds_the_owner_among_many(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = [await start(ScriptedModel([["a"], END])) for _ in range(3)]
    await say(three)
    await frames_until(three, is_end)
    await knows(one, two)
    await knows(one, three)
    one.pool.draining = True
    asked = 0

    def always_two(_: object) -> str:
        nonlocal asked
        asked += 1
        return two.log.node_id

    monkeypatch.setattr(routers.random, "choice", always_two)
    async with asyncio.timeout(5):
        await say(one)
    assert (asked, three.pool.sessions) == (1, 1)


async def test_a_turn_that_waits_for_its_client_is_handed_over_first(start: Start) -> None:
    one = await start(ScriptedModel([["hangs"], asyncio.Event()], [calls(("f", {}))]))
    two = await start(ScriptedModel([["thanks"], END]))
    await say(one, key=Key("o", "other"))
    await frames_until(two, is_token, key=Key("o", "other"))
    await say(one)
    call = entries_only(await frames_until(two, is_call))[-1]
    await knows(one, two)
    draining = asyncio.create_task(one.router.drain(30))
    async with asyncio.timeout(5):
        while not two.pool.running:
            await asyncio.sleep(0.01)
        await two.router.answer(KEY, call.call_id, 1, error=UNSET)  # type: ignore[union-attr]
        seen = entries_only(await frames_until(two, is_end))
    assert kinds(seen) == ["message", "function_call", "function_result", "token", "done"]
    assert not draining.done()
    draining.cancel()


async def test_what_was_being_loaded_when_a_node_drained_is_given_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await start(ScriptedModel([["a"], END]), session_idle_s=0.1)
    two = await start(ScriptedModel([["b"], END]))
    await say(two)
    await frames_until(two, is_end)
    two.pool.evict(asyncio.get_running_loop().time())
    await two.journal.feeds.released()
    fold, asked, gate = Feed.fold, asyncio.Event(), asyncio.Event()

    async def slow(feed: Feed) -> Any:
        asked.set()
        await gate.wait()
        return await fold(feed)

    monkeypatch.setattr(Feed, "fold", slow)
    loading = asyncio.create_task(one.pool.session(KEY))
    await asked.wait()
    draining = asyncio.create_task(one.router.drain(0))
    await asyncio.sleep(0.05)
    gate.set()
    with pytest.raises(Refusal, match="about to stop"):
        await loading
    await draining
    assert await two.log.claim(KEY) == Claim(await two.log.head(KEY))


async def test_one_conversation_that_was_taken_over_doesnt_keep_the_others_from_being_handed_over(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await start(ScriptedModel(*[[["a"], asyncio.Event()]] * 2)), await start(ScriptedModel([END]))
    keys = [Key("o", "c1"), Key("o", "c2")]
    for key in keys:
        await say(one, key=key)
        await frames_until(two, is_token, key=key)
    taken, kept = [one.pool.known(key) for key in keys]
    assert taken is not None
    assert kept is not None
    commit, gate = one.log.commit, asyncio.Event()

    async def slow(batch: Any) -> list[bool]:
        await gate.wait()
        return await commit(batch)

    monkeypatch.setattr(one.log, "commit", slow)
    assert (await two.log.claim(keys[0], instead_of=one.log.node_id)).owner is None
    for session in (taken, kept):
        session.append_text(session.fold.current(), ["b"])  # type: ignore[arg-type]
    draining = asyncio.create_task(one.router.drain(0))
    await asyncio.sleep(0.05)
    gate.set()
    await draining
    claim = await two.log.claim(keys[1])
    assert (claim.owner, claim.lost) == (None, False)


# ---------------------------------------------------------------- losing a node


async def test_a_lost_nodes_turn_goes_on_elsewhere_and_it_writes_nothing_more(start: Start) -> None:
    thawed = asyncio.Event()
    one = await start(ScriptedModel([["lost "], thawed, ["zombie"], END]))
    two = await start(ScriptedModel([["whole"], END]))
    await say(one)
    await frames_until(two, is_token)
    there = asyncio.create_task(frames_until(two, is_end))
    here = asyncio.create_task(frames_until(one, is_end))
    await die(one)
    seen = entries_only(await there)
    assert kinds(seen) == ["message", "token", "restart", "token", "done"]
    restart = next(frame for frame in seen if isinstance(frame, Restart))
    assert (restart.attempt, restart.keep_seq) == (1, 1)
    assert seen[0].epoch == 0 < restart.epoch == seen[-1].epoch
    thawed.set()
    mended = (await here)[-1]  # it saw what the zombie said, which the log never got
    assert isinstance(mended, Snapshot)
    assert (mended.messages[-1].content, mended.seq) == ("whole", seen[-1].seq)
    assert one.pool.sessions == 0
    assert "zombie" not in repr(await two.entries())
    assert two.metrics.taken_over.value == 1


async def test_what_a_node_owns_without_knowing_it_runs_there(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was claimed, and then the answer got lost, or the log couldn't be read."""
    monkeypatch.setattr(takeover, "FIRST_LOOK_S", 0.3)
    monkeypatch.setattr(takeover, "LOOK_S", 0.3)
    one = await start(ScriptedModel([["lost "], asyncio.Event()]))
    two = await start(ScriptedModel([["whole"], END]))
    await say(one)
    await frames_until(two, is_token)
    assert (await two.log.claim(KEY, instead_of=one.log.node_id)).owner is None
    seen = await frames_until(two, is_end)
    assert isinstance(seen[-1], Done)
    assert two.metrics.taken_over.value == 1


async def test_a_turn_whose_end_the_log_lost_runs_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its owner is idle, and so isn't refused anything."""
    monkeypatch.setattr(takeover, "FIRST_LOOK_S", 0.5)
    monkeypatch.setattr(takeover, "LOOK_S", 0.3)
    one = await start(ScriptedModel([["a"], END], [["b"], END]))
    await say(one)
    before = await frames_until(one, is_end)
    after = Position(before[-1].seq, before[-1].epoch)
    reading = asyncio.create_task(frames_until(one, lambda frame: frame.epoch > 0 and is_end(frame), after))
    await lose_last(one, KEY, before)
    async with asyncio.timeout(5):
        mended = await reading
    assert isinstance(mended[0], Snapshot)
    assert mended[0].turn is not None
    assert mended[0].messages[-1].content + text(entries_only(mended[1:])) == "b"


async def test_readers_of_a_node_that_was_frozen_go_on_with_the_new_owner(start: Start) -> None:
    """Their conversation is idle there: nothing that it would write is refused."""
    one, two = await start(ScriptedModel([["a"], END])), await start(ScriptedModel([["b"], END]))
    await say(one)
    await frames_until(one, is_end)
    reading = asyncio.create_task(frames_until(one, lambda frame: is_end(frame) and frame.seq > 3))
    await knows(two, one)
    await die(one)
    await finds_lost(two, one)
    _, done = await say(two, "and then?")
    await frames_until(two, is_end, Position(done.seq - 1, -1))
    assert one.pool.sessions == 1
    revive(one)
    seen = entries_only(await reading)
    assert text(seen) == "ab"
    assert seen[-1].epoch > 0


async def test_a_lost_nodes_conversations_are_shared_out(start: Start) -> None:
    one = await start(ScriptedModel([["lost "], asyncio.Event()]))
    others = [await start(ScriptedModel([["whole"], asyncio.Event()])) for _ in range(2)]
    for node in others:
        for other in (one, *others):
            if other is not node:
                await knows(node, other)
    for number in range(24):
        await say(one, key=Key("o", f"c{number}"))
    await die(one)
    async with asyncio.timeout(10):
        while sum(node.pool.running for node in others) < 24:
            await asyncio.sleep(0.05)
    assert min(node.pool.running for node in others) >= 4


async def test_a_waiting_turn_is_taken_over_without_a_word(start: Start) -> None:
    one = await start(ScriptedModel([["let me see "], calls(("f", {}))]))
    two = await start(ScriptedModel([["thanks"], END]))
    await say(one)
    call = entries_only(await frames_until(two, is_call))[-1]
    await die(one)
    async with asyncio.timeout(10):
        while not two.pool.sessions:
            await asyncio.sleep(0.05)
    await two.router.answer(KEY, call.call_id, 1, error=UNSET)  # type: ignore[union-attr]
    seen = entries_only(await frames_until(two, is_end))
    assert kinds(seen) == ["message", "token", "function_call", "function_result", "token", "done"]


async def test_the_fourth_loss_ends_a_turn(start: Start) -> None:
    nodes = [await start(ScriptedModel([["lost "], asyncio.Event()])) for _ in range(5)]
    watcher = await start(ScriptedModel([END]), takes_over=False)
    await say(nodes[0])
    watching = asyncio.create_task(frames_until(watcher, is_end, timeout_s=40))
    for _ in range(4):
        async with asyncio.timeout(10):
            while (owner := next((node for node in nodes if node.pool.running), None)) is None:
                await asyncio.sleep(0.02)
        nodes.remove(owner)
        await die(owner)
    seen = entries_only(await watching)
    assert [frame.attempt for frame in seen if isinstance(frame, Restart)] == [1, 2, 3]
    assert isinstance(seen[-1], Error)
    assert seen[-1].error.code == "NODE_LOST"


async def test_a_command_waits_for_the_takeover(start: Start) -> None:
    one = await start(ScriptedModel([["lost "], asyncio.Event()]))
    two = await start(ScriptedModel([["whole"], asyncio.Event()]))
    _, done = await say(one)
    await frames_until(two, is_token)
    await one.journal.nodes.close()
    assert (await two.router.cancel(KEY, done.turn_id))[:2] == ("stopped", done.turn_id)


async def test_a_turn_that_is_read_on_another_node_isnt_nobodys(start: Start) -> None:
    one = await start(ScriptedModel([["a"], asyncio.Event()]), orphan_grace_s=0.4)
    two = await start(ScriptedModel([END]))
    await say(one)
    reading = asyncio.create_task(frames_until(two, is_end))
    await asyncio.sleep(1.2)
    assert not reading.done()
    assert one.pool.running == 1
    reading.cancel()
    await asyncio.wait([reading])
    del reading  # its traceback holds the feed
    async with asyncio.timeout(5):
        while one.pool.running:
            await asyncio.sleep(0.05)
    ended = entries_only(await frames_until(one, is_end))
    assert isinstance(ended[-1], Done)
    assert ended[-1].finish_reason == "cancelled"
