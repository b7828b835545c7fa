"""The published schemas agree with the frames: every golden frame validates, every reference leads somewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from protocol import frames
from protocol.codes import CloseCode, ErrorCode
from protocol.schema import ANSWERS, asyncapi, openapi

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
DOCUMENTS = {"openapi": openapi("1.2.3"), "asyncapi": asyncapi("1.2.3")}


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_reference_leads_somewhere(name: str) -> None:
    document = DOCUMENTS[name]
    for node in walk(document):
        if isinstance(reference := node.get("$ref"), str):
            target: Any = document
            for step in reference.removeprefix("#/").split("/"):
                target = target[step]
            assert isinstance(target, dict)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_is_json_of_the_version_and_hides_what_is_for_the_log(name: str) -> None:
    document = DOCUMENTS[name]
    assert json.loads(json.dumps(document)) == document
    assert document["info"]["version"] == "1.2.3"
    schemas = document["components"]["schemas"]
    assert "options" not in schemas["Message"]["properties"]
    assert "role" in schemas["Message"]["required"]
    assert "memory" not in schemas["Context"]["properties"]
    assert not {"Options", "Memory"} & schemas.keys()


def test_openapi_has_the_endpoints_of_the_contract() -> None:
    operations = {
        f"{method.upper()} {path}"
        for path, item in DOCUMENTS["openapi"]["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert operations == {
        "POST /api/chat/stream",
        "GET /api/chat/stream",
        "POST /api/chat",
        "GET /api/conversations/{conversation_id}",
        "DELETE /api/conversations/{conversation_id}",
        "POST /api/conversations/{conversation_id}/cancel",
        "POST /api/conversations/{conversation_id}/function_results",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "GET /",
        "GET /openapi.json",
        "GET /asyncapi.json",
    }


def test_bodies_need_neither_type_nor_what_the_path_says() -> None:
    schemas = DOCUMENTS["openapi"]["components"]["schemas"]
    assert schemas["ChatMessageBody"]["required"] == ["message"]
    assert schemas["CancelBody"]["required"] == []
    assert schemas["FunctionResultBody"]["required"] == ["call_id"]


def test_asyncapi_has_every_frame_with_its_answer() -> None:
    document = DOCUMENTS["asyncapi"]
    kinds = [*get_args(frames.AnyClientFrame), *get_args(frames.AnyServerFrame)]
    assert set(document["components"]["messages"]) == {kind.__name__ for kind in kinds}
    assert set(ANSWERS) == {kind.__struct_config__.tag for kind in get_args(frames.AnyClientFrame)}
    cancel = document["operations"]["receiveCancel"]
    assert [message["$ref"].rpartition("/")[2] for message in cancel["reply"]["messages"]] == ["Cancelled", "Error"]
    for code in (*ErrorCode, *CloseCode):
        assert str(code.name if isinstance(code, ErrorCode) else code.value) in document["info"]["description"]


def conforms(value: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> bool:
    """The keywords that our schemas use, and no others."""
    if "$ref" in schema:
        return conforms(value, schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema and not any(conforms(value, option, schemas) for option in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(conforms(value, option, schemas) for option in schema["oneOf"]) != 1:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = schema.get("type", [])
    if kinds and not any(isinstance(value, PYTHON[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, list):
        return all(conforms(item, schema.get("items", {}), schemas) for item in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return set(schema.get("required", ())) <= set(value) and all(
            conforms(item, known.get(name, schema.get("additionalProperties", {}) or {}), schemas)
            for name, item in value.items()
        )
    return True


PYTHON: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def golden(file: str, part: str) -> list[dict[str, Any]]:
    return [case["frame"] for case in json.loads((VECTORS / file).read_text(encoding="utf-8"))[part]]


@pytest.mark.parametrize(
    ("kinds", "cases"),
    [
        (get_args(frames.AnyServerFrame), golden("frames.json", "frames")),
        (get_args(frames.AnyClientFrame), golden("client_frames.json", "valid")),
    ],
    ids=["server", "client"],
)
def test_golden_frames_conform(kinds: tuple[type[Any], ...], cases: list[dict[str, Any]]) -> None:
    schemas = DOCUMENTS["asyncapi"]["components"]["schemas"]
    names = {kind.__struct_config__.tag: kind.__name__ for kind in kinds}
    for frame in cases:
        schema = schemas[names[frame["type"]]]
        assert conforms(frame, schema, schemas), frame
        assert set(frame) <= set(schema["properties"]), frame
        assert not conforms({**frame, "type": "other"}, schema, schemas)
