"""Toolboxes over real servers: an HTTP one in the test's own loop, and MCP servers as processes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.settings import HttpTool, McpServer, Tools
from gateway.tools.toolbox import Toolbox, make_toolbox

STDIO_SERVER = Path(__file__).parents[1] / "support" / "mcp_stdio.py"

Opened = Callable[..., AbstractAsyncContextManager[Toolbox]]


@asynccontextmanager
async def opened_toolbox(
    *,
    http: dict[str, dict[str, Any]] | None = None,
    mcp: dict[str, dict[str, Any]] | None = None,
    concurrency: int = 16,
) -> AsyncIterator[Toolbox]:
    toolbox = make_toolbox(
        Tools(
            tool_concurrency=concurrency,
            http={name: HttpTool.model_validate({"description": "d"} | tool) for name, tool in (http or {}).items()},
            mcp={name: McpServer.model_validate(server) for name, server in (mcp or {}).items()},
        )
    )
    try:
        await toolbox.open()
        yield toolbox
    finally:
        await toolbox.close()


@pytest.fixture
def opened() -> Opened:
    return opened_toolbox


@pytest.fixture
def raw() -> Callable[..., dict[str, Any]]:
    """Settings of the stdio server of `tests/support`."""

    def settings(*args: str, **more: Any) -> dict[str, Any]:
        return {"command": sys.executable, "args": [str(STDIO_SERVER), *args], "timeout_s": 20, **more}

    return settings


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """`await serve(handler)` is the base address of a server whose every request goes to `handler`."""
    servers: list[TestServer] = []

    async def start(handler: Callable[[web.Request], Any]) -> str:
        app = web.Application(client_max_size=10**8)
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("/")).rstrip("/")

    yield start
    for server in servers:
        await server.close()
