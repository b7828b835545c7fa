"""MCP over streamable HTTP: the SDK's own server (2026-07-28, without sessions), and one of the handshake era."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from aiohttp import web
from mcp.server.mcpserver import MCPServer

from gateway.tools.failure import ToolFailed


def sdk_server() -> MCPServer:
    server = MCPServer("sdk")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds"""
        return a + b

    @server.tool()
    async def forever() -> str:
        await asyncio.Event().wait()
        return ""

    return server


@asynccontextmanager
async def running(listener: socket.socket) -> AsyncIterator[None]:
    app = sdk_server().streamable_http_app(host="127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=0))
    # The test's process keeps its own signal handlers.
    server.capture_signals = no_signals  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        await task


def no_signals() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def listening(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


async def test_the_sdks_own_server(opened: Any) -> None:
    listener = listening()
    port = listener.getsockname()[1]
    async with (
        running(listener),
        opened(mcp={"sdk": {"url": f"http://127.0.0.1:{port}/mcp", "timeout_s": 20}}) as toolbox,
    ):
        assert [spec.function.name for spec in toolbox.specs] == ["add", "forever"]
        assert await toolbox.run("add", {"a": 1, "b": 2}, call_id="c") == {"result": 3}
        with pytest.raises(ToolFailed, match="validation error"):
            await toolbox.run("add", {"a": "x"}, call_id="c")


async def test_the_server_goes_and_comes_back(opened: Any) -> None:
    listener = listening()
    port = listener.getsockname()[1]
    settings = {"sdk": {"url": f"http://127.0.0.1:{port}/mcp", "timeout_s": 20}}
    first = running(listener)
    await first.__aenter__()
    async with opened(mcp=settings) as toolbox:
        hanging = asyncio.create_task(toolbox.run("forever", {}, call_id="c"))
        assert await toolbox.run("add", {"a": 1, "b": 2}, call_id="c") == {"result": 3}
        await first.__aexit__(None, None, None)
        with pytest.raises(ToolFailed):
            await hanging
        with pytest.raises(ToolFailed):
            await toolbox.run("add", {"a": 1, "b": 2}, call_id="c")
        async with running(listening(port)):
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await toolbox.run("add", {"a": 2, "b": 2}, call_id="c") == {"result": 4}
                        break
                    except ToolFailed:
                        await asyncio.sleep(0.05)


class OldServer:
    """2025-11-25 over HTTP, JSON answers: keeps sessions, and forgets them when told to."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.seen_headers: list[str | None] = []
        self.ended = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.seen_headers.append(request.headers.get("Authorization"))
        session = request.headers.get("mcp-session-id")
        if request.method == "GET":
            return web.Response(status=405)
        if request.method == "DELETE":
            self.ended += 1
            return web.Response(status=204)
        message = json.loads(await request.text())
        if message["method"] not in ("initialize", "server/discover") and session not in self.sessions:
            return web.Response(status=404)
        if "id" not in message:
            return web.Response(status=202)
        headers = {}
        match message["method"]:
            case "initialize":
                session = f"s{len(self.seen_headers)}"
                self.sessions.add(session)
                headers["mcp-session-id"] = session
                result: Any = {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "old", "version": "1"},
                }
            case "tools/list":
                schema = {"type": "object"}
                result = {"tools": [{"name": "hello", "inputSchema": schema}, {"name": "boom", "inputSchema": schema}]}
            case "tools/call" if message["params"]["name"] == "hello":
                result = {"content": [{"type": "text", "text": "hello"}]}
            case "tools/call":
                error = {"code": -32000, "message": "boom\nat line 3"}
                return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})
            case _:
                error = {"code": -32601, "message": "Method not found"}
                return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result}, headers=headers)


async def test_a_server_of_the_handshake_era(opened: Any, serve: Any) -> None:
    old = OldServer()
    base = await serve(old.handle)
    settings = {"url": f"{base}/mcp", "headers": {"Authorization": "Bearer hush"}, "timeout_s": 20}
    async with opened(mcp={"old": settings}) as toolbox:
        assert await toolbox.run("hello", {}, call_id="c") == "hello"
        with pytest.raises(ToolFailed, match=r"^the tool's server refused the call: boom at line 3$"):
            await toolbox.run("boom", {}, call_id="c")
        # As if it had been started anew: the call was not run, so it is made again on a new session.
        old.sessions.clear()
        assert await toolbox.run("hello", {}, call_id="c") == "hello"
    assert set(old.seen_headers) == {"Bearer hush"}
    assert old.ended >= 1


async def test_nobody_there(opened: Any, unused_tcp_port_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tools.mcp.WAIT_S", 0.1)
    async with opened(mcp={"none": {"url": f"http://127.0.0.1:{unused_tcp_port_factory()}/mcp"}}) as toolbox:
        assert list(toolbox.specs) == []
        with pytest.raises(ToolFailed, match="isn't available now"):
            await toolbox._sessions[0].call("x", {})
