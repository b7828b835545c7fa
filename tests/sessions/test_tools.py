"""Turns that call the gateway's own tools: real requests to a real server, beside calls that clients answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec import UNSET

from gateway.logs.memory import MemoryLog
from gateway.sessions.calls import DECLINED
from gateway.sessions.session import Acknowledged, Session
from gateway.sessions.turn import OUTCOME_UNKNOWN
from gateway.settings import HttpTool, Tools
from gateway.tools.toolbox import Toolbox
from protocol.codes import Refusal
from protocol.frames import (
    Done,
    Entry,
    Error,
    FoldedCall,
    FunctionCall,
    FunctionResult,
    FunctionSpec,
    Restart,
    Tool,
)
from tests.support.faults import FaultLog
from tests.support.node import KEY, Node, is_call, is_end, kinds, read, read_until, running_node, text
from tests.support.scripted import END, ScriptedModel, calls

WITHIN_S = 10
DEPTH = 128
"""Levels of JSON that a free value may have (SPEC.md section 4.3)."""


class Endpoints:
    """A server with one endpoint for each tool. A request for `slow` waits until `gate` is set."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], str]] = []
        """Tool, query and `Idempotency-Key`, in the order in which they came."""
        self.came = asyncio.Condition()
        self.gate = asyncio.Event()
        self.cut = asyncio.Event()
        """A request ended before its answer was ready."""
        self.most_at_once = 0
        self._at_once = 0
        self._server: TestServer | None = None

    async def start(self) -> str:
        app = web.Application()
        app.router.add_get("/{tool}", self._answer)
        self._server = TestServer(app)
        await self._server.start_server()
        return str(self._server.make_url("/"))

    async def close(self) -> None:
        self.gate.set()
        if self._server is not None:
            await self._server.close()

    async def asked(self, number: int) -> None:
        """Waits until so many requests have come."""
        async with asyncio.timeout(WITHIN_S), self.came:
            await self.came.wait_for(lambda: len(self.requests) >= number)

    def keys(self) -> list[str]:
        return [key for _, _, key in self.requests]

    async def _answer(self, request: web.Request) -> web.Response:
        tool = request.match_info["tool"]
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        async with self.came:
            self.requests.append((tool, dict(request.query), request.headers["Idempotency-Key"]))
            self.came.notify_all()
        try:
            if tool == "broken":
                return web.json_response({"error": "no such city"}, status=404)
            if tool == "deep":
                return web.Response(text="[" * (DEPTH + 1) + "]" * (DEPTH + 1), content_type="application/json")
            if tool != "quick":
                await self.gate.wait()
            return web.json_response({"tool": tool, **request.query})
        except asyncio.CancelledError:
            self.cut.set()
            raise
        finally:
            self._at_once -= 1


@pytest.fixture
async def endpoints() -> AsyncIterator[Endpoints]:
    made = Endpoints()
    yield made
    await made.close()


PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}}
DECLARED: dict[str, dict[str, Any]] = {
    "quick": {},
    "slow": {},
    "again": {"idempotent": True},
    "broken": {},
    "deep": {},
    "hasty": {"timeout_s": 0.05},
    "pay": {"approval": True},
}


@asynccontextmanager
async def node_with_tools(
    endpoints: Endpoints, model: ScriptedModel, log: MemoryLog | None = None, **settings: Any
) -> AsyncIterator[Node]:
    base = await endpoints.start() if endpoints._server is None else str(endpoints._server.make_url("/"))
    declared = {
        name: HttpTool.model_validate({"description": name, "url": base + name, "parameters": PARAMETERS} | more)
        for name, more in DECLARED.items()
    }
    toolbox = Toolbox(Tools(http=declared))
    await toolbox.open()
    try:
        async with running_node(model, log, toolbox=toolbox, **settings) as node:
            yield node
    finally:
        await toolbox.close()


def made_calls(frames: list[Entry]) -> list[FunctionCall]:
    return [frame for frame in frames if isinstance(frame, FunctionCall)]


