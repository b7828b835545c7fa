"""How many tokens a model call takes, and how many it may (measured in tokens throughout).

The framing constants and the cost of tool schemas are OpenAI's own, from the "How to count tokens" notebook of its
cookbook; for models of others they are an approximation, as the vocabulary is: see `approximation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from protocol.frames import Tool

MESSAGE_FRAME = 3
REPLY_PRIMING = 3
CALL_FRAME = 8
"""Around one function call: its id, the type, and the braces."""
TOOL_INIT, TOOL_END, PROPERTIES_INIT, PROPERTY_KEY, ENUM_INIT, ENUM_ITEM = 7, 12, 3, 3, -3, 3

OTHERS_FACTOR = 1.2
"""What a count by OpenAI's vocabulary is multiplied with for a model of somebody else. Measured against o200k with
the tokenisers of Llama 2 and 3.1, Mistral, Gemma 3, Qwen 3, DeepSeek 3 and Claude 2 (npm packages of November 2026):
English prose 0.99 to 1.14, Python 1.00 to 1.30, JSON 1.02 to 1.19, German 1.05 to 1.58, Chinese 0.76 to 1.51. It is on
the safe side for most text; what it misses comes out of the room for the answer."""
_OPENAI = re.compile(r"(?:ft:)?(?:gpt-|chatgpt|o\d(?:-|$)|text-)|(?:demo)?$")

WINDOWS_AS_OF = "2026-11"
WINDOWS: dict[str, int] = {
    # OpenAI
    "chatgpt-4o": 128_000,
    "gpt-3.5-turbo": 16_385,
    "gpt-35-turbo": 16_385,
    "gpt-4": 8_192,
    "gpt-4-turbo": 128_000,
    "gpt-4-0125": 128_000,
    "gpt-4-1106": 128_000,
    "gpt-4-32k": 32_768,
    "gpt-4.1": 1_047_576,
    "gpt-4.5": 128_000,
    "gpt-4o": 128_000,
    "gpt-5": 400_000,
    "gpt-5-chat": 128_000,
    "gpt-oss": 131_072,
    "o1": 200_000,
    "o1-mini": 128_000,
    "o1-preview": 128_000,
    "o3": 200_000,
    "o4-mini": 200_000,
    # others; names as at Hugging Face and in Ollama
    "claude": 200_000,
    "codestral": 32_768,
    "command-r": 128_000,
    "deepseek-chat": 128_000,
    "deepseek-r1": 131_072,
    "deepseek-reasoner": 128_000,
    "deepseek-v3": 131_072,
    "gemini": 1_048_576,
    "gemma-2": 8_192,
    "gemma-3": 131_072,
    "gemma-3-1b": 32_768,
    "gemma2": 8_192,
    "gemma3": 131_072,
    "gemma3:1b": 32_768,
    "llama-2": 4_096,
    "llama-3": 8_192,
    "llama-3.": 131_072,
    "llama2": 4_096,
    "llama3": 8_192,
    "llama3.": 131_072,
    "meta-llama-3": 8_192,
    "meta-llama-3.1": 131_072,
    "mistral-7b": 32_768,
    "mistral-large": 131_072,
    "mistral-small": 32_768,
    "mixtral-8x7b": 32_768,
    "mixtral-8x22b": 65_536,
    "phi-4": 16_384,
    "qwen2.5": 32_768,
    "qwen3": 32_768,
    "smollm2": 8_192,
}
"""Context windows as their makers state them; the longest prefix of a model's name counts. Where variants of one name
differ, the smaller one: a local server may have been started with less still, hence the setting `MODEL_WINDOW`."""

ANSWER_SHARE = 4
"""A quarter of the budget is kept for the answer, but at most `ANSWER_MOST` tokens."""
ANSWER_MOST = 4096


def known_window(model: str) -> int | None:
    """The context window of a common model, with or without its maker's name before a slash; None: not known."""
    name = model.rpartition("/")[2].removeprefix("ft:").lower()
    return next((WINDOWS[name[:end]] for end in range(len(name), 0, -1) if name[:end] in WINDOWS), None)


def approximation(model: str) -> float:
    """What its count by OpenAI's vocabulary is multiplied with: 1 for OpenAI's own models, where it is exact."""
    return 1.0 if _OPENAI.match(model.rpartition("/")[2].lower()) else OTHERS_FACTOR


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
