"""The running summary: what the model is asked, and which of its answers count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.context import summary
from gateway.context.counting import TokenCounter
from gateway.context.summary import INSTRUCTIONS, Summarizer, SummaryFailed
from gateway.models.demo import Demo
from gateway.models.demo_summary import REQUEST
from gateway.models.model import ModelError
from protocol.codes import ErrorCode
from tests.support.scripted import END, ScriptedModel, Step

COUNTER = TokenCounter()


def turn(question: str, answer: str = "fine") -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TURNS = [turn(f"fact number {n} is {n * 111}: " + "and so on " * 20) for n in range(6)]


async def extended(model: Any, earlier: str = "", limit: int = 100, chunk: int = 10_000, **settings: Any) -> str:
    summarizer = Summarizer(model, "small", **settings)
    return await summarizer.extend(earlier, TURNS, COUNTER, limit_tokens=limit, chunk_tokens=chunk)


async def test_what_the_model_is_asked() -> None:
    model = ScriptedModel([[" the ", "summary\n"], END])
    assert await extended(model, "before") == "the summary"
    (request,) = model.requests
    assert (request.model, request.max_tokens, request.tools) == ("small", 100, ())
    assert request.messages[0] == {"role": "system", "content": INSTRUCTIONS}
    asked = request.messages[1]["content"]
    assert asked.startswith("Earlier summary:\nbefore\n\nNew messages:\nUser: fact number 0 is 0:")
    assert "\nAssistant: fine\nUser: fact number 1 is 111:" in asked
    assert asked.endswith("The new summary, in at most 50 words:")


async def test_calls_and_results_are_told() -> None:
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    turns = [
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ]
    ]
    model = ScriptedModel([["ok"], END])
    await Summarizer(model, "small").extend("", turns, COUNTER, limit_tokens=50, chunk_tokens=1000)
    assert 'Assistant calls f({"a":1})\nFunction result: 42' in model.requests[0].messages[1]["content"]


async def test_much_is_read_piece_by_piece_and_each_extends_the_last() -> None:
    scripts: list[list[Step]] = [[[f"summary {n}"], END] for n in range(6)]
    model = ScriptedModel(*scripts)
    last = await extended(model, chunk=120)
    asked = [request.messages[1]["content"] for request in model.requests]
    assert last == f"summary {len(asked) - 1}"
    assert len(asked) > 2
    assert all(f"Earlier summary:\nsummary {n}\n" in question for n, question in enumerate(asked[1:]))
    new = [question.partition("New messages:\n")[2].partition("\n\nThe new")[0] for question in asked]
    assert [n for part in new for n in range(6) if f"number {n} " in part] == list(range(6))
    assert all(COUNTER.count(part) <= 130 for part in new)


async def test_a_giant_message_is_cut() -> None:
    model = ScriptedModel([["ok"], END])
    giant = [turn("number " * 5000)]
    await Summarizer(model, "small").extend("", giant, COUNTER, limit_tokens=50, chunk_tokens=200)
    assert all(COUNTER.count(request.messages[1]["content"]) < 400 for request in model.requests)
    assert "[…]" in model.requests[0].messages[1]["content"]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([END], "wrote nothing"),
        ([["  \n"], END], "wrote nothing"),
        ([["word " * 101], END], "at most 100 allowed"),
        ([ModelError(ErrorCode.UPSTREAM_REJECTED, "wrong key", transient=False)], "wrong key"),
    ],
)
async def test_what_is_no_summary(script: list[Any], problem: str) -> None:
    with pytest.raises(SummaryFailed, match=problem) as caught:
        await extended(ScriptedModel(script), "before")
    assert caught.value.so_far == "before"


async def test_longer_than_what_it_replaces_is_refused() -> None:
    with pytest.raises(SummaryFailed, match="in place of"):
        await Summarizer(ScriptedModel([["word " * 50], END]), "small").extend(
            "short", [turn("hi")], COUNTER, limit_tokens=1000, chunk_tokens=1000
        )


async def test_what_stood_before_a_failure_stands() -> None:
    model = ScriptedModel([["first"], END], [END])
    with pytest.raises(SummaryFailed) as caught:
        await extended(model, chunk=120)
    assert caught.value.so_far == "first"


async def test_a_passing_failure_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "RETRY_S", 0)
    busy = ModelError(ErrorCode.UPSTREAM_UNAVAILABLE, "busy", transient=True)
    assert await extended(ScriptedModel([["half "], busy], [["whole"], END])) == "whole"
    with pytest.raises(SummaryFailed, match="busy"):
        await extended(ScriptedModel([busy]))


async def test_a_silent_model_is_left() -> None:
    model = ScriptedModel([["some"], asyncio.Event()])
    with pytest.raises(SummaryFailed, match="in time"):
        await extended(model, timeout_s=0.01)
    assert model.open == 0


async def test_cancelling_closes_the_request() -> None:
    model = ScriptedModel([asyncio.Event()])
    task = asyncio.create_task(extended(model))
    while not model.open:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.open == 0


async def test_the_demo_model_keeps_facts() -> None:
    assert INSTRUCTIONS.startswith(REQUEST)
    told = [
        turn("Hello! My name is Ada and my budget is 48,500 euros.", "Good question. Every word is a frame. " * 5),
        turn("We decided to ship on 14 March with Maria from Cologne.", "Here is a short tour. " * 20),
    ]
    chat = [turn(f"Just chatting, what do you think about rivers? {n}", "Think of rivers. " * 20) for n in range(8)]
    summarizer = Summarizer(Demo(tokens_per_s=float("inf")), "demo")
    kept = ""
    for _ in range(12):
        kept = await summarizer.extend(kept, [*told, *chat], COUNTER, limit_tokens=120, chunk_tokens=800)
        told = []
    assert COUNTER.count(kept) <= 120
    for fact in ("Ada", "48,500", "14 March", "Maria", "Cologne"):
        assert fact in kept