def results(frames: list[Entry]) -> dict[str, Any]:
    """By name of the function: the result, or the error as a text after "error: "."""
    return {
        frame.name: frame.result if frame.error is UNSET else f"error: {frame.error}"
        for frame in frames
        if isinstance(frame, FunctionResult)
    }


async def open_calls(node: Node, number: int = 1) -> dict[str, FoldedCall]:
    """By name, as soon as so many are logged and open."""
    session = await node.pool.session(KEY)
    seen = 0

    def enough(frame: Entry) -> bool:
        nonlocal seen
        seen += is_call(frame)
        return seen == number

    frames = await read_until(session, 0, enough)
    return {call.name: call for call in session.fold.turns[frames[0].turn_id].open_calls}


async def rest(session: Session, done: Acknowledged) -> tuple[list[Entry], Done | Error]:
    frames = await read(session, done)
    end = frames[-1]
    assert isinstance(end, (Done, Error))
    return frames, end


async def lose(node: Node) -> MemoryLog:
    """The node dies: its tasks end, and nothing more is appended by them. Returns its log."""
    for session in node.pool.held.values():
        await session.feed.when_committed(session.feed.seq)
    for task in list(node.pool.runs):
        task.cancel()
    for session in node.pool.held.values():
        session.draining, session.run = True, None
    await asyncio.sleep(0)
    assert isinstance(node.log, MemoryLog)
    node.log.unclean = True
    return node.log


# ---------------------------------------------------------------- run by the gateway


async def test_calls_of_a_round_run_side_by_side_and_are_logged(endpoints: Endpoints) -> None:
    model = ScriptedModel([["Let me see."], calls(*(("slow", {"n": n}) for n in range(3)))], [[" Done."], END])
    async with node_with_tools(endpoints, model) as node:
        session, done = await node.send()
        await endpoints.asked(3)
        endpoints.gate.set()
        frames, _ = await rest(session, done)
        assert endpoints.most_at_once == 3
        assert kinds(frames) == ["message", "token", *["function_call"] * 3, *["function_result"] * 3, "token", "done"]
        asked = made_calls(frames)
        assert [(call.runs, call.round, call.args["n"]) for call in asked] == [("gateway", 1, n) for n in range(3)]
        assert sorted(endpoints.keys()) == sorted(call.call_id for call in asked)
        told = [message["content"] for message in model.requests[1].messages if message["role"] == "tool"]
        assert told == [f'{{"tool":"slow","n":"{n}"}}' for n in range(3)]
        assert [tool.function.name for tool in model.requests[0].tools] == list(DECLARED)


async def test_a_round_with_calls_for_the_client_and_the_gateway(endpoints: Endpoints) -> None:
    model = ScriptedModel([calls(("ask_user", {}), ("quick", {"n": 1}))], [["ok"], END])
    async with node_with_tools(endpoints, model) as node:
        session, done = await node.send(tools=[Tool(FunctionSpec(name="ask_user"))])
        theirs = (await open_calls(node, 2))["ask_user"]
        assert theirs.runs == "client"
        await read_until(session, 0, lambda frame: isinstance(frame, FunctionResult))
        assert session.run is not None
        assert session.run.waits_for_client
        await node.pool.answer(KEY, theirs.call_id, "blue", UNSET)
        frames, _ = await rest(session, done)
        assert results(frames) == {"quick": {"tool": "quick", "n": "1"}, "ask_user": "blue"}
        assert [tool.function.name for tool in model.requests[0].tools] == [*DECLARED, "ask_user"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("broken", "error: the tool's server answered 404: no such city"),
        ("hasty", "error: the tool took longer than 0.05 s"),
        ("deep", f"error: the result is nested deeper than {DEPTH} levels"),
    ],
)
async def test_a_tool_that_fails_doesnt_fail_the_turn(endpoints: Endpoints, name: str, error: str) -> None:
    model = ScriptedModel([calls((name, {}))], [["sorry"], END])
    async with node_with_tools(endpoints, model) as node:
        frames = await node.ask()
        assert results(frames) == {name: error}
        assert text(frames) == "sorry"
        assert isinstance(frames[-1], Done)
        told = model.requests[1].messages[-1]["content"]
        assert error.removeprefix("error: ") in told


