"""How much a model takes, and how its tokens are estimated."""

from __future__ import annotations

import re

import pytest

from gateway.context.budget import Budgets
from gateway.context.window import (
    ANSWER_MOST,
    OTHERS_FACTOR,
    WINDOWS,
    WINDOWS_AS_OF,
    answer_reserve,
    approximation,
    known_window,
    message_framing,
    message_texts,
    tool_framing,
    tool_texts,
)
from gateway.settings import DEFAULT_UPSTREAM_MODEL, Upstream
from protocol.frames import FunctionSpec, Tool


@pytest.mark.parametrize(
    ("model", "window"),
    [
        (DEFAULT_UPSTREAM_MODEL, 400_000),
        ("gpt-4", 8_192),
        ("gpt-4-0613", 8_192),
        ("gpt-4-turbo-2024-04-09", 128_000),
        ("gpt-4-0125-preview", 128_000),
        ("gpt-4o-mini", 128_000),
        ("gpt-4.1-nano", 1_047_576),
        ("gpt-3.5-turbo-0125", 16_385),
        ("ft:gpt-4o:me::x", 128_000),
        ("openai/o3-mini", 200_000),
        ("o1-preview", 128_000),
        ("llama3:8b", 8_192),
        ("llama3.2", 131_072),
        ("meta-llama/Llama-3.1-8B-Instruct", 131_072),
        ("meta-llama/Meta-Llama-3-8B", 8_192),
        ("Qwen/Qwen2.5-7B", 32_768),
        ("gemma3:1b", 32_768),
        ("anthropic/claude-sonnet-4-5", 200_000),
        ("demo", None),
        ("my-own", None),
        ("", None),
    ],
)
def test_known_window(model: str, window: int | None) -> None:
    assert known_window(model) == window


def test_the_table_is_dated_and_lower_case() -> None:
    assert re.fullmatch(r"20\d\d-\d\d", WINDOWS_AS_OF)
    assert all(name == name.lower() and window > 4_000 for name, window in WINDOWS.items())


@pytest.mark.parametrize(
    ("model", "factor"),
    [
        ("gpt-5.4-mini", 1.0),
        ("openai/gpt-4o", 1.0),
        ("ft:gpt-3.5-turbo:me", 1.0),
        ("chatgpt-4o-latest", 1.0),
        ("o3", 1.0),
        ("o4-mini", 1.0),
        ("demo", 1.0),
        ("", 1.0),
        ("omni", OTHERS_FACTOR),
        ("demonstrator", OTHERS_FACTOR),
        ("llama3.2", OTHERS_FACTOR),
        ("claude-sonnet-4-5", OTHERS_FACTOR),
    ],
)
def test_approximation(model: str, factor: float) -> None:
    assert approximation(model) == factor


@pytest.mark.parametrize(
    ("settings", "model", "total"),
    [
        ({}, "gpt-4", 8000),
        ({"max_context_tokens": 100_000}, "gpt-4", 8192),
        ({"max_context_tokens": 100_000}, "unknown", 100_000),
        ({"max_context_tokens": 100_000, "model": "mine", "model_window": 4096}, "mine", 4096),
        ({"max_context_tokens": 100_000, "model": "mine", "model_window": 4096}, "gpt-4o", 100_000),
        ({"max_context_tokens": 100_000, "model": "gpt-4", "model_window": 32_768}, "gpt-4", 32_768),
        ({"max_context_tokens": 2000, "model_window": 4096}, "demo", 2000),
    ],
)
def test_the_budget_is_the_smaller_of_setting_and_window(settings: dict[str, object], model: str, total: int) -> None:
    budget = Budgets(Upstream(**settings)).of(model)  # type: ignore[arg-type]
    assert budget.total == total
    assert budget.room == total - answer_reserve(total)


def test_models_of_one_encoding_share_their_counts() -> None:
    budgets = Budgets(Upstream())
    assert budgets.of("gpt-4o").counter is budgets.of("llama3").counter
    assert budgets.of("gpt-4o").counter is not budgets.of("gpt-4").counter


def test_others_are_counted_with_the_factor() -> None:
    budgets = Budgets(Upstream())
    assert (budgets.of("gpt-4o").scaled(101), budgets.of("llama3").scaled(101)) == (101, 122)


@pytest.mark.parametrize(("budget", "reserve"), [(256, 64), (8000, 2000), (16_384, 4096), (1_000_000, ANSWER_MOST)])
def test_answer_reserve(budget: int, reserve: int) -> None:
    assert answer_reserve(budget) == reserve


# The cookbook's own example.
WEATHER = Tool(
    FunctionSpec(
        "get_current_weather",
        "Get the current weather in a given location",
        {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {
                    "type": "string",
                    "description": "The unit of temperature to return",
                    "enum": ["celsius", "fahrenheit"],
                },
            },
        },
    )
)


async def test_a_call_with_a_tool_counts_as_openai_says() -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant that can answer to questions about the weather."},
        {"role": "user", "content": "What's the weather like in San Francisco?"},
    ]
    budget = Budgets(Upstream()).of("gpt-4o")
    tools = tool_framing([WEATHER]) + await budget.tokens(list(tool_texts([WEATHER])))
    # 101 is what the notebook prints for gpt-4o, and what the API answered as prompt_tokens.
    assert await budget.cost(messages) + tools + 3 == 101


def test_nested_schemas_and_calls_are_counted() -> None:
    nested = Tool(
        FunctionSpec("f", None, {"properties": {"a": {"type": "object", "properties": {"deep": {}}}, "b": 1}})
    )
    assert any("deep" in text for text in tool_texts([nested]))
    assert list(tool_texts([Tool(FunctionSpec("f", None, {"properties": []}))])) == ["f:"]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    assert list(message_texts(message)) == ["assistant", "", "f", '{"x":1}', "f", '{"x":1}']
    assert message_framing([message]) == 3 + 2 * 8
    assert tool_framing([]) == 0
