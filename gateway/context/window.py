"""How many tokens a model call takes, and how many it may (measured in tokens throughout).

The framing constants and the cost of tool schemas are OpenAI's own, from the "How to count tokens" notebook of its
cookbook; for models of others they are an approximation, as the vocabulary is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from protocol.frames import Tool

MESSAGE_FRAME = 3
REPLY_PRIMING = 3
CALL_FRAME = 8
"""Around one function call: its id, the type, and the braces."""
TOOL_INIT, TOOL_END, PROPERTIES_INIT, PROPERTY_KEY, ENUM_INIT, ENUM_ITEM = 7, 12, 3, 3, -3, 3

ANSWER_SHARE = 4
"""A quarter of the budget is kept for the answer, but at most `ANSWER_MOST` tokens."""
ANSWER_MOST = 4096


def answer_reserve(budget: int) -> int:
    """Tokens of `budget` that are kept for the answer."""
    return min(ANSWER_MOST, budget // ANSWER_SHARE)


def message_texts(message: dict[str, Any]) -> Iterator[str]:
    """Everything in one chat message that the model reads as text."""
    yield message["role"]
    yield message.get("content") or ""
    for call in message.get("tool_calls", ()):
        yield call["function"]["name"]
        yield call["function"]["arguments"]


def message_framing(messages: Iterable[dict[str, Any]]) -> int:
    """What the messages cost beside their texts."""
    return sum(MESSAGE_FRAME + CALL_FRAME * len(message.get("tool_calls", ())) for message in messages)


def tool_texts(tools: Sequence[Tool]) -> Iterator[str]:
    """Everything in the tools' schemas that the model reads as text."""
    for tool in tools:
        spec = tool.function
        yield f"{spec.name}:{(spec.description or '').rstrip('.')}"
        for key, value in _properties(tool).items():
            plain = value if isinstance(value, dict) else {}
            yield f"{key}:{plain.get('type', '')}:{str(plain.get('description', '')).rstrip('.')}"
            yield from (str(option) for option in plain.get("enum", ()))
            if nested := {name: plain[name] for name in ("properties", "items", "anyOf") if name in plain}:
                yield orjson.dumps(nested).decode()


def tool_framing(tools: Sequence[Tool]) -> int:
    """What the schemas cost beside their texts."""
    total = TOOL_END if tools else 0
    for tool in tools:
        total += TOOL_INIT
        if properties := _properties(tool):
            total += PROPERTIES_INIT
        for value in properties.values():
            total += PROPERTY_KEY
            if isinstance(value, dict) and "enum" in value:
                total += ENUM_INIT + ENUM_ITEM * len(value["enum"])
    return total


def _properties(tool: Tool) -> dict[str, Any]:
    properties = (tool.function.parameters or {}).get("properties")
    return properties if isinstance(properties, dict) else {}