async def test_arguments_that_dont_fit_are_given_back_to_the_model_and_never_run(endpoints: Endpoints) -> None:
    model = ScriptedModel([calls(("quick", {"n": "one"}))], [calls(("quick", {"n": 1}))], [["ok"], END])
    async with node_with_tools(endpoints, model) as node:
        frames = await node.ask()
        assert [call.args for call in made_calls(frames)] == [{"n": 1}]
        assert [query for _, query, _ in endpoints.requests] == [{"n": "1"}]
        assert "`n`" in model.requests[1].messages[-1]["content"]
        assert [message["role"] for message in model.requests[2].messages] == ["user", "assistant", "tool"]


async def test_cancel_ends_the_request_of_the_tool(endpoints: Endpoints) -> None:
    async with node_with_tools(endpoints, ScriptedModel([calls(("slow", {}))])) as node:
        session, done = await node.send()
        await endpoints.asked(1)
        await node.pool.cancel(KEY, None)
        async with asyncio.timeout(WITHIN_S):
            await endpoints.cut.wait()
        frames, end = await rest(session, done)
        assert kinds(frames) == ["message", "function_call", "done"]
        assert isinstance(end, Done)
        assert end.finish_reason == "cancelled"


# ---------------------------------------------------------------- what clients may not


@pytest.mark.parametrize("answered", [False, True])
async def test_a_client_cant_answer_for_the_gateway(endpoints: Endpoints, answered: bool) -> None:
    model = ScriptedModel([calls(("slow", {}))], [asyncio.Event()])
    async with node_with_tools(endpoints, model) as node:
        session, _ = await node.send()
        call = (await open_calls(node))["slow"]
        if answered:
            endpoints.gate.set()
            await read_until(session, 0, lambda frame: isinstance(frame, FunctionResult))
        for result in (True, "forged", {"tool": "slow"}):
            with pytest.raises(Refusal, match="CALL_CLOSED"):
                await node.pool.answer(KEY, call.call_id, result, UNSET)
        assert list(results(await node.entries()).values()) == ([{"tool": "slow"}] if answered else [])


@pytest.mark.parametrize("name", ["quick", "pay"])
async def test_a_client_cant_define_a_tool_of_the_gateway(endpoints: Endpoints, name: str) -> None:
    async with node_with_tools(endpoints, ScriptedModel([END])) as node:
        with pytest.raises(Refusal, match=r"BAD_FRAME: `tools\[1\]\.function\.name`"):
            await node.send(tools=[Tool(FunctionSpec(name="mine")), Tool(FunctionSpec(name=name))])
        assert await node.entries() == []


# ---------------------------------------------------------------- approval


@pytest.mark.parametrize("word", [True, {"approved": True}])
async def test_an_approved_call_is_logged_again_and_run(endpoints: Endpoints, word: Any) -> None:
    model = ScriptedModel([calls(("pay", {"n": 5}))], [["paid"], END])
    endpoints.gate.set()
    async with node_with_tools(endpoints, model) as node:
        session, done = await node.send()
        call = (await open_calls(node))["pay"]
        assert call.runs == "approval"
        assert session.fold.status(session.fold.turns[done.turn_id]) == "function_call"
        assert endpoints.requests == []
        await node.pool.answer(KEY, call.call_id, word, UNSET)
        frames, _ = await rest(session, done)
        assert kinds(frames) == ["message", "function_call", "function_call", "function_result", "token", "done"]
        asked, approved = made_calls(frames)
        assert (asked.runs, approved.runs) == ("approval", "gateway")
        for field in ("call_id", "name", "args", "round"):
            assert getattr(asked, field) == getattr(approved, field)
        assert results(frames) == {"pay": {"tool": "pay", "n": "5"}}
        assert endpoints.keys() == [call.call_id]
        assert [message["role"] for message in model.requests[1].messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("result", "error", "told"),
    [(False, UNSET, DECLINED), ({"approved": False}, UNSET, DECLINED), (UNSET, "too dear", "too dear")],
)
async def test_a_declined_call_is_never_run(endpoints: Endpoints, result: Any, error: Any, told: str) -> None:
    model = ScriptedModel([calls(("pay", {}))], [["as you like"], END])
    async with node_with_tools(endpoints, model) as node:
        session, done = await node.send()
        call = (await open_calls(node))["pay"]
        await node.pool.answer(KEY, call.call_id, result, error)
        await node.pool.answer(KEY, call.call_id, result, error)
        frames, _ = await rest(session, done)
        assert kinds(frames) == ["message", "function_call", "function_result", "token", "done"]
        assert results(frames) == {"pay": f"error: {told}"}
        with pytest.raises(Refusal, match="CALL_CLOSED"):
            await node.pool.answer(KEY, call.call_id, True, UNSET)
        assert endpoints.requests == []


