"""JSON Schema: which are refused and where, what models are told of their arguments, and that nothing takes forever."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tools.cost import MAX_DEPTH
from gateway.tools.schemas import (
    MAX_ARGUMENTS_BYTES,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    _compile,
    arguments_problem,
    schema_problem,
)

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}, "required": ["city"]}
PLENTY_S = 1.0
"""What would take forever takes hours; what is refused, milliseconds."""


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"not": schema}
    return of(a=schema)


def doubling(steps: int, wrap: str) -> dict[str, Any]:
    """Each step refers to the next one twice: in place, or one level deeper in the value."""
    defs: dict[str, Any] = {f"d{steps}": {"type": "string"}}
    for step in range(steps):
        once = {"$ref": f"#/$defs/d{step + 1}"}
        defs[f"d{step}"] = {"allOf": [once, once] if wrap == "" else [{wrap: once}, {wrap: once}]}
    return {"type": "object", "$defs": defs, "properties": {"x": {"$ref": "#/$defs/d0"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        CITY,
        of(a={"type": ["string", "null"], "enum": ["x", None]}),
        # As zod, pydantic and .NET write them.
        {"$schema": "http://json-schema.org/draft-07/schema#", **CITY, "additionalProperties": False},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:x", **CITY},
        {"type": "object", "definitions": {"a": {"type": "string"}}, "properties": {"p": {"$ref": "#/definitions/a"}}},
        {"type": "object", "$defs": {"a/b~c d": {}}, "properties": {"p": {"$ref": "#/$defs/a~1b~0c%20d"}}},
        # Trees and lists of themselves.
        of(left={"$ref": "#"}, right={"$ref": "#"}),
        of(children={"type": "array", "items": {"$ref": "#"}}),
        of(node={"anyOf": [{"type": "null"}, {"$ref": "#"}]}),
        # Properties that are called like keywords.
        of(**{"$ref": {"type": "string"}, "$id": {"type": "string"}, "type": {"type": "string"}}),
        doubling(5, ""),
    ],
)
def test_schemas_that_can_be_used(schema: dict[str, Any]) -> None:
    assert schema_problem(schema) is None


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (None, "has to be a JSON Schema object"),
        ([], "has to be a JSON Schema object"),
        (True, "has to be a JSON Schema object"),
        ({"properties": {}}, '`type`: has to be "object"'),
        ({"type": "string"}, '`type`: has to be "object"'),
        (of(a={"type": "strin"}), "`properties.a.type`: is no type that JSON Schema knows"),
        (
            of(a={"properties": {"b": {"minimum": "1"}}}),
            '`properties.a.properties.b.minimum`: the value is not of type "number"',
        ),
        ({"type": "object", "required": "city"}, '`required`: the value is not of type "array"'),
        ({"type": "object", "properties": [1]}, '`properties`: the value is not of type "object"'),
        (of(a={"pattern": "("}), '`properties.a.pattern`: the value is not a "regex"'),
        (
            of(a={"$ref": "https://example.com/s.json"}),
            "`properties.a.$ref`: has to point into this schema, such as #/$defs/name",
        ),
        (
            of(a={"$ref": "file:///etc/passwd"}),
            "`properties.a.$ref`: has to point into this schema, such as #/$defs/name",
        ),
        (of(a={"items": {"$ref": "#/$defs/b"}}), "`properties.a.items.$ref`: points to nothing in this schema"),
        (
            of(a={"anyOf": [{"$dynamicRef": "#n"}]}),
            "`properties.a.anyOf.0.$dynamicRef`: has to point into this schema, such as #/$defs/name",
        ),
        (of(a={"$id": "https://example.com/a"}), "`properties.a.$id`: may only stand at the top of the schema"),
        ({"type": "object", "allOf": [{"$ref": "#"}]}, "refers to itself without end"),
        (doubling(60, ""), "would check the same value too many times; use fewer references"),
        (doubling(60, "additionalProperties"), "would check the same value too many times; use fewer references"),
        (nested(MAX_SCHEMA_DEPTH), f"may be nested {MAX_SCHEMA_DEPTH} levels deep at most"),
        (of(a={"description": "x" * MAX_SCHEMA_BYTES}), f"may take {MAX_SCHEMA_BYTES} bytes at most"),
        (of(a={"const": 2**70}), "can't be written as JSON: Integer exceeds 64-bit range"),
    ],
)
def test_schemas_that_can_not(schema: Any, problem: str) -> None:
    started = time.monotonic()
    assert schema_problem(schema) == problem
    assert time.monotonic() - started < PLENTY_S


def test_an_unknown_dialect_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/dialect"
        problem = schema_problem({"$schema": url, "type": "object"})
        assert problem is not None
        assert problem.startswith(f"Unknown meta-schema: '{url}'")
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    ("args", "schema", "problem"),
    [
        ({"city": "Oslo", "n": 1}, CITY, None),
        ({"city": "Oslo", "more": []}, CITY, None),
        ({"anything": 1}, {}, None),
        ({"anything": 1}, None, None),
        ({}, CITY, "`city`: is missing"),
        ({"n": "1"}, CITY, "`city`: is missing; `n`: has to be integer"),
        ([], CITY, "the arguments have to be an object"),
        ("{}", None, "the arguments have to be an object"),
        ({"a": 5}, of(a={"type": ["string", "null"]}), "`a`: has to be null or string"),
        ({"a": [1, "x"]}, of(a={"type": "array", "items": {"type": "integer"}}), "`a.1`: has to be integer"),
        ({"a": {"b": {}}}, of(a=of(b=CITY)), "`a.b.city`: is missing"),
        ({"a": "z"}, of(a={"enum": ["x", 1, None]}), '`a`: has to be one of "x",1,null'),
        ({"a": "z"}, of(a={"const": "y"}), '`a`: has to be "y"'),
        ({"a": "zz"}, of(a={"pattern": "^[0-9]+$"}), "`a`: has to match ^[0-9]+$"),
        ({"a": 1, "b": 2}, of(a={}) | {"additionalProperties": False}, "`b`: is not a parameter"),
        ({"b": 2}, {"type": "object", "additionalProperties": False}, "the function takes no arguments"),
        ({"a": 1}, of(a=False), "`a`: is not allowed"),
        ({"a": 1}, of(a={"minimum": 3}), "`a`: the value is less than the minimum of 3"),
        ({"a": "hush"}, of(a={"maxLength": 3}), "`a`: the value is longer than 3 characters"),
        (
            {"a": 1},
            of(a={"type": "strin"}),
            "the function's parameters are no JSON Schema: `properties.a.type`: is no type that JSON Schema knows",
        ),
        ({"a": "x" * MAX_ARGUMENTS_BYTES}, CITY, f"the arguments may take {MAX_ARGUMENTS_BYTES} bytes at most"),
        (
            {str(n): n for n in range(9)},
            of() | {"additionalProperties": False},
            "; ".join(f"`{n}`: is not a parameter" for n in range(5)),
        ),
    ],
)
def test_arguments(args: Any, schema: dict[str, Any] | None, problem: str | None) -> None:
    assert arguments_problem(args, schema) == problem


def test_arguments_that_are_nested_too_deeply() -> None:
    args: dict[str, Any] = {}
    for _ in range(MAX_DEPTH + 1):
        args = {"a": args}
    assert arguments_problem(args, None) == f"the arguments may be nested {MAX_DEPTH} levels deep at most"


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(?=.*b)(a|aa)+$", r"^(a+)+\1$"])
def test_a_pattern_that_explodes_elsewhere(pattern: str) -> None:
    started = time.monotonic()
    arguments_problem({"p": "a" * 50_000 + "!"}, of(p={"pattern": pattern}))
    assert time.monotonic() - started < PLENTY_S


def test_the_deepest_value_against_a_schema_at_the_limit() -> None:
    args: dict[str, Any] = {}
    for _ in range(MAX_DEPTH):
        args = {"left": args}
    started = time.monotonic()
    assert arguments_problem(args, of(left={"$ref": "#"}, right={"$ref": "#"})) is None
    assert time.monotonic() - started < PLENTY_S


def test_compiled_schemas_are_kept_and_bounded() -> None:
    _compile.cache_clear()
    for _ in range(3):
        assert arguments_problem({}, CITY) == "`city`: is missing"
    assert (_compile.cache_info().misses, _compile.cache_info().hits) == (1, 2)
    for number in range(1000):
        schema_problem(of(**{f"p{number}": {}}))
    assert _compile.cache_info().currsize == 256


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keywords = st.sampled_from(
    ["type", "properties", "items", "$ref", "allOf", "anyOf", "not", "enum", "$defs", "$id", "dependencies", "pattern"]
)
schemas = st.recursive(
    json_values | st.sampled_from(["#", "#/$defs", "#/properties/a", "object", "string"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords | st.sampled_from("ab"), inner, max_size=4),
    max_leaves=20,
)


@given(schemas, json_values)
def test_any_json_is_a_schema_or_a_problem_on_one_line(schema: Any, args: Any) -> None:
    if isinstance(schema, dict):
        schema["type"] = "object"
    problem = schema_problem(schema)
    assert problem is None or (problem and "\n" not in problem)
    if isinstance(schema, dict):
        found = arguments_problem(args, schema)
        assert found is None or (found and "\n" not in found)
