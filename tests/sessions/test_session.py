"""One conversation: the order of its turns, whatever is asked of it, and invariants under random commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.logs.memory import MemoryLog
from gateway.models.model import CallFragment, Event, Finish, ModelError, ModelRequest, Sink, pour
from gateway.sessions.session import Session
from protocol.codes import ErrorCode, Refusal
from protocol.fold import Fold
from protocol.frames import UNSET, Done, Entry, Error, FunctionCall, Message, Token, Usage
from tests.support.node import KEY, Node, is_call, is_end, kinds, read, read_until, running_node
from tests.support.scripted import END, ScriptedModel, calls


def hanging() -> ScriptedModel:
    return ScriptedModel([["x"], asyncio.Event()])


def contents(session: Session) -> list[tuple[str, str]]:
    """(question, status) in turn order."""
    return [(line.content, line.status) for line in session.fold.messages() if line.role == "user"]


# ---------------------------------------------------------------- order


async def test_queued_messages_are_answered_in_the_order_of_their_acknowledgement() -> None:
    async with running_node(ScriptedModel([["x"], END])) as node:
        sent = [await node.send(str(number)) for number in range(5)]
        frames = await read_until(sent[0][0], 0, lambda f: is_end(f) and f.turn_id == sent[-1][1].turn_id)
        assert [f.turn_id for f in frames if is_end(f)] == [done.turn_id for _, done in sent]
        assert [request.messages[-1]["content"] for request in node.model.requests] == list("01234")  # type: ignore[attr-defined]


async def test_several_interrupts_among_queued_messages() -> None:
    async with running_node(hanging()) as node:
        session, _ = await node.send("a")
        await node.send("b")
        await node.send("c")
        await node.send("i", on_busy="interrupt")
        await node.send("j", on_busy="interrupt")
        await node.send("d")
        expected = [
            ("a", "cancelled"), ("i", "cancelled"), ("j", "running"), ("b", "queued"), ("c", "queued"), ("d", "queued"),
        ]  # fmt: skip
        assert contents(session) == expected
        await session.feed.when_committed(session.feed.seq)
        log = await node.entries()
        marks = [(e.content, e.interrupt) for e in log if isinstance(e, Message)]
        assert marks == [("a", False), ("b", False), ("c", False), ("i", True), ("j", True), ("d", False)]
        at = next(i for i, e in enumerate(log) if isinstance(e, Message) and e.content == "i")
        assert isinstance(log[at + 1], Done), "the interrupting message, then the end of the turn that it ends"


async def test_an_interrupt_of_nothing_is_an_ordinary_message() -> None:
    async with running_node(ScriptedModel([END])) as node:
        frames = await node.ask(on_busy="interrupt")
        assert isinstance(frames[0], Message)
        assert not frames[0].interrupt


async def test_an_interrupt_of_a_turn_that_waits_for_its_client() -> None:
    async with running_node(ScriptedModel([calls(("f", {}))], [["x"], END])) as node:
        session, _ = await node.send("a")
        await read_until(session, 0, is_call)
        frames = await node.ask("b", on_busy="interrupt")
        assert kinds(frames) == ["message", "done", "token", "done"]
        assert contents(session) == [("a", "cancelled"), ("b", "completed")]


async def test_reject_and_a_full_queue_change_nothing() -> None:
    async with running_node(hanging(), max_queued=2) as node:
        session, _ = await node.send("a")
        for text in ("b", "c"):
            await node.send(text)
        before = session.feed.seq
        with pytest.raises(Refusal, match="BUSY"):
            await node.send("d")
        with pytest.raises(Refusal, match="BUSY"):
            await node.send("d", on_busy="reject")
        assert session.feed.seq == before
        await node.send("i", on_busy="interrupt")
        await node.pool.cancel(KEY, None)
        await node.send("d")


async def test_nothing_may_wait() -> None:
    async with running_node(hanging(), max_queued=0) as node:
        await node.send("a")
        with pytest.raises(Refusal, match="BUSY"):
            await node.send("b")
        await node.send("i", on_busy="interrupt")


# ---------------------------------------------------------------- cancel


async def test_a_queued_turn_is_cancelled_by_name_and_the_others_go_on() -> None:
    async with running_node(hanging()) as node:
        session, first = await node.send("a")
        _, second = await node.send("b")
        await node.send("c")
        assert (await node.pool.cancel(KEY, second.turn_id)).outcome == "stopped"
        assert contents(session) == [("a", "running"), ("b", "cancelled"), ("c", "queued")]
        assert session.run is not None
        assert session.run.turn.turn_id == first.turn_id
        await node.pool.cancel(KEY, None)
        assert contents(session) == [("a", "cancelled"), ("b", "cancelled"), ("c", "running")]


async def test_two_cancels_at_once_are_both_told_when_it_is_in_the_log() -> None:
    async with running_node(hanging()) as node:
        session, done = await node.send()
        outcomes = await asyncio.gather(node.pool.cancel(KEY, None), node.pool.cancel(KEY, None))
        assert [o.outcome for o in outcomes] == ["stopped", "already_done"]
        assert outcomes[0].seq == outcomes[1].seq == session.feed.committed
        assert outcomes[1].turn_id == done.turn_id


# ---------------------------------------------------------------- sending again


async def test_the_same_message_id_from_two_tasks_starts_one_turn() -> None:
    async with running_node(ScriptedModel([["x"], END])) as node:
        (one, first), (two, second) = await asyncio.gather(
            node.send("a", message_id="m1"), node.send("other", message_id="m1", on_busy="reject")
        )
        assert one is two
        assert (second.turn_id, second.seq, {first.duplicate, second.duplicate}) == (
            first.turn_id, first.seq, {False, True},
        )  # fmt: skip
        await read(one, first)
        node.pool.evict(float("inf"))
        node.pool.draining = True
        _, again = await node.send("a", message_id="m1")
        assert again == first._replace(duplicate=True), "known from the log, before any limit"


# ---------------------------------------------------------------- results


async def test_a_repeated_result_is_accepted_when_the_first_is_in_the_log() -> None:
    async with running_node(ScriptedModel([calls(("f", {}))], [asyncio.Event()])) as node:
        session, _ = await node.send()
        frames = await read_until(session, 0, is_call)
        call_id = next(f.call_id for f in frames if isinstance(f, FunctionCall))
        session.answer(call_id, 1, UNSET)
        assert session.answer(call_id, 1, UNSET) > session.feed.committed


# ---------------------------------------------------------------- random commands, random models

TEXTS = st.lists(st.sampled_from(["a", "bc", "🙂", "x" * 9000]), min_size=1, max_size=3)
MODEL_CALLS = st.lists(
    st.one_of(
        TEXTS.map(lambda texts: ("text", texts)),
        st.tuples(st.just("calls"), st.integers(1, 3)),
        TEXTS.map(lambda texts: ("break", texts)),
        st.just(("refuse", None)),
        st.just(("flaky", None)),
        TEXTS.map(lambda texts: ("hang", texts)),
    ),
    min_size=1,
    max_size=6,
)
COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(["queue", "queue", "interrupt", "reject"]), st.integers(0, 12)),
        st.tuples(st.just("cancel"), st.one_of(st.none(), st.integers(0, 5))),
        st.tuples(st.just("answer"), st.integers(0, 5), st.integers(0, 1)),
        st.tuples(st.just("run"), st.integers(1, 30)),
        st.just(("evict",)),
        st.just(("hand over",)),
        st.just(("crash",)),
    ),
    max_size=25,
)


EXPECTED = {ErrorCode.BUSY, ErrorCode.CALL_CLOSED, ErrorCode.NOT_FOUND}


class RandomModel:
    """Does what was drawn, again and again. `over` makes every further call end at once."""

    def __init__(self, plan: list[Any]) -> None:
        self.plan, self.asked, self.over = plan, 0, False

    async def answer(self, request: ModelRequest, sink: Sink) -> None:
        await pour(self.stream(request), sink)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        kind, what = ("text", ["end"]) if self.over else self.plan[self.asked % len(self.plan)]
        self.asked += 1
        await asyncio.sleep(0)
        if kind == "refuse":
            raise ModelError(ErrorCode.UPSTREAM_REJECTED, "no", transient=False)
        if kind == "flaky" and self.asked % 2:
            raise ModelError(ErrorCode.UPSTREAM_UNAVAILABLE, "not now", transient=True)
        if kind == "calls":
            yield [CallFragment(i, None, "f", "{}") for i in range(what)]
            yield [Finish(None), Usage(1, 1)]
            return
        for text in what or ["fine"]:
            yield [text]
            await asyncio.sleep(0)
        if kind == "break":
            raise ModelError(ErrorCode.STREAM_ERROR, "broke", transient=True)
        if kind == "hang":
            await asyncio.Event().wait()
        yield [Finish("stop")]

    async def close(self) -> None:
        pass


def check(log: list[Entry], session: Session) -> None:
    assert [entry.seq for entry in log] == list(range(1, len(log) + 1))
    assert [entry.epoch for entry in log] == sorted(entry.epoch for entry in log)
    fold = Fold()
    for entry in log:
        current = fold.current()
        if not isinstance(entry, Message):
            turn = fold.turns[entry.turn_id]
            assert turn.end is None, "nothing comes after the end of a turn"
            if not (isinstance(entry, Done) and entry.finish_reason == "cancelled"):
                assert turn is current, "turns run one after the other"
            if isinstance(entry, Done):
                assert entry.text_length == len(turn.content)
            if isinstance(entry, Token):
                assert not turn.open_calls
        fold.apply(entry)
    messages = [entry.message_id for entry in log if isinstance(entry, Message)]
    assert len(messages) == len(set(messages))
    ends = [entry.turn_id for entry in log if isinstance(entry, (Done, Error))]
    assert sorted(ends) == sorted(entry.turn_id for entry in log if isinstance(entry, Message))
    assert fold.messages() == session.fold.messages()
    assert (fold.seq, fold.epoch, fold.running()) == (session.fold.seq, session.fold.epoch, None)


async def command(node: Node, step: tuple[Any, ...], sent: list[str], asked: list[str]) -> None:
    match step:
        case ("send", on_busy, number):
            session, done = await node.send(f"q{number}", message_id=f"m{number}", on_busy=on_busy)
            assert session.fold.turns[done.turn_id].message.message_id == f"m{number}"
            sent.append(done.turn_id)
        case ("cancel", number):
            name = sent[number % len(sent)] if number is not None and sent else None
            outcome = await node.pool.cancel(KEY, name)
            assert outcome.outcome in ("stopped", "already_done", "not_found")
        case ("answer", number, value) if asked:
            await node.pool.answer(KEY, asked[number % len(asked)], value, UNSET)
        case ("run", turns):
            for _ in range(turns):
                await asyncio.sleep(0)
        case ("evict",):
            node.pool.evict(float("inf"))


async def play(plan: list[Any], steps: list[tuple[Any, ...]], batch_chars: int) -> None:
    log, model = MemoryLog(), RandomModel(plan)
    sent: list[str] = []
    asked: list[str] = []
    chunk: list[tuple[Any, ...]] = []
    for step in [*steps, ("end",)]:
        if step[0] not in ("hand over", "crash", "end"):
            chunk.append(step)
            continue
        async with running_node(model, log, batch_chars=batch_chars, batch_ms=1, max_queued=3) as node:
            for inner in chunk:
                try:
                    await command(node, inner, sent, asked)
                except Refusal as refusal:
                    if refusal.code not in EXPECTED:
                        raise
                asked += [e.call_id for e in await node.entries() if isinstance(e, FunctionCall)]
            chunk = []
            if step[0] == "end":
                model.over = True
                async with asyncio.timeout(20):
                    while (await node.pool.cancel(KEY, None)).outcome == "stopped":
                        pass
                    session = await node.pool.session(KEY)
                    await session.feed.when_committed(session.feed.seq)
                    check(await node.entries(), session)
                    while node.pool.running:
                        await asyncio.sleep(0)
                    assert session.idle
        log.unclean = step[0] == "crash"


@settings(max_examples=150)
@given(MODEL_CALLS, COMMANDS, st.sampled_from([0, 10]))
def test_invariants(plan: list[Any], steps: list[tuple[Any, ...]], batch_chars: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.sessions.generation.RETRY_BASE_S", 0.0)
        asyncio.run(play(plan, steps, batch_chars))