async def test_words_on_an_approval_that_repeat_contradict_or_mean_nothing(endpoints: Endpoints) -> None:
    model = ScriptedModel([calls(("pay", {}))], [["paid"], END])
    async with node_with_tools(endpoints, model) as node:
        session, done = await node.send()
        call = (await open_calls(node))["pay"]
        for nonsense in (None, "yes", 1, {}, {"approved": 1}):
            with pytest.raises(Refusal, match="BAD_FRAME"):
                await node.pool.answer(KEY, call.call_id, nonsense, UNSET)
        await node.pool.answer(KEY, call.call_id, True, UNSET)
        await endpoints.asked(1)

        async def told_again() -> None:
            await node.pool.answer(KEY, call.call_id, {"approved": True}, UNSET)
            for result, error in ((False, UNSET), (UNSET, "no!")):
                with pytest.raises(Refusal, match="CALL_CLOSED"):
                    await node.pool.answer(KEY, call.call_id, result, error)

        await told_again()
        endpoints.gate.set()
        frames, _ = await rest(session, done)
        await told_again()
        assert results(frames) == {"pay": {"tool": "pay"}}
        assert endpoints.keys() == [call.call_id]


async def test_one_of_two_is_approved(endpoints: Endpoints) -> None:
    model = ScriptedModel([calls(("pay", {"n": 1}), ("pay", {"n": 2}))], [END])
    endpoints.gate.set()
    async with node_with_tools(endpoints, model) as node:
        session, done = await node.send()
        await open_calls(node, 2)
        first, second = session.fold.turns[done.turn_id].open_calls
        await node.pool.answer(KEY, second.call_id, True, UNSET)
        await read_until(session, 0, lambda frame: isinstance(frame, FunctionResult))
        await node.pool.answer(KEY, first.call_id, False, UNSET)
        await rest(session, done)
        told = [message["content"] for message in model.requests[1].messages if message["role"] == "tool"]
        assert told == [f'{{"error":"{DECLINED}"}}', '{"tool":"pay","n":"2"}']


# ---------------------------------------------------------------- time


async def test_the_clients_time_doesnt_run_while_only_the_gateway_works(endpoints: Endpoints) -> None:
    model = ScriptedModel([calls(("slow", {}), ("pay", {}))], [["ok"], END])
    async with node_with_tools(endpoints, model, function_timeout_s=0.3) as node:
        session, done = await node.send()
        call = (await open_calls(node, 2))["pay"]
        await node.pool.answer(KEY, call.call_id, True, UNSET)
        await endpoints.asked(2)
        await asyncio.sleep(0.4)  # past the client's time
        endpoints.gate.set()
        _, end = await rest(session, done)
        assert isinstance(end, Done)


async def test_an_approval_that_never_comes(endpoints: Endpoints) -> None:
    model = ScriptedModel([calls(("slow", {}), ("pay", {}))])
    async with node_with_tools(endpoints, model, function_timeout_s=0.05) as node:
        session, done = await node.send()
        frames, end = await rest(session, done)
        assert isinstance(end, Error)
        assert end.error.code == "FUNCTION_TIMEOUT"
        assert "pay" in end.error.message
        assert "slow" not in end.error.message
        assert results(frames) == {}
        async with asyncio.timeout(WITHIN_S):
            while node.pool.running:
                await asyncio.sleep(0)
        if endpoints.requests:
            async with asyncio.timeout(WITHIN_S):
                await endpoints.cut.wait()


