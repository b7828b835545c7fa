"""The demo model's function calls: what was asked for, which offered tool fits, and what came back."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gateway.models.model import CallFragment
from protocol.frames import Tool

MAX_CALLS = 16
MAX_RESULT_CHARS = 600
_PIECE_CHARS = 9

_NAME = re.compile(r"\s*([A-Za-z0-9_\-]{1,64})\s*")
_WORD = re.compile(r"[^\W\d_]{4,}")
_PLACE = re.compile(r"\b(?:in|for|of|at|to|from|about|on)\s+([^\W\d_][\w'\-]*(?:\s+[A-ZÀ-Þ][\w'\-]*)*)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_QUOTED = re.compile(r"[\"“„«]([^\"”“»]+)[\"”“»]")
_COMMON_WORDS = (
    "about also call find from function give have into list look make name only return returns search some tell that "
    "then this tool used user what when which will with your"
)
_COMMON = frozenset(_COMMON_WORDS.split())


class Call(NamedTuple):
    name: str
    arguments: str
    """JSON, unless the user asked for something else."""


def asked_calls(rest: str) -> list[Call]:
    """From `NAME {…} NAME {…}`. What is no JSON is passed on as it is, to see what becomes of a model's mistake."""
    calls: list[Call] = []
    at = 0
    while len(calls) < MAX_CALLS and (match := _NAME.match(rest, at)):
        at = match.end()
        arguments = "{}"
        if rest[at : at + 1] in ("{", "["):
            try:
                _, end = json.JSONDecoder().raw_decode(rest, at)
            except (ValueError, RecursionError):
                end = len(rest)
            arguments, at = rest[at:end], end
        calls.append(Call(match.group(1), arguments))
    return calls


def fitting_calls(question: str, tools: Sequence[Tool]) -> list[Call]:
    """A call of the offered tool that the question is about; none when none clearly is. A word of its name counts
    twice a word of its description, and a spelled-out name is enough by itself."""
    asked = {word.lower() for word in _WORD.findall(question)}
    best, best_score = None, 1
    for tool in tools:
        spec = tool.function
        if re.search(rf"(?<!\w){re.escape(spec.name)}(?!\w)", question):
            score = 100
        else:
            in_name = asked & _meaning(re.sub(r"([a-z])([A-Z])|[_\-]", r"\1 \2", spec.name))
            score = 2 * len(in_name) + len(asked & _meaning(spec.description or "") - in_name)
        if score > best_score:
            best, best_score = tool, score
    if best is None:
        return []
    return [Call(best.function.name, json.dumps(_arguments(best, question), ensure_ascii=False))]


def call_steps(calls: Sequence[Call], chance: random.Random) -> Iterator[CallFragment]:
    """As real models send them: id and name first, then the arguments in pieces, those of several calls interleaved."""
    for index, call in enumerate(calls):
        yield CallFragment(index, f"call_{chance.getrandbits(64):016x}", call.name, "")
    longest = max((len(call.arguments) for call in calls), default=0)
    for at in range(0, longest, _PIECE_CHARS):
        for index, call in enumerate(calls):
            if piece := call.arguments[at : at + _PIECE_CHARS]:
                yield CallFragment(index, None, None, piece)


def results_of(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, bool]]:
    """(name, result as markdown, failed) of the results at the conversation's end, in their order."""
    first = len(messages)
    while first and messages[first - 1].get("role") == "tool":
        first -= 1
    names: dict[object, str] = {}
    for call in (messages[first - 1].get("tool_calls") or ()) if first else ():
        names[call.get("id")] = str((call.get("function") or {}).get("name"))
    for message in messages[first:]:
        shown, failed = _shown(message.get("content"))
        yield names.get(message.get("tool_call_id"), "the function"), shown, failed


def _shown(content: object) -> tuple[str, bool]:
    raw = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = raw
    if isinstance(value, dict) and "error" in value:
        return _plain(value["error"]), True
    if isinstance(value, dict) and value:
        return _cut("\n".join(f"- **{key}**: {_plain(item)}" for key, item in value.items())), False
    return _cut("> " + _plain(value).replace("\n", "\n> ")), False


def _plain(value: object) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(shown: str) -> str:
    return shown if len(shown) <= MAX_RESULT_CHARS else shown[: MAX_RESULT_CHARS - 1] + "…"


def _meaning(words: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(words)} - _COMMON


def _arguments(tool: Tool, question: str) -> dict[str, Any]:
    """Something sensible for each required property, or for all when none is said to be required."""
    schema = tool.function.parameters or {}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    required = schema.get("required")
    wanted = [key for key in required if key in properties] if isinstance(required, list) and required else properties
    return {key: _value(properties[key], question) for key in wanted}


def _value(schema: object, question: str) -> Any:
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(choices := schema.get("enum"), list) and choices:
        said_words = {word.lower() for word in re.findall(r"\w+", question)}
        return next((choice for choice in choices if str(choice).lower() in said_words), choices[0])
    number = _NUMBER.search(question)
    match schema.get("type"):
        case "integer":
            return int(float(number.group())) if number else int(schema.get("minimum", 1))
        case "number":
            return float(number.group()) if number else schema.get("minimum", 1.0)
        case "boolean":
            return True
        case "array":
            return [_value(schema.get("items"), question)]
        case "object":
            inner = schema.get("properties")
            return {k: _value(v, question) for k, v in inner.items()} if isinstance(inner, dict) else {}
        case _:
            said = _QUOTED.search(question) or _PLACE.search(question)
            return said.group(1) if said else question.strip(" ?!.")
