"""Which tools a model call gets, when there are too many."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.context import selection
from gateway.context.selection import ToolSelector
from protocol.frames import FunctionSpec, Tool


def tool(name: str, description: str | None = None, **parameters: Any) -> Tool:
    schema = {"type": "object", "properties": parameters} if parameters else None
    return Tool(FunctionSpec(name, description, schema))


TOOLS = [
    tool("get_weather", "The forecast for a city", city={"type": "string", "description": "Name of the town"}),
    tool("sendEmail", "Sends a mail to somebody", to={"type": "string"}, body={"type": "string"}),
    tool("create_invoice", "Makes a bill for a customer", customer={"type": "string"}),
    tool("list_flights", "Connections between two airports", origin={}, destination={}),
    tool("x1"),
    tool("天気予報", "明日の天気"),
]


async def chosen(
    message: str, most: int = 1, recent: Sequence[str] = (), tools: Sequence[Tool] = TOOLS, embed: Any = None
) -> list[str]:
    return [one.function.name for one in await ToolSelector(most, embed).select(tools, message, recent)]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("will it rain? I need forecasts for Rome", "get_weather"),
        ("email my boss", "sendEmail"),
        ("please invoice the customers", "create_invoice"),
        ("which airports?", "list_flights"),
        ("which town is it?", "get_weather"),
        ("destination?", "list_flights"),
        ("明日の天気は？", "天気予報"),
        ("use x1", "x1"),
    ],
)
async def test_the_tool_that_the_message_is_about(message: str, name: str) -> None:
    assert await chosen(message) == [name]


async def test_few_tools_are_all_sent() -> None:
    assert await ToolSelector(6).select(TOOLS, "anything", ["sendEmail"]) == TOOLS
    assert await ToolSelector(6).select([], "anything", []) == []


async def test_the_order_is_the_clients() -> None:
    assert await chosen("flights, then mail, then weather", 3) == ["get_weather", "sendEmail", "list_flights"]


@pytest.mark.parametrize("message", ["", "   ", "qwertz", "the of and", "🙂"])
async def test_without_a_match_the_first_are_sent(message: str) -> None:
    assert await chosen(message, 2) == ["get_weather", "sendEmail"]


async def test_what_was_called_lately_stays() -> None:
    assert await chosen("and now for Paris", 2, ["list_flights"]) == ["get_weather", "list_flights"]
    assert await chosen("email it", 2, ["list_flights", "x1", "get_weather"]) == ["sendEmail", "list_flights"]
    assert await chosen("email it", 1, ["list_flights"]) == ["list_flights"]
    assert await chosen("email it", 1, ["gone", "gone too"]) == ["sendEmail"]
    assert len(await chosen("email it", 4, ["list_flights", "list_flights", "x1", "get_weather"])) == 4


async def test_odd_schemas_do_no_harm() -> None:
    odd = [
        Tool(FunctionSpec("a", None, {"properties": []})),
        Tool(FunctionSpec("b", None, {"properties": {"k": 1, "l": {"description": 3}}})),
        Tool(FunctionSpec("-", None, {})),
        Tool(FunctionSpec("_", "")),
    ]
    assert await chosen("k", 1, tools=odd) == ["b"]
    assert await chosen("\ud800 l", 1, tools=odd) == ["b"]


async def test_an_index_is_made_once_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    index = selection._index
    monkeypatch.setattr(
        selection, "_index", lambda tools: (made.append(threading.current_thread().name), index(tools))[1]
    )
    selector = ToolSelector(1)
    for message in ("mail", "weather", "mail", "flights"):
        await selector.select(TOOLS, message, [])
    await selector.select(list(TOOLS), "invoice", [])
    assert len(made) == 1
    assert made[0] != threading.main_thread().name
    await selector.select(TOOLS[:3], "mail", [])
    assert len(made) == 2


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "INDEXED_TOOLS", 13)
    monkeypatch.setattr(selection, "RANKED_TOOLS", 13)
    selector = ToolSelector(1)
    for number in range(10):
        await selector.select([*TOOLS[1:], tool(f"t{number}")], "mail", [])
    assert len(selector._words._held) == len(selector._rankings._held) == 2
    assert selector._words._cost == 12


# ---------------------------------------------------------------- by meaning

MEANING = {"get_weather": [1.0, 0, 0], "sendEmail": [0, 1.0, 0], "create_invoice": [0, 0, 2.0]}


class Embedding:
    """A vector for each tool, by its name at the beginning of the text; `query` for everything else."""

    def __init__(self, query: Sequence[float] = (0, 0, 1)) -> None:
        self.query = list(query)
        self.asked: list[int] = []
        self.failure: Exception | None = None

    async def __call__(self, texts: list[str], /) -> list[list[float]]:
        self.asked.append(len(texts))
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        known = {"get weather": "get_weather", "send Email": "sendEmail", "create invoice": "create_invoice"}
        return [MEANING[known[head]] if (head := t.partition(":")[0]) in known else self.query for t in texts]


async def test_by_meaning() -> None:
    embed = Embedding()
    selector = ToolSelector(1, embed)
    for message in ("charge them", "charge them", "bill him"):
        assert [t.function.name for t in await selector.select(TOOLS[:3], message, [])] == ["create_invoice"]
    assert embed.asked == [4, 1]


async def test_words_help_where_the_meaning_is_even() -> None:
    assert await chosen("mail", 1, tools=TOOLS[:3], embed=Embedding([1, 1, 1])) == ["sendEmail"]


@pytest.mark.parametrize(
    "query", [[], [1.0], [float("nan"), 0, 0], ["x", 0, 0]], ids=["empty", "short", "not a number", "text"]
)
async def test_unusable_vectors_are_a_failure(query: Any) -> None:
    with capture_logs() as logs:
        assert await chosen("mail", 1, tools=TOOLS[:3], embed=Embedding(query)) == ["sendEmail"]
    assert len(logs) == 1


async def test_words_serve_when_embeddings_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = Embedding()
    embed.failure = RuntimeError("two\nlines")
    selector = ToolSelector(1, embed)
    with capture_logs() as logs:
        for _ in range(3):
            assert [t.function.name for t in await selector.select(TOOLS[:3], "mail", [])] == ["sendEmail"]
    assert [(line["log_level"], line["problem"]) for line in logs] == [("warning", "two lines")]
    assert len(embed.asked) == 1, "it is left in peace for a while"
    embed.failure = None
    selector._embed_after_s = 0.0
    assert [t.function.name for t in await selector.select(TOOLS[:3], "mail", [])] == ["create_invoice"]
