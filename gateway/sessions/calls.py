"""Whole function calls out of fragments: arguments arrive in pieces, several calls interleave by index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from msgspec import UNSET, UnsetType

from gateway.models.model import CallFragment, ModelError
from gateway.tools.schemas import arguments_problem, schema_problem
from gateway.tools.toolbox import Toolbox
from protocol.checks import json_problem
from protocol.codes import ErrorCode, Refusal
from protocol.frames import Tool

MAX_ARGUMENTS_CHARS = 1 << 20
DECLINED = "the user declined this call"
MAX_CALLS = 128
"""In one round."""
NOT_RUN = "not run, since another call of this round is broken"


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

    def whole(self, tools: Mapping[str, Tool]) -> list[WholeCall] | BrokenCalls:
        """The calls in the order of their index, checked against the schemas of `tools` (by name); what isn't among
        them is the client's to judge. `BrokenCalls` when any of them can't be made."""
        asked = [(self._names.get(index, ""), "".join(self._arguments[index])) for index in sorted(self._arguments)]
        calls: list[WholeCall] = []
        problems: list[str | None] = []
        for name, text in asked:
            made = _checked(name, text, tools.get(name))
            problems.append(made if isinstance(made, str) else None)
            if isinstance(made, WholeCall):
                calls.append(made)
        return BrokenCalls(asked, problems) if any(problems) else calls


class BrokenCalls:
    """Calls of one round of which at least one can't be made, and so none is."""

    def __init__(self, asked: Sequence[tuple[str, str]], problems: Sequence[str | None]) -> None:
        self._asked = asked
        self._each = problems

    @property
    def problems(self) -> list[str]:
        each = zip(self._asked, self._each, strict=True)
        return [f"{usable(name)}: {problem}" for (name, _), problem in each if problem]

    def messages(self, said: str) -> list[dict[str, Any]]:
        """What tells the model: its own call, after what it `said`, and an error in place of each result."""
        ids = [f"call_{place}" for place in range(len(self._asked))]
        calls = [
            {"id": call_id, "type": "function", "function": {"name": usable(name), "arguments": text}}
            for call_id, (name, text) in zip(ids, self._asked, strict=True)
        ]
        errors = [
            {"role": "tool", "tool_call_id": call_id, "content": f"error: {problem or NOT_RUN}"}
            for call_id, problem in zip(ids, self._each, strict=True)
        ]
        return [{"role": "assistant", "content": said or None, "tool_calls": calls}, *errors]


def usable(name: str) -> str:
    """`name` in the alphabet of function names."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "unnamed"


def _checked(name: str, text: str, tool: Tool | None) -> WholeCall | str:
    """The call, or what is wrong with it."""
    if not name or usable(name) != name:
        return "a function's name has 1 to 64 characters of A-Z a-z 0-9 _ -"
    try:
        args = orjson.loads(text) if text.strip() else {}
    except orjson.JSONDecodeError:
        return "the arguments aren't valid JSON"
    if not isinstance(args, dict):
        return "the arguments have to be a JSON object"
    if problem := json_problem(args):
        return f"the arguments {problem}"
    if tool is not None and (problem := arguments_problem(args, tool.function.parameters)):
        return problem
    return WholeCall(name, args)


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


def approval(result: Any, error: str | UnsetType) -> tuple[bool, str | UnsetType]:
    """A user's word on a call: whether it may be made, and if not, what stands as its error.

    `true` or `{"approved": true}`; `false`, `{"approved": false}`, or an error with the reason. Raises `Refusal`
    (`BAD_FRAME`) for anything else.
    """
    if isinstance(error, str):
        return False, error
    word = result.get("approved") if isinstance(result, dict) else result
    if not isinstance(word, bool):
        raise Refusal(ErrorCode.BAD_FRAME, "`result` has to be true or false here: the call waits for approval.")
    return word, UNSET if word else DECLINED


def check_tools(tools: Sequence[Tool], toolbox: Toolbox) -> None:
    """Raises `Refusal` (`BAD_FRAME`) for a client's tool whose parameters are no JSON Schema, or that has the name
    of one of the gateway's own."""
    for place, tool in enumerate(tools):
        where = f"`tools[{place}].function"
        if toolbox.runs(tool.function.name) != "client":
            raise Refusal(ErrorCode.BAD_FRAME, f"{where}.name` is a tool of the gateway itself; choose another name.")
        if tool.function.parameters is not None and (problem := schema_problem(tool.function.parameters)):
            raise Refusal(ErrorCode.BAD_FRAME, f"{where}.parameters` has to be a JSON Schema: {problem}")
