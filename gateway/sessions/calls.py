"""Whole function calls out of fragments: arguments arrive in pieces, several calls interleave by index."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from gateway.models.model import CallFragment, ModelError
from protocol.codes import ErrorCode

MAX_ARGUMENTS_CHARS = 1 << 20


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
        """Raises `ModelError` (`STREAM_ERROR`) when the arguments pass `MAX_ARGUMENTS_CHARS`."""
        self._chars += len(fragment.arguments)
        if self._chars > MAX_ARGUMENTS_CHARS:
            raise _broken("The model's function arguments are longer than a million characters")
        pieces = self._arguments.setdefault(fragment.index, [])
        if fragment.name and fragment.index not in self._names:
            self._names[fragment.index] = fragment.name
        if fragment.arguments:
            pieces.append(fragment.arguments)

    def whole(self) -> list[WholeCall]:
        """The calls in the order of their index. Raises `ModelError` when one has no name or no JSON object."""
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
    return args


def _broken(message: str) -> ModelError:
    return ModelError(ErrorCode.STREAM_ERROR, message, transient=False)
