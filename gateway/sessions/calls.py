"""Whole function calls out of fragments: arguments arrive in pieces, several calls interleave by index."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from gateway.models.model import CallFragment, ModelError
from protocol.checks import json_problem
from protocol.codes import ErrorCode

MAX_ARGUMENTS_CHARS = 1 << 20
MAX_CALLS = 128
"""In one round."""


class WholeCall(NamedTuple):
    name: str
    args: dict[str, Any]


class CallAssembler:
    """Takes the fragments of one model call."""

    __slots__ = ("_arguments", "_chars", "_names")

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._arguments: dict[int, list[str]] = {}
        self._chars = 0

    def add(self, fragment: CallFragment) -> None:
        """Raises `ModelError` (`STREAM_ERROR`) past `MAX_ARGUMENTS_CHARS`, of all calls together, and `MAX_CALLS`."""
        self._chars += len(fragment.arguments) + len(fragment.name or "")
        if self._chars > MAX_ARGUMENTS_CHARS:
            raise _broken("The model's function arguments are longer than a million characters")
        pieces = self._arguments.setdefault(fragment.index, [])
        if len(self._arguments) > MAX_CALLS:
            raise _broken(f"The model asked for more than {MAX_CALLS} calls at once")
        if fragment.name and fragment.index not in self._names:
            self._names[fragment.index] = fragment.name
        if fragment.arguments:
            pieces.append(fragment.arguments)

    def whole(self) -> list[WholeCall]:
        """The calls in the order of their index. Raises `ModelError` when one has no name, or has no JSON
        object of at most 128 levels."""
        calls = []
        for index in sorted(self._arguments):
            name = self._names.get(index)
            if name is None:
                raise _broken("The model asked for a function without naming it")
            calls.append(WholeCall(name, _parsed(name, "".join(self._arguments[index]))))
        return calls


def _parsed(name: str, text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        args = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _broken(f"The model's arguments for {name[:64]} aren't valid JSON") from None
    if not isinstance(args, dict):
        raise _broken(f"The model's arguments for {name[:64]} aren't a JSON object")
    if problem := json_problem(args):
        raise _broken(f"What the model passes to {name[:64]} {problem}")
    return args


def _broken(message: str) -> ModelError:
    return ModelError(ErrorCode.STREAM_ERROR, message, transient=False)


def same_json(one: Any, other: Any) -> bool:
    """Whether two results are equal as JSON values: unlike in Python `true` isn't 1 (SPEC.md section 5.2)."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)
