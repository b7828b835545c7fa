"""What becomes of each kind of content that an MCP server may answer with."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import types

from gateway.tools.failure import MAX_MESSAGE_CHARS, ToolFailed
from gateway.tools.mcp_result import json_value

TEXT = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    ("content", "structured", "value"),
    [
        ([], None, None),
        ([TEXT], None, "hi"),
        ([TEXT, TEXT], None, ["hi", "hi"]),
        ([TEXT], {"a": 1}, {"a": 1}),
        ([{"type": "audio", "data": "QUJD", "mimeType": "audio/wav"}], None, {"left_out": "audio/wav"}),
        ([{"type": "resource_link", "uri": "file:///a", "name": "a"}], None, {"uri": "file:///a", "name": "a"}),
        ([{"type": "resource", "resource": {"uri": "x:a", "text": "t"}}], None, {"uri": "x:a", "text": "t"}),
        (
            [{"type": "resource", "resource": {"uri": "x:a", "blob": "QUJD"}}],
            None,
            {"uri": "x:a", "left_out": "a file"},
        ),
    ],
)
def test_results(content: list[Any], structured: Any, value: Any) -> None:
    result = types.CallToolResult.model_validate({"content": content, "structuredContent": structured})
    assert json_value(result) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([TEXT, {"type": "text", "text": "\nthere"}], "hi there"),
        ([], "the tool says that it failed, and not why"),
        ([{"type": "text", "text": "x" * 9999}], "x" * (MAX_MESSAGE_CHARS - 1) + "…"),
    ],
)
def test_errors(content: list[Any], message: str) -> None:
    with pytest.raises(ToolFailed) as failed:
        json_value(types.CallToolResult.model_validate({"content": content, "isError": True}))
    assert str(failed.value) == message
