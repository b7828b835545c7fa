"""The context of model calls over a real log and pool: what is sent, what is compressed, and what stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.context import summary
from gateway.context.budget import Budgets
from gateway.context.manager import GAP_NOTICE
from gateway.context.prompt import DROPPED_NOTICE, SUMMARY_HEADING
from gateway.context.summary import INSTRUCTIONS
from gateway.context.window import REPLY_PRIMING, answer_reserve, tool_framing, tool_texts
from gateway.logs.memory import MemoryLog
from gateway.logs.sqlite import SqliteLog
from gateway.models.model import Event, ModelError, ModelRequest, Sink, pour
from gateway.settings import Upstream
from protocol.codes import ErrorCode, Refusal
from protocol.frames import UNSET, Context, Done, Error, FunctionCall, FunctionSpec, Tool
from tests.support.node import KEY, Node, is_call, is_end, kinds, read, read_until, running_node
from tests.support.scripted import END, calls

BUDGET = 1200
ROOM = BUDGET - answer_reserve(BUDGET)
LONG = "so it goes " * 30
"""About 90 tokens."""

Summarize = Callable[[str, int], str]
"""From the question and how many summaries were written before to the summary."""


def short(_question: str, number: int) -> str:
    return f"summary {number}: the code is 4711"


class Chat:
    """Answers summary requests with `summarize`, and everything else with the next of `answers`."""

    def __init__(self, *answers: Sequence[list[Event]], summarize: Summarize = short) -> None:
        self.answers = list(answers) or [[["fine, "], [LONG], END]]
        self.summarize = summarize
        self.asked: list[ModelRequest] = []
        self.summaries: list[ModelRequest] = []

    async def answer(self, request: ModelRequest, sink: Sink) -> None:
        await pour(self.stream(request), sink)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        await asyncio.sleep(0)
        if request.messages[0]["content"] == INSTRUCTIONS:
            self.summaries.append(request)
            yield [self.summarize(request.messages[1]["content"], len(self.summaries))]
            yield END
            return
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        self.asked.append(request)
        for events in answer:
            yield events

    async def close(self) -> None:
        pass


async def cost(request: ModelRequest) -> int:
    """Counted afresh, as the upstream would."""
    budget = Budgets(Upstream()).of(request.model)
    tools = tool_framing(request.tools) + await budget.tokens(list(tool_texts(request.tools)))
    return await budget.cost(request.messages) + budget.scaled(tools + REPLY_PRIMING)


async def talk(node: Node, turns: int, start: int = 0) -> list[Context]:
    """So many turns; what became of the context."""
    frames = [frame for n in range(start, start + turns) for frame in await node.ask(f"question {n}: {LONG}")]
    assert [frame for frame in frames if isinstance(frame, Error)] == []
    return [frame for frame in frames if isinstance(frame, Context)]


def system_of(request: ModelRequest) -> str:
    return str(request.messages[0]["content"]) if request.messages[0]["role"] == "system" else ""


# ---------------------------------------------------------------- over budget


async def test_every_call_is_within_the_budget_and_holds_the_summary() -> None:
    model = Chat()
    async with running_node(model, max_context_tokens=BUDGET) as node:
        compactions = await talk(node, 30)
    assert len(compactions) > 2
    assert [cost for cost in [await cost(request) for request in model.asked] if cost > ROOM] == []
    first = next(n for n, request in enumerate(model.asked) if system_of(request))
    assert first > 2
    assert all("4711" in system_of(request) for request in model.asked[first:])


async def test_the_last_turns_stay_word_for_word() -> None:
    model = Chat()
    async with running_node(model, max_context_tokens=BUDGET) as node:
        await talk(node, 20)
    for number, request in enumerate(model.asked):
        said = [m["content"] for m in request.messages if m["role"] == "user"]
        kept = len(said)
        assert said == [f"question {n}: {LONG}" for n in range(number + 1 - kept, number + 1)]
        assert kept >= min(number + 1, 3)
        answers = [m["content"] for m in request.messages if m["role"] == "assistant"]
        assert answers == ["fine, " + LONG] * (kept - 1)


async def test_a_compression_makes_room_for_several_turns() -> None:
    model = Chat()
    async with running_node(model, max_context_tokens=BUDGET) as node:
        compactions = await talk(node, 30)
    assert len(compactions) <= 30 // 2
    assert len(model.summaries) <= 2 * len(compactions)


async def test_a_summary_is_extended_and_not_done_again() -> None:
    model = Chat()
    async with running_node(model, max_context_tokens=BUDGET) as node:
        await talk(node, 30)
    questions = [request.messages[1]["content"] for request in model.summaries]
    covered: list[str] = []
    for number, question in enumerate(questions, 1):
        earlier, _, new = question.partition("\n\nNew messages:\n")
        assert earlier == f"Earlier summary:\n{short('', number - 1) if number > 1 else '(none yet)'}"
        covered += [f"question {n}:" for n in range(30) if f"question {n}:" in new]
    assert covered == [f"question {n}:" for n in range(len(covered))], "every turn is read once, in order"


async def test_the_context_frame_tells_what_was_sent_before_and_after() -> None:
    model = Chat()
    async with running_node(model, max_context_tokens=BUDGET) as node:
        first = (await talk(node, 6))[0]
        entries = [entry for entry in await node.entries() if isinstance(entry, Context)]
    request = next(r for r in model.asked if system_of(r))
    turns_before = model.asked.index(request) + 1
    told = first.compacted
    assert (told.messages_before, told.messages_after) == (2 * turns_before - 1, len(request.messages))
    assert told.tokens_after == await cost(request) <= ROOM < told.tokens_before
    assert entries[0].memory is not None
    assert f"\n{entries[0].memory.summary}" in system_of(request)


async def test_a_summary_that_is_longer_than_what_it_replaces_is_refused() -> None:
    model = Chat(summarize=lambda question, _: question + question)
    async with running_node(model, max_context_tokens=BUDGET) as node:
        with capture_logs() as logs:
            compactions = await talk(node, 10)
    assert any("no summary" in line["event"] for line in logs)
    assert compactions[0].memory is not None
    assert compactions[0].memory.summary == ""
    assert {system_of(request) for request in model.asked} == {"", DROPPED_NOTICE}
    assert system_of(model.asked[-1]) == DROPPED_NOTICE
    assert max([await cost(request) for request in model.asked]) <= ROOM


def failing(_question: str, _number: int) -> str:
    raise ModelError(ErrorCode.UPSTREAM_REJECTED, "no", transient=False)


async def test_when_the_summary_fails_the_oldest_turns_go_and_the_turn_still_runs() -> None:
    model = Chat(summarize=failing)
    async with running_node(model, max_context_tokens=BUDGET) as node:
        compactions = await talk(node, 10)
    assert 1 <= len(compactions) <= 5
    assert len(model.summaries) == len(compactions), "asked once for each, not at every call"
    assert {system_of(request) for request in model.asked} == {"", DROPPED_NOTICE}
    assert system_of(model.asked[-1]) == DROPPED_NOTICE


async def test_a_failure_keeps_the_earlier_summary_and_says_that_something_is_missing() -> None:
    model = Chat(summarize=lambda question, n: short(question, n) if n == 1 else failing(question, n))
    async with running_node(model, max_context_tokens=BUDGET) as node:
        await talk(node, 14)
    assert system_of(model.asked[-1]) == f"{SUMMARY_HEADING}\n{short('', 1)}\n{GAP_NOTICE}"


async def test_a_passing_failure_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "RETRY_S", 0)

    def busy_at_first(question: str, number: int) -> str:
        if number == 1:
            raise ModelError(ErrorCode.UPSTREAM_RATE_LIMITED, "busy", transient=True)
        return short(question, number)

    model = Chat(summarize=busy_at_first)
    async with running_node(model, max_context_tokens=BUDGET) as node:
        await talk(node, 6)
    assert len(model.summaries) > 1
    assert system_of(model.asked[-1]) == f"{SUMMARY_HEADING}\n{short('', len(model.summaries))}"


async def test_the_full_log_is_never_rewritten() -> None:
    async with running_node(Chat(), max_context_tokens=BUDGET) as node:
        await talk(node, 6)
        before = await node.entries()
        await talk(node, 10, start=6)
        assert (await node.entries())[: len(before)] == before


async def test_a_restart_keeps_the_memory(tmp_path: Path) -> None:
    first = Chat()
    async with running_node(first, SqliteLog(tmp_path / "log.db"), max_context_tokens=BUDGET) as node:
        await talk(node, 8)
    second = Chat()
    async with running_node(second, SqliteLog(tmp_path / "log.db"), max_context_tokens=BUDGET) as node:
        await talk(node, 1, start=8)
    assert second.summaries == [] or "4711" in second.summaries[0].messages[1]["content"]
    assert "4711" in system_of(second.asked[0])
    assert await cost(second.asked[0]) <= ROOM


# ---------------------------------------------------------------- function calls

LOOK_UP = Tool(FunctionSpec("look_up", "Looks something up", {"type": "object", "properties": {"q": {}}}))


def check_pairs(messages: Sequence[dict[str, Any]]) -> None:
    """Every result stands right behind its call, and every call has its result."""
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] == open_calls.pop(0)
        else:
            assert open_calls == []
            open_calls = [call["id"] for call in message.get("tool_calls", ())]
    assert open_calls == []


async def test_a_call_is_never_split_from_its_result() -> None:
    script: list[list[Event]] = [["let me see "], calls(("look_up", {"q": "a"}), ("look_up", {"q": "b"}))]
    answers = [part for _ in range(12) for part in (script, [["so: ", LONG], END])]
    model = Chat(*answers)
    async with running_node(model, max_context_tokens=BUDGET) as node:
        for number in range(12):
            session, done = await node.send(f"question {number}: {LONG}", tools=[LOOK_UP])
            seen = await read_until(session, done.seq - 1, lambda f: is_call(f) and f.args == {"q": "b"})
            for frame in seen:
                if isinstance(frame, FunctionCall):
                    await node.pool.answer(KEY, frame.call_id, {"found": LONG}, UNSET)
            assert isinstance((await read(session, done))[-1], Done)
    assert len(model.summaries) > 2
    for request in model.asked:
        check_pairs(request.messages)
        assert await cost(request) <= ROOM
    for request in model.summaries:
        new = request.messages[1]["content"].partition("New messages:")[2]
        assert new.count("Assistant calls look_up") == new.count("Function result: ")


async def test_results_in_mid_turn_compress_what_is_older() -> None:
    first: list[list[Event]] = [["ok ", LONG], END]
    asking: list[list[Event]] = [calls(("look_up", {"q": "a"}))]
    model = Chat(first, first, first, asking, [["done"], END])
    async with running_node(model, max_context_tokens=BUDGET) as node:
        assert await talk(node, 3) == []
        session, done = await node.send("and now?", tools=[LOOK_UP])
        (call,) = [f for f in await read_until(session, done.seq - 1, is_call) if isinstance(f, FunctionCall)]
        await node.pool.answer(KEY, call.call_id, LONG * 3, UNSET)
        frames = await read(session, done)
    assert kinds(frames) == ["message", "function_call", "function_result", "context", "token", "done"]
    assert [m["role"] for m in model.asked[-1].messages[-3:]] == ["user", "assistant", "tool"]
    assert "4711" in system_of(model.asked[-1])
    assert await cost(model.asked[-1]) <= ROOM


async def test_a_result_that_cannot_fit_ends_the_turn() -> None:
    model = Chat([calls(("look_up", {}))], [["never"], END])
    async with running_node(model, max_context_tokens=BUDGET) as node:
        session, done = await node.send("go", tools=[LOOK_UP])
        (call,) = [f for f in await read_until(session, done.seq - 1, is_call) if isinstance(f, FunctionCall)]
        await node.pool.answer(KEY, call.call_id, LONG * 20, UNSET)
        end = (await read(session, done))[-1]
    assert isinstance(end, Error)
    assert end.error.code == "CONTEXT_TOO_LARGE"
    assert len(model.asked) == 1


async def test_beside_a_giant_turn_the_summary_is_left_out_of_that_call_alone() -> None:
    model = Chat(summarize=lambda _, n: f"summary {n}: " + "fact " * 60)
    async with running_node(model, max_context_tokens=BUDGET) as node:
        await talk(node, 6)
        memory = (await node.pool.session(KEY)).fold.memory
        giant = "word " * (ROOM - 60)
        assert isinstance((await node.ask(giant))[-1], Done)
        assert await cost(model.asked[-1]) <= ROOM
        assert SUMMARY_HEADING not in system_of(model.asked[-1])
        kept = (await node.pool.session(KEY)).fold.memory
        assert memory is not None
        assert kept is not None
        assert kept.summary.startswith(memory.summary), "it is still in the log"


# ---------------------------------------------------------------- too large at once


@pytest.mark.parametrize(
    "fields",
    [
        {"message": "word " * ROOM},
        {"message": "hi", "system": "word " * ROOM},
        {"message": "hi", "tools": [Tool(FunctionSpec("f", "word " * ROOM))]},
        {"message": "word " * 900, "model": "llama3"},
    ],
    ids=["message", "system", "tools", "another model's tokens"],
)
async def test_what_cannot_fit_alone_is_refused_at_once(fields: dict[str, Any]) -> None:
    model = Chat()
    async with running_node(model, max_context_tokens=BUDGET) as node:
        with pytest.raises(Refusal, match="MAX_CONTEXT_TOKENS") as caught:
            await node.send(**fields)
        assert caught.value.code is ErrorCode.CONTEXT_TOO_LARGE
        assert await node.entries() == []
        assert isinstance((await node.ask("hi"))[-1], Done)


async def test_what_just_fits_is_sent() -> None:
    model = Chat()
    async with running_node(model, max_context_tokens=BUDGET) as node:
        assert isinstance((await node.ask("word " * (ROOM - 12)))[-1], Done)
    assert ROOM - 12 < await cost(model.asked[0]) <= ROOM


async def test_the_models_own_window_bounds_the_budget() -> None:
    async with running_node(Chat(), max_context_tokens=100_000, model_window=1000) as node:
        with pytest.raises(Refusal, match="CONTEXT_TOO_LARGE"):
            await node.send("word " * 1000)
        await node.send("word " * 1000, model="gpt-4o")


# ---------------------------------------------------------------- the rest of a request


async def test_the_template_and_the_conversations_own_system() -> None:
    model = Chat([["ok"], END])
    async with running_node(model, system_prompt="You are Bo.") as node:
        await node.ask("a")
        await node.ask("b", system="be brief")
        await node.ask("c")
        await node.ask("d", system="")
    assert [system_of(request) for request in model.asked] == [
        "You are Bo.",
        "You are Bo.\n\nbe brief",
        "You are Bo.\n\nbe brief",
        "You are Bo.",
    ]


async def test_clients_can_be_forbidden_to_set_system() -> None:
    model = Chat([["ok"], END])
    log = MemoryLog()
    async with running_node(model, log, client_system="refuse") as node:
        with pytest.raises(Refusal, match="system") as caught:
            await node.send("a", system="obey me")
        assert caught.value.code is ErrorCode.BAD_FRAME
        assert await node.entries() == []
        await node.ask("a")
    assert system_of(model.asked[0]) == ""


async def test_only_tools_that_matter_are_sent_and_used_ones_stay() -> None:
    tools = [Tool(FunctionSpec(name, f"Does {name} things")) for name in ("mail", "weather", "invoice", "flight")]
    model = Chat([calls(("flight", {}))], [["ok"], END])
    async with running_node(model, max_tools=2) as node:
        session, done = await node.send("a flight please", tools=tools)
        (call,) = [f for f in await read_until(session, done.seq - 1, is_call) if isinstance(f, FunctionCall)]
        await node.pool.answer(KEY, call.call_id, 1, UNSET)
        await read_until(session, done.seq - 1, is_end)
        await node.ask("now the weather", tools=tools)
    names = [[tool.function.name for tool in request.tools] for request in model.asked]
    assert names == [["mail", "flight"], ["mail", "flight"], ["weather", "flight"]]
