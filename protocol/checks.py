"""The rules about client frames that types don't express (SPEC.md section 5)."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET

from protocol.frames import MAX_METADATA_BYTES, AnyClientFrame, ChatMessage, ClientFunctionResult, Tool
from protocol.refusals import BAD, MAX_REF_CHARS, BadFrame

MAX_NESTING = 128
"""Levels of arrays and objects in `metadata`, `result` and `parameters`, so that whatever was accepted can also be
encoded again from any depth of the stack."""

_encode_json: Final = msgspec.json.Encoder().encode


def check(frame: AnyClientFrame) -> None:
    """Raises `BadFrame` for a frame that its types allow and the rules don't."""
    ref_fits = frame.ref is None or len(frame.ref) <= MAX_REF_CHARS
    if ref_fits:
        match frame:
            case ChatMessage(tools=None, metadata=None):
                return
            case ChatMessage():
                problem = _metadata_problem(frame.metadata) or _tools_problem(frame.tools or [])
            case ClientFunctionResult():
                problem = _result_problem(frame)
            case _:
                return
        if problem is None:
            return
    else:
        problem = ("ref", f"`ref` has to be a string of at most {MAX_REF_CHARS} characters")
    field, message = problem
    raise BadFrame(
        BAD,
        message,
        field=field,
        ref=frame.ref if ref_fits else None,
        conversation_id=getattr(frame, "conversation_id", None),
    )


def _metadata_problem(metadata: dict[str, Any] | None) -> tuple[str, str] | None:
    if metadata is None:
        return None
    if problem := json_problem(metadata):
        return "metadata", f"`metadata` {problem}"
    if (size_bytes := len(_encode_json(metadata))) > MAX_METADATA_BYTES:
        return "metadata", f"`metadata` has to be at most {MAX_METADATA_BYTES} bytes of JSON, not {size_bytes}"
    return None


def _tools_problem(tools: list[Tool]) -> tuple[str, str] | None:
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.function.name in names:
            field = f"tools[{i}].function.name"
            return field, f"`{field}` has to be unique: an earlier tool has the same name"
        names.add(tool.function.name)
        if problem := json_problem(tool.function.parameters):
            field = f"tools[{i}].function.parameters"
            return field, f"`{field}` {problem}"
    return None


def _result_problem(frame: ClientFunctionResult) -> tuple[str, str] | None:
    if (frame.result is UNSET) == (frame.error is UNSET):
        found = "neither" if frame.result is UNSET else "both"
        return "result", f"`function_result` has to carry exactly one of `result` and `error`, not {found}"
    if frame.result is not UNSET and (problem := json_problem(frame.result)):
        return "result", f"`result` {problem}"
    return None


def json_problem(value: object) -> str | None:
    """Why a decoded value can't be passed on as JSON (SPEC.md section 4.3); None when it can.

    MessagePack knows more kinds of values than JSON does, and both know longer integers than encoders take.
    """
    level, depth = [value], 0
    while level:
        below: list[object] = []
        for item in level:
            if type(item) is dict:
                if not all(type(key) is str for key in item):
                    return "holds an object with a key that isn't a string"
                below += item.values()
            elif type(item) is list:
                below += item
            elif problem := _scalar_problem(item):
                return problem
            else:
                continue
            if depth == MAX_NESTING:
                return f"is nested deeper than {MAX_NESTING} levels"
        level, depth = below, depth + 1
    return None


def _scalar_problem(value: object) -> str | None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**64 else "holds a whole number of more than 64 bits"
    if isinstance(value, float):
        # NaN is the one value that differs from itself; the difference of an infinity with itself is NaN.
        return None if value - value == 0 else "holds a number that is infinite or not a number"
    return "holds binary data; JSON has none"
