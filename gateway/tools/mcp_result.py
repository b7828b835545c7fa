"""What an MCP server answered, as a JSON value."""

from __future__ import annotations

from typing import Any

from mcp import types

from gateway.tools.failure import ToolFailed, clipped


def json_value(result: types.CallToolResult) -> Any:
    """Its structured content if there is some; else a text, or a list of what it holds. What isn't text (pictures,
    sound, files) is named and left out: a result is for a model to read. Raises `ToolFailed` for a tool's error."""
    if result.is_error:
        said = " ".join(block.text for block in result.content if isinstance(block, types.TextContent))
        raise ToolFailed(clipped(said) or "the tool says that it failed, and not why")
    if result.structured_content is not None:
        return result.structured_content
    values = [_block(block) for block in result.content]
    return values[0] if len(values) == 1 else values or None


def _block(block: types.ContentBlock) -> Any:
    match block:
        case types.TextContent():
            return block.text
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return {"uri": str(resource.uri), "text": resource.text}
        case types.EmbeddedResource(resource=resource):
            return {"uri": str(resource.uri), "left_out": resource.mime_type or "a file"}
        case types.ResourceLink():
            return {"uri": str(block.uri), "name": block.name}
        case types.ImageContent() | types.AudioContent():
            return {"left_out": block.mime_type}
