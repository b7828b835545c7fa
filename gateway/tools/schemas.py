"""JSON Schema for function parameters: is a schema one, and do arguments fit it.

Both may come from outside: schemas from clients and MCP servers, arguments from models. So nothing is ever fetched,
sizes and depths are bounded, a regular expression stops after a bounded number of steps, and schemas that would take
forever are refused (`cost`). Everything here is synchronous and takes microseconds, a new schema of the largest
size some ten milliseconds.

`jsonschema-rs` does the work, not `jsonschema`: it bounds the backtracking of patterns, which Python's `re` can't
(`^(a+)+$` would stop the whole node), resolves references offline, and takes microseconds instead of milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson

from gateway.tools.cost import MAX_DEPTH, CostProblem, check_cost

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 64
MAX_ARGUMENTS_BYTES = 262_144
MAX_PROBLEMS = 5
"""Named in one answer; a model that got so many wrong has to start again anyway."""
_CACHED = 256
"""Compiled schemas; with their keys 16 MiB if all were of the largest size, usually below 1 MiB."""
_MAX_CHARS = 200
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1_048_576)
_Kind = jsonschema_rs.ValidationErrorKind


def schema_problem(parameters: Any) -> str | None:
    """Why `parameters` (decoded JSON) can't be a function's parameters: "`properties.n.type`: …", on one line.
    None: they can. `{}` means a function without parameters."""
    compiled = _compiled(parameters)
    return compiled if isinstance(compiled, str) else None


def arguments_problem(args: Any, parameters: dict[str, Any] | None) -> str | None:
    """What is wrong with a call's arguments, for the model to mend: "`city`: is missing; `n`: has to be integer".
    None: they fit. Values are never repeated. A schema that is itself wrong is the problem then."""
    if not isinstance(args, dict):
        return "the arguments have to be an object"
    problem = _size_problem(args, MAX_ARGUMENTS_BYTES, MAX_DEPTH)
    if problem is not None:
        return f"the arguments {problem}"
    if not parameters:
        return None
    validator = _compiled(parameters)
    if isinstance(validator, str):
        return f"the function's parameters are no JSON Schema: {validator}"
    found: list[str] = []
    try:
        for error in validator.iter_errors(args):
            found += [line for line in _problems(error) if line not in found]
            if len(found) >= MAX_PROBLEMS:
                break
    except ValueError as error:
        # The library's own limit.
        return f"the arguments can't be checked: {_short(str(error))}"
    return "; ".join(found[:MAX_PROBLEMS]) or None


def _compiled(parameters: Any) -> jsonschema_rs.Validator | str:
    if not isinstance(parameters, dict):
        return "has to be a JSON Schema object"
    problem = _size_problem(parameters, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH)
    return problem or _compile(orjson.dumps(parameters))


@lru_cache(maxsize=_CACHED)
def _compile(schema_json: bytes) -> jsonschema_rs.Validator | str:
    """The validator, or why there is none. Both are kept: a client that sends a wrong schema sends it again."""
    schema = orjson.loads(schema_json)
    if schema and schema.get("type") != "object":
        return '`type`: has to be "object"'
    try:
        check_cost(schema)
        # Not `meta.validate`, which would fetch an unknown `$schema`.
        validator = jsonschema_rs.validator_for(
            schema, pattern_options=_PATTERNS, offline=True, validate_formats=False, mask="the value"
        )
    except CostProblem as problem:
        return _located(problem.path, str(problem))
    except jsonschema_rs.ValidationError as error:
        if error.instance_path[-1:] == ["type"]:
            return f"{_at(error.instance_path)}: is no type that JSON Schema knows"
        return _located(error.instance_path, _short(error.message))
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        return _short(str(error))
    return validator


def _size_problem(value: Any, max_bytes: int, max_depth: int) -> str | None:
    if _deeper(value, max_depth):
        return f"may be nested {max_depth} levels deep at most"
    try:
        size = len(orjson.dumps(value))
    except TypeError as error:
        return f"can't be written as JSON: {_short(str(error))}"
    return f"may take {max_bytes} bytes at most" if size > max_bytes else None


def _deeper(value: Any, levels: int) -> bool:
    here = [value]
    while here:
        if levels < 0:
            return True
        levels -= 1
        below: list[Any] = []
        for part in here:
            if isinstance(part, dict):
                below.extend(part.values())
            elif isinstance(part, list):
                below.extend(part)
        here = below
    return False


def _problems(error: jsonschema_rs.ValidationError) -> list[str]:
    """In words that a model can act on."""
    path = error.instance_path
    match error.kind:
        case _Kind.Required(name):
            return [f"{_at([*path, _bare(name)])}: is missing"]
        case _Kind.AdditionalProperties(names) | _Kind.UnevaluatedProperties(names):
            return [f"{_at([*path, name])}: is not a parameter" for name in names]
        case _Kind.Type(types):
            return [_located(path, f"has to be {' or '.join(types)}")]
        case _Kind.Enum(options):
            return [_located(path, f"has to be one of {_short(_json(options)[1:-1])}")]
        case _Kind.Constant(expected):
            return [_located(path, f"has to be {_short(_json(expected))}")]
        case _Kind.Pattern(pattern):
            return [_located(path, f"has to match {_short(pattern)}")]
        case _Kind.FalseSchema() if "additionalProperties" in error.schema_path[-1:]:
            return [_located(path, "has to be empty") if path else "the function takes no arguments"]
        case _Kind.FalseSchema():
            return [_located(path, "is not allowed")]
        case _:
            return [_located(path, _short(error.message))]


def _bare(name: str) -> str:
    # The library hands a missing property's name on as JSON.
    return orjson.loads(name) if name[:1] == name[-1:] == '"' else name


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _at(path: Sequence[str | int]) -> str:
    return f"`{_short('.'.join(map(str, path)))}`"


def _located(path: Sequence[str | int], reason: str) -> str:
    return f"{_at(path)}: {reason}" if path else reason


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_CHARS else line[: _MAX_CHARS - 1] + "…"
