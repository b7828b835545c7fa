"""The turn engine over a real log and journal: every way in which a turn goes, and ends once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.models.model import CallFragment, Finish, ModelError, ModelRequest, Sink
from protocol.codes import ErrorCode, Refusal
from protocol.frames import (
    UNSET,
    Done,
    Error,
    FoldedCall,
    FunctionResult,
    FunctionSpec,
    Message,
    Restart,
    Token,
    Tool,
    Usage,
)
from tests.support.node import KEY, Node, is_call, is_end, is_token, kinds, read, read_until, running_node, text
from tests.support.scripted import END, ScriptedModel, calls


def broken(code: ErrorCode = ErrorCode.STREAM_ERROR, *, transient: bool = True, **fields: Any) -> ModelError:
    return ModelError(code, "broken", transient=transient, **fields)


def end_of(frames: list[Any]) -> Done | Error:
    ends = [frame for frame in frames if is_end(frame)]
    assert len(ends) == 1
    return ends[0]


async def test_a_turn_is_message_tokens_done() -> None:
    async with running_node(ScriptedModel([["Hé"], ["llo", " 🙂"], END])) as node:
        frames = await node.ask("hi")
        assert kinds(frames) == ["message", "token", "done"]
        assert text(frames) == "Héllo 🙂"
        done = end_of(frames)
        assert isinstance(done, Done)
        assert (done.finish_reason, done.usage, done.text_length) == ("stop", Usage(3, 4), 7)
        assert [entry.seq for entry in await node.entries()] == [1, 2, 3, 4, 5]
        assert node.model.requests[0].messages == [{"role": "user", "content": "hi"}]


async def test_the_history_of_a_second_turn() -> None:
    async with running_node(ScriptedModel([["one"], END], [["two"], END])) as node:
        await node.ask("first")
        await node.ask("second", system="be brief")
        assert node.model.requests[1].messages == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "second"},
        ]


async def test_an_answer_without_text_is_complete() -> None:
    async with running_node(ScriptedModel([END])) as node:
        assert kinds(await node.ask()) == ["message", "done"]


async def test_a_long_piece_is_split_into_entries_that_fit() -> None:
    async with running_node(ScriptedModel([["x" * 20_000], END])) as node:
        frames = await node.ask()
        assert text(frames) == "x" * 20_000
        assert max(len(e.content) for e in await node.entries() if isinstance(e, Token)) == 8192


# ---------------------------------------------------------------- cancel


async def test_cancel_before_the_first_token_closes_the_request() -> None:
    never = asyncio.Event()
    async with running_node(ScriptedModel([never])) as node:
        session, done = await node.send()
        while not node.model.open:
            await asyncio.sleep(0)
        outcome = await node.pool.cancel(KEY, None)
        assert (outcome.outcome, outcome.turn_id) == ("stopped", done.turn_id)
        frames = await read(session, done)
        assert kinds(frames) == ["message", "done"]
        end = end_of(frames)
        assert isinstance(end, Done)
        assert (end.finish_reason, end.usage, end.text_length) == ("cancelled", None, 0)
        while node.pool.running:
            await asyncio.sleep(0)
        assert (node.model.open, node.model.closed) == (0, 1)


async def test_cancel_before_anything_was_asked() -> None:
    async with running_node(ScriptedModel([END])) as node:
        session, done = await node.send()
        assert (await node.pool.cancel(KEY, done.turn_id)).outcome == "stopped"
        assert kinds(await read(session, done)) == ["message", "done"]
        assert node.model.requests == []


async def test_cancel_in_mid_stream_keeps_what_was_said_and_what_the_batcher_holds() -> None:
    never = asyncio.Event()
    model = ScriptedModel([["a"], ["b"], never])
    async with running_node(model, batch_chars=100, batch_ms=60_000) as node:
        session, done = await node.send()
        await read_until(session, 0, is_token)
        while session.run is not None and session.run.tokens < 2:
            await asyncio.sleep(0)
        await node.pool.cancel(KEY, None)
        frames = await read(session, done)
        assert text(frames) == "ab"
        assert end_of(frames).text_length == 2  # type: ignore[union-attr]


async def test_cancel_again_and_cancel_of_nothing() -> None:
    async with running_node(ScriptedModel([END])) as node:
        assert (await node.pool.cancel(KEY, None)).outcome == "not_found"
        frames = await node.ask()
        turn_id = frames[0].turn_id
        assert await node.pool.cancel(KEY, None) == ("already_done", turn_id, 2)
        assert (await node.pool.cancel(KEY, turn_id)).outcome == "already_done"
        assert (await node.pool.cancel(KEY, "t_other")).outcome == "not_found"
        assert [e.seq for e in await node.entries()] == [1, 2]


async def test_a_conversation_that_was_only_asked_about_leaves_no_session() -> None:
    async with running_node(ScriptedModel([END])) as node:
        await node.pool.cancel(KEY, None)
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await node.pool.answer(KEY, "call_1", 1, UNSET)
        assert node.pool.sessions == 0


# ---------------------------------------------------------------- failures and retries


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([broken(ErrorCode.UPSTREAM_REJECTED, transient=False)], "UPSTREAM_REJECTED"),
        ([["some"], broken()], "STREAM_ERROR"),
        ([["some"], broken(ErrorCode.UPSTREAM_UNAVAILABLE)], "UPSTREAM_UNAVAILABLE"),
        ([ZeroDivisionError("a secret")], "INTERNAL"),
    ],
)
async def test_a_failed_turn_ends_with_one_error(script: list[Any], code: str) -> None:
    async with running_node(ScriptedModel(script)) as node:
        frames = await node.ask()
        end = end_of(frames)
        assert isinstance(end, Error)
        assert end.error.code == code
        assert "secret" not in end.error.message
        assert len(node.model.requests) == 1
        assert kinds(await node.ask("again"))[0] == "message"


BROKEN = [
    [CallFragment(0, "x", "f", '{"a":')],
    [CallFragment(0, "x", "f", "[1]")],
    [CallFragment(0, "x", None, "{}")],
    [CallFragment(0, "x", "f", '{"n": "three"}')],
]
N = Tool(FunctionSpec(name="f", parameters={"type": "object", "properties": {"n": {"type": "integer"}}}))


@pytest.mark.parametrize("fragments", BROKEN)
async def test_broken_calls_are_given_back_to_the_model_once(fragments: list[Any]) -> None:
    model = ScriptedModel([["so"], [*fragments, Finish(None)]], [[", then"], calls(("f", {"n": 3}))], [END])
    async with running_node(model) as node:
        session, done = await node.send(tools=[N])
        (call,) = await waiting(node)
        assert call.args == {"n": 3}
        asked, answer = model.requests[1].messages[-2:]
        assert (asked["role"], asked["content"], answer["role"]) == ("assistant", "so", "tool")
        assert answer["content"].startswith("error: ")
        await node.pool.answer(KEY, call.call_id, 1, UNSET)
        frames = await read(session, done)
        assert kinds(frames) == ["message", "token", "function_call", "function_result", "done"]
        assert end_of(frames).text_length == len("so, then")  # type: ignore[union-attr]


@pytest.mark.parametrize("fragments", BROKEN)
async def test_calls_that_stay_broken_fail_the_turn(fragments: list[Any]) -> None:
    async with running_node(ScriptedModel([[*fragments, Finish(None)]])) as node:
        frames = await node.ask(tools=[N])
        end = end_of(frames)
        assert isinstance(end, Error)
        assert (end.error.code, end.error.retryable, len(node.model.requests)) == ("STREAM_ERROR", False, 2)
        assert kinds(frames) == ["message", "error"]


async def test_a_transient_failure_before_the_first_token_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sessions.generation.RETRY_BASE_S", 0.001)
    model = ScriptedModel([broken(ErrorCode.UPSTREAM_UNAVAILABLE)], [broken()], [["fine"], END])
    async with running_node(model) as node:
        frames = await node.ask()
        assert (kinds(frames), text(frames), len(model.requests)) == (["message", "token", "done"], "fine", 3)


async def test_three_attempts_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sessions.generation.RETRY_BASE_S", 0.001)
    model = ScriptedModel([broken(ErrorCode.UPSTREAM_RATE_LIMITED)])
    async with running_node(model) as node:
        end = end_of(await node.ask())
        assert isinstance(end, Error)
        assert (end.error.code, len(model.requests)) == ("UPSTREAM_RATE_LIMITED", 3)


async def test_a_retry_that_would_come_too_late_is_not_waited_for() -> None:
    model = ScriptedModel([broken(ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_s=3600)])
    async with running_node(model, first_token_timeout_s=30) as node:
        end = end_of(await node.ask())
        assert isinstance(end, Error)
        assert (end.error.code, len(model.requests)) == ("UPSTREAM_RATE_LIMITED", 1)


async def test_no_first_token_in_time() -> None:
    async with running_node(ScriptedModel([asyncio.Event()]), first_token_timeout_s=0.05) as node:
        end = end_of(await node.ask())
        assert isinstance(end, Error)
        assert (end.error.code, end.error.retryable) == ("UPSTREAM_TIMEOUT", True)
        assert node.model.closed == 1


async def test_silence_in_mid_answer() -> None:
    async with running_node(ScriptedModel([["a"], asyncio.Event()]), token_timeout_s=0.05) as node:
        frames = await node.ask()
        assert text(frames) == "a"
        end = end_of(frames)
        assert isinstance(end, Error)
        assert end.error.code == "UPSTREAM_TIMEOUT"


# ---------------------------------------------------------------- batching


async def test_held_text_goes_out_when_its_time_is_up() -> None:
    never = asyncio.Event()
    model = ScriptedModel([["The"], [" end"], never])
    async with running_node(model, batch_chars=100, batch_ms=20) as node:
        session, _ = await node.send()
        frames = await read_until(session, 0, lambda f: isinstance(f, Token) and f.content.endswith("end"))
        assert text(frames) == "The end"
        assert [e.content for e in await node.entries() if isinstance(e, Token)][:1] == ["The"]


async def test_held_text_goes_out_before_calls() -> None:
    model = ScriptedModel([["Let"], [" me see"], calls(("f", {}))], [END])
    async with running_node(model, batch_chars=100, batch_ms=60_000) as node:
        session, _ = await node.send()
        frames = await read_until(session, 0, is_call)
        assert kinds(frames) == ["message", "token", "function_call"]
        assert text(frames) == "Let me see"


async def test_text_is_never_left_unread_for_as_long_as_a_silent_model_is_waited_for() -> None:
    class Steady(ScriptedModel):
        unread_s = 0.0

        async def answer(self, request: ModelRequest, sink: Sink) -> None:
            loop = asyncio.get_running_loop()
            for piece in "ab":
                await asyncio.sleep(0.01)  # else there is no pace to tell from
                self.unread_s = sink.take([piece], loop.time())
            sink.take(END, loop.time())

    model = Steady()
    async with running_node(model, batch_chars=10**9, batch_ms=3_600_000, token_timeout_s=10) as node:
        await node.ask()
    assert 0 < model.unread_s < 10


# ---------------------------------------------------------------- function calls


async def waiting(node: Node, key: Any = KEY) -> list[FoldedCall]:
    session = await node.pool.session(key)
    frames = await read_until(session, 0, is_call)
    return list(session.fold.turns[frames[0].turn_id].open_calls)


async def test_calls_are_whole_and_the_turn_goes_on_with_their_results() -> None:
    fragments: list[Any] = [
        CallFragment(0, "a", "search", ""),
        CallFragment(1, "b", "search", '{"q"'),
        CallFragment(0, None, None, '{"q":'),
        CallFragment(1, None, None, ':"two"}'),
        CallFragment(0, None, None, '"one"}'),
        Finish(None),
        Usage(1, 1),
    ]
    model = ScriptedModel([["I", " look"], fragments], [[" found it"], END])
    async with running_node(model) as node:
        session, done = await node.send()
        first, second = await waiting(node)
        assert (first.args, second.args, first.round) == ({"q": "one"}, {"q": "two"}, 1)
        await node.pool.answer(KEY, second.call_id, {"n": 2}, UNSET)
        await node.pool.answer(KEY, first.call_id, UNSET, "no such page")
        frames = await read(session, done)
        assert kinds(frames) == [
            "message", "token", "function_call", "function_call", "function_result", "function_result", "token", "done",
        ]  # fmt: skip
        assert text(frames) == "I look found it"
        end = end_of(frames)
        assert isinstance(end, Done)
        assert (end.usage, end.text_length) == (Usage(4, 5), 15)
        asked = model.requests[1].messages
        assert [m["role"] for m in asked] == ["user", "assistant", "tool", "tool"]
        assert asked[1]["content"] == "I look"
        assert [m["content"] for m in asked[2:]] == ['{"error":"no such page"}', '{"n":2}']


async def test_answers_that_come_twice_late_or_differ() -> None:
    model = ScriptedModel([calls(("f", {}))], [asyncio.Event()])
    async with running_node(model) as node:
        await node.send()
        (call,) = await waiting(node)
        await node.pool.answer(KEY, call.call_id, {"a": 1}, UNSET)
        await node.pool.answer(KEY, call.call_id, {"a": 1}, UNSET)
        with pytest.raises(Refusal, match="CALL_CLOSED"):
            await node.pool.answer(KEY, call.call_id, {"a": 2}, UNSET)
        with pytest.raises(Refusal, match="NOT_FOUND"):
            await node.pool.answer(KEY, "call_none", 1, UNSET)
        assert len([e for e in await node.entries() if isinstance(e, FunctionResult)]) == 1
        await node.pool.cancel(KEY, None)
        await node.pool.answer(KEY, call.call_id, {"a": 1}, UNSET)


async def test_an_open_call_of_an_ended_turn_is_closed_and_told_to_the_model() -> None:
    model = ScriptedModel([calls(("f", {}))], [["next"], END])
    async with running_node(model) as node:
        await node.send()
        (call,) = await waiting(node)
        await node.pool.cancel(KEY, None)
        with pytest.raises(Refusal, match="CALL_CLOSED"):
            await node.pool.answer(KEY, call.call_id, 1, UNSET)
        await node.ask("and now?")
        roles = [(m["role"], m.get("content")) for m in model.requests[1].messages]
        assert roles[2][0] == "tool"
        assert "ended before" in str(roles[2][1])


async def test_results_that_never_come() -> None:
    async with running_node(ScriptedModel([calls(("f", {}))]), function_timeout_s=0.05) as node:
        end = end_of(await node.ask())
        assert isinstance(end, Error)
        assert end.error.code == "FUNCTION_TIMEOUT"
        assert "f" in end.error.message


async def test_rounds_are_bounded() -> None:
    model = ScriptedModel([calls(("f", {}))])
    async with running_node(model) as node:
        session, done = await node.send(tools=[])
        answered: set[str] = set()
        while session.fold.turns[done.turn_id].end is None:
            for call in session.fold.turns[done.turn_id].open_calls:
                if call.call_id not in answered:
                    answered.add(call.call_id)
                    await node.pool.answer(KEY, call.call_id, 1, UNSET)
            await asyncio.sleep(0)
        assert isinstance(session.fold.turns[done.turn_id].end, Error)
        assert len(answered) == 16


# ---------------------------------------------------------------- take-over


async def lose(node: Node) -> None:
    """The node dies: its tasks end, and nothing more is appended by them."""
    for task in list(node.pool.runs):
        task.cancel()
    for session in node.pool.held.values():
        session.draining, session.run = True, None
    await asyncio.sleep(0)


async def test_a_lost_turn_is_generated_again_after_a_restart_frame() -> None:
    first = ScriptedModel([["half of"], asyncio.Event()])
    async with running_node(first) as old:
        session, _ = await old.send()
        await read_until(session, 0, is_token)
        await session.feed.when_committed(session.feed.seq)
        await lose(old)
        old.log.unclean = True
        async with running_node(ScriptedModel([["the whole"], END]), log=old.log) as new:
            session = await new.pool.session(KEY)
            frames = await read_until(session, 0, is_end)
            assert kinds(frames) == ["message", "token", "restart", "token", "done"]
            restart = next(f for f in frames if isinstance(f, Restart))
            assert (restart.attempt, restart.keep_seq) == (1, 1)
            assert end_of(frames).text_length == len("the whole")  # type: ignore[union-attr]
            assert session.fold.turns[frames[0].turn_id].content == "the whole"


async def test_rounds_whose_calls_are_logged_are_kept_and_a_waiting_turn_needs_no_restart() -> None:
    async with running_node(ScriptedModel([["let me"], calls(("f", {}))])) as old:
        await old.send()
        (call,) = await waiting(old)
        await old.journal.feeds.open(KEY)
        session = await old.pool.session(KEY)
        await session.feed.when_committed(session.feed.seq)
        await lose(old)
        old.log.unclean = True
        async with running_node(ScriptedModel([[" see"], END]), log=old.log) as new:
            await new.pool.answer(KEY, call.call_id, "ok", UNSET)
            frames = await read_until(await new.pool.session(KEY), 0, is_end)
            assert kinds(frames) == ["message", "token", "function_call", "function_result", "token", "done"]
            assert end_of(frames).text_length == len("let me see")  # type: ignore[union-attr]


async def test_after_three_restarts_the_node_is_lost_for_good() -> None:
    log: Any = None
    for attempt in range(5):
        async with running_node(ScriptedModel([["x"], asyncio.Event()]), log=log) as node:
            log = node.log
            session = (await node.send())[0] if attempt == 0 else await node.pool.session(KEY)
            if attempt < 4:
                await read_until(session, session.fold.turns[next(iter(session.fold.turns))].keep_seq, is_token)
                await session.feed.when_committed(session.feed.seq)
                await lose(node)
                log.unclean = True
            else:
                await session.feed.when_committed(session.feed.seq)
                entries = await node.entries()
    assert [e.attempt for e in entries if isinstance(e, Restart)] == [1, 2, 3]
    end = end_of(entries)
    assert isinstance(end, Error)
    assert end.error.code == "NODE_LOST"


async def test_drain_hands_over_without_spending_an_attempt() -> None:
    async with running_node(ScriptedModel([["half"], asyncio.Event()])) as old:
        session, _ = await old.send()
        await old.send("later")
        await read_until(session, 0, is_token)
        await old.pool.drain(0.01)
        with pytest.raises(Refusal, match="OVERLOADED"):
            await old.send("too late")
        log = old.log
    async with running_node(ScriptedModel([["whole"], END]), log=log) as new:
        session = await new.pool.session(KEY)
        last = list(session.fold.turns)[-1]
        frames = await read_until(session, 0, lambda f: is_end(f) and f.turn_id == last)
        restarts = [f for f in frames if isinstance(f, Restart)]
        assert [r.attempt for r in restarts] == [0]
        assert [isinstance(f, Done) for f in frames if is_end(f)] == [True, True]
        assert [f.content for f in frames if isinstance(f, Message)] == ["hi", "later"]


@pytest.mark.parametrize("says", [[], ["half"]], ids=["silent", "speaking"])
async def test_what_began_is_a_restart(says: list[str]) -> None:
    """Whether it waited before, if it said something; and if it didn't wait, whatever ended behind it meanwhile."""
    script = [says, asyncio.Event()] if says else [asyncio.Event()]
    before = [[["a"], END]] if says else []
    async with running_node(ScriptedModel(*before, script)) as old:
        session, asked = await old.send()
        if says:
            _, asked = await old.send("it waits")
        else:
            session.cancel((await old.send("it never begins"))[1].turn_id)
        while says and not session.fold.turns[asked.turn_id].content:
            await asyncio.sleep(0.005)
        await old.pool.drain(0)
        log = old.log
    async with running_node(ScriptedModel([["b"], END]), log=log) as new:
        session = await new.pool.session(KEY)
        frames = await read_until(session, 0, lambda f: is_end(f) and f.turn_id == asked.turn_id)
        assert [(f.turn_id, f.attempt) for f in frames if isinstance(f, Restart)] == [(asked.turn_id, 0)]


async def test_a_turn_that_nobody_reads_ends_after_the_grace() -> None:
    async with running_node(ScriptedModel([["a"], asyncio.Event()]), orphan_grace_s=0.05) as node:
        session, done = await node.send()
        async with asyncio.timeout(5):
            while session.fold.turns[done.turn_id].end is None:
                await asyncio.sleep(0.01)
        end = session.fold.turns[done.turn_id].end
        assert isinstance(end, Done)
        assert end.finish_reason == "cancelled"