@pytest.mark.parametrize(("name", "survives"), [("slow", False), ("pay", True)])
async def test_nobody_reads_while_a_call_is_open(endpoints: Endpoints, name: str, survives: bool) -> None:
    """Only what the client has to answer holds the orphan's time (SPEC.md section 10.5)."""
    async with node_with_tools(endpoints, ScriptedModel([calls((name, {}))])) as node:
        session, done = await node.send()
        await open_calls(node)
        async with asyncio.timeout(WITHIN_S):
            while session.feed.cursors:
                await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        for step in range(3):
            await node.pool.end_orphans(now + 60 * step, 60)
        assert (session.fold.turns[done.turn_id].end is None) is survives


# ---------------------------------------------------------------- take-over


async def test_a_call_whose_outcome_is_unknown_isnt_made_again(endpoints: Endpoints) -> None:
    async with node_with_tools(endpoints, ScriptedModel([calls(("slow", {}))])) as old:
        await old.send()
        await endpoints.asked(1)
        log = await lose(old)
        model = ScriptedModel([["I can't tell"], END])
        async with node_with_tools(endpoints, model, log) as new:
            frames = await read_until(await new.pool.session(KEY), 0, is_end)
            assert kinds(frames) == ["message", "function_call", "function_result", "token", "done"]
            assert results(frames) == {"slow": f"error: {OUTCOME_UNKNOWN}"}
            assert len(endpoints.requests) == 1
            assert OUTCOME_UNKNOWN in model.requests[0].messages[-1]["content"]


async def test_an_idempotent_call_is_made_again_under_the_same_key(endpoints: Endpoints) -> None:
    async with node_with_tools(endpoints, ScriptedModel([calls(("again", {"n": 7}))])) as old:
        await old.send()
        await endpoints.asked(1)
        log = await lose(old)
        endpoints.gate.set()
        async with node_with_tools(endpoints, ScriptedModel([["seven"], END]), log) as new:
            frames = await read_until(await new.pool.session(KEY), 0, is_end)
            assert kinds(frames) == ["message", "function_call", "function_result", "token", "done"]
            assert results(frames) == {"again": {"tool": "again", "n": "7"}}
            assert endpoints.keys() == [made_calls(frames)[0].call_id] * 2


async def test_results_that_are_in_the_log_are_kept(endpoints: Endpoints) -> None:
    asked = calls(("quick", {"n": 1}), ("slow", {}), ("mine", {}))
    async with node_with_tools(endpoints, ScriptedModel([asked])) as old:
        session, _ = await old.send(tools=[Tool(FunctionSpec(name="mine"))])
        await read_until(session, 0, lambda frame: isinstance(frame, FunctionResult))
        await endpoints.asked(2)
        log = await lose(old)
        async with node_with_tools(endpoints, ScriptedModel([["ok"], END]), log) as new:
            mine = (await open_calls(new, 3))["mine"]
            await new.pool.answer(KEY, mine.call_id, 3, UNSET)
            frames = await read_until(await new.pool.session(KEY), 0, is_end)
            assert results(frames) == {
                "quick": {"tool": "quick", "n": "1"},
                "slow": f"error: {OUTCOME_UNKNOWN}",
                "mine": 3,
            }
            assert len(endpoints.requests) == 2


@pytest.mark.parametrize("orderly", [False, True])
async def test_a_call_that_waits_for_approval_outlives_its_node(endpoints: Endpoints, orderly: bool) -> None:
    async with node_with_tools(endpoints, ScriptedModel([calls(("pay", {}))])) as old:
        await old.send()
        call = (await open_calls(old))["pay"]
        if orderly:
            await old.pool.drain(0)
        log = old.log if orderly else await lose(old)
        assert isinstance(log, MemoryLog)
        endpoints.gate.set()
        async with node_with_tools(endpoints, ScriptedModel([["paid"], END]), log) as new:
            assert endpoints.requests == []
            await new.pool.answer(KEY, call.call_id, True, UNSET)
            frames = await read_until(await new.pool.session(KEY), 0, is_end)
            assert not [frame for frame in frames if isinstance(frame, Restart)]
            assert results(frames) == {"pay": {"tool": "pay"}}
            assert endpoints.keys() == [call.call_id]


async def test_an_approved_call_whose_outcome_is_unknown_isnt_made_again(endpoints: Endpoints) -> None:
    async with node_with_tools(endpoints, ScriptedModel([calls(("pay", {}))])) as old:
        await old.send()
        call = (await open_calls(old))["pay"]
        await old.pool.answer(KEY, call.call_id, True, UNSET)
        await endpoints.asked(1)
        log = await lose(old)
        async with node_with_tools(endpoints, ScriptedModel([["who knows"], END]), log) as new:
            session = await new.pool.session(KEY)
            frames = await read_until(session, 0, is_end)
            assert results(frames) == {"pay": f"error: {OUTCOME_UNKNOWN}"}
            assert len(endpoints.requests) == 1
            await new.pool.answer(KEY, call.call_id, True, UNSET)


async def test_a_drain_waits_for_tools_of_the_gateway(endpoints: Endpoints) -> None:
    async with node_with_tools(endpoints, ScriptedModel([calls(("slow", {}))], [["ok"], END])) as node:
        session, done = await node.send()
        await endpoints.asked(1)
        draining = asyncio.create_task(node.pool.drain(WITHIN_S))
        await asyncio.sleep(0)
        endpoints.gate.set()
        await draining
        end = session.fold.turns[done.turn_id].end
        assert isinstance(end, Done)


# ---------------------------------------------------------------- found in review


async def test_nothing_runs_before_the_log_knows_that_it_may(endpoints: Endpoints) -> None:
    log = FaultLog()
    async with node_with_tools(endpoints, ScriptedModel([calls(("pay", {}))], [["paid"], END]), log) as node:
        session, done = await node.send()
        call = (await open_calls(node))["pay"]
        log.down = True
        approving = asyncio.create_task(node.pool.answer(KEY, call.call_id, True, UNSET))
        while node.journal.available:  # until the commit has failed
            await asyncio.sleep(0.005)
        assert (endpoints.requests, approving.done()) == ([], False)
        log.down = False
        endpoints.gate.set()
        await approving
        await rest(session, done)
        assert len(endpoints.requests) == 1


async def test_an_approval_that_nobody_would_act_on_is_refused(endpoints: Endpoints) -> None:
    async with node_with_tools(endpoints, ScriptedModel([calls(("pay", {}))])) as node:
        await node.send()
        call = (await open_calls(node))["pay"]
        await node.pool.drain(0)
        with pytest.raises(Refusal, match="OVERLOADED"):
            await node.pool.answer(KEY, call.call_id, True, UNSET)
        assert endpoints.requests == []


async def test_no_tool_outlives_its_turn(endpoints: Endpoints) -> None:
    model = ScriptedModel([calls(("slow", {}), ("pay", {}))])
    async with node_with_tools(endpoints, model, function_timeout_s=0.3) as node:
        session, done = await node.send()
        call = (await open_calls(node, 2))["pay"]
        await endpoints.asked(1)
        run = session.run
        assert run is not None
        refused: list[str] = []

        def approve(_: object) -> None:
            try:
                session.answer(call.call_id, True, UNSET)
            except Refusal as refusal:
                refused.append(refusal.code.name)

        next(iter(run._tool_tasks)).add_done_callback(approve)
        _, end = await rest(session, done)
        assert isinstance(end, Error)
        assert (end.error.code, refused) == ("FUNCTION_TIMEOUT", ["CALL_CLOSED"])
        assert len(endpoints.requests) == 1
        assert run._tool_tasks == {}
