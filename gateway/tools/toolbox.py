"""The tools that the gateway runs itself: which there are, how each is to be called, and the calling.

Names are what the model, the log and other nodes know a tool by, so they hold still: a declared endpoint has its
own, a tool of an MCP server its name there unless that is taken or `prefix` is set, then `SERVER_tool`; given in the
order of the file, and never given away again while the node runs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import orjson
import structlog

from gateway.settings import HttpTool, SettingsError, Tools
from gateway.tools.failure import ToolFailed, clipped
from gateway.tools.http import call_endpoint, http_session
from gateway.tools.schemas import schema_problem
from protocol.checks import json_problem
from protocol.frames import FunctionSpec, Runs, Tool

if TYPE_CHECKING:
    from gateway.tools.mcp import McpSession

__all__ = ["ToolFailed", "Toolbox", "make_toolbox"]

MAX_NAME_CHARS = 64
MAX_DESCRIPTION_CHARS = 1_024
OPENING_S = 10.0
"""The gateway's own start waits so long for its MCP servers, at most."""

log_lines = structlog.get_logger(__name__)


class _Entry(NamedTuple):
    spec: Tool
    runs: Runs
    idempotent: bool
    timeout_s: float
    max_result_bytes: int
    call: Callable[[dict[str, Any], str], Awaitable[Any]]
    """With the arguments and the call's id."""


class Toolbox:
    """All tools of a node. `open` before use and `close` after it, each once, in one event loop."""

    def __init__(self, config: Tools) -> None:
        self._config = config
        self._http: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(config.tool_concurrency)
        self._entries = {name: self._endpoint(name, tool) for name, tool in config.http.items()}
        self._specs: tuple[Tool, ...] = tuple(entry.spec for entry in self._entries.values())
        self._sessions: list[McpSession] = []
        self._names: dict[tuple[str, str], str] = {}
        """(server, its tool) to the name here."""
        self._complaints: set[tuple[str, str]] = set()
        self._is_open = False

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Starts the MCP servers and waits for them a while; one that doesn't come doesn't stop the gateway."""
        if self._config.http:
            self._http = http_session(self._config.tool_concurrency)
        if self._config.mcp:
            # The SDK takes a second to import, which nobody without MCP servers needs to wait for.
            from gateway.tools.mcp import McpSession  # noqa: PLC0415

            self._sessions = [McpSession(name, server, self._collect) for name, server in self._config.mcp.items()]
        for session in self._sessions:
            session.start()
        try:
            async with asyncio.timeout(OPENING_S):
                for session in self._sessions:
                    await session.first_try()
        except TimeoutError:
            log_lines.warning("not every MCP server is there yet; going on without", within_s=OPENING_S)
        # Not before, or names would depend on which server is the fastest.
        self._is_open = True
        self._collect()

    async def close(self) -> None:
        """Ends every session and its process. Calls that still run fail."""
        self._is_open = False
        sessions, self._sessions = self._sessions, []
        await asyncio.gather(*(session.stop() for session in sessions), return_exceptions=True)
        if self._http is not None:
            await self._http.close()
            self._http = None

    # ------------------------------------------------------------ what there is

    @property
    def specs(self) -> Sequence[Tool]:
        """As offered to the model; another tuple when a server's list changed, else the very same."""
        return self._specs

    def runs(self, name: str) -> Runs:
        """Who answers a call: `gateway`, `approval` (the gateway, once the user agreed), or `client` for what isn't
        ours."""
        entry = self._entries.get(name)
        return "client" if entry is None else entry.runs

    def idempotent(self, name: str) -> bool:
        """Whether a call whose result is lost may be made again. What isn't known isn't."""
        entry = self._entries.get(name)
        return entry is not None and entry.idempotent

    # ------------------------------------------------------------ calls

    async def run(self, name: str, args: dict[str, Any], *, call_id: str) -> Any:
        """The result, a JSON value. `args` are to be checked before (`arguments_problem`).

        Waits for a free place first; the tool's time-out starts after that. Raises `ToolFailed` and nothing else.
        Cancel-safe: the request is closed, an MCP server is told.
        """
        entry = self._entries.get(name)
        if entry is None or not self._is_open:
            raise ToolFailed(f"there is no tool `{clipped(name)}` here")
        async with self._slots:
            result = await self._called(name, entry, args, call_id)
        try:
            size_bytes = len(orjson.dumps(result))
        except TypeError:
            raise ToolFailed("the tool answered with something that can't be written as JSON") from None
        if size_bytes > entry.max_result_bytes:
            raise ToolFailed(
                f"the result has {size_bytes} bytes of JSON, more than the {entry.max_result_bytes} that it may have"
            )
        if problem := json_problem(result):
            raise ToolFailed(f"the result {problem}")
        return result

    async def _called(self, name: str, entry: _Entry, args: dict[str, Any], call_id: str) -> Any:
        try:
            async with asyncio.timeout(entry.timeout_s):
                return await entry.call(args, call_id)
        except ToolFailed:
            raise
        except TimeoutError:
            raise ToolFailed(f"the tool took longer than {entry.timeout_s:g} s") from None
        except Exception as problem:  # noqa: BLE001  # whatever it is, the turn has to go on
            log_lines.warning("a tool failed unexpectedly", tool=name, problem=f"{type(problem).__name__}: {problem}")
            raise ToolFailed("the tool failed; the gateway's log says why") from None

    # ------------------------------------------------------------ where they come from

    def _endpoint(self, name: str, tool: HttpTool) -> _Entry:
        problem = schema_problem(tool.parameters)
        if problem is not None:
            raise SettingsError(f"`tools.{name}.parameters` can't be used: {problem}.")

        async def call(args: dict[str, Any], call_id: str) -> Any:
            assert self._http is not None
            return await call_endpoint(self._http, tool, args, call_id)

        return _Entry(
            _spec(name, tool.description, tool.parameters),
            "approval" if tool.approval else "gateway",
            tool.idempotent,
            tool.timeout_s,
            tool.max_result_bytes,
            call,
        )

    def _collect(self) -> None:
        """Takes what the servers list now; called again whenever a list changed."""
        if not self._is_open:
            return
        entries = {name: entry for name, entry in self._entries.items() if name in self._config.http}
        for session in self._sessions:
            for tool in session.tools:
                problem = schema_problem(tool.input_schema)
                name = None if problem else self._name(session, tool.name)
                if name is None:
                    self._complain(session.name, tool.name, problem or "its name is taken")
                    continue
                entries[name] = self._listed(session, name, tool.name, tool.description or "", tool.input_schema)
        self._entries = entries
        specs = tuple(entry.spec for entry in entries.values())
        if specs != self._specs:
            self._specs = specs

    def _listed(
        self, session: McpSession, name: str, tool: str, description: str, parameters: dict[str, Any]
    ) -> _Entry:
        config = session.config

        async def call(args: dict[str, Any], _: str) -> Any:
            return await session.call(tool, args)

        return _Entry(
            _spec(name, description, parameters),
            "approval" if config.needs_approval(tool) else "gateway",
            config.is_idempotent(tool),
            config.timeout_s,
            config.max_result_bytes,
            call,
        )

    def _name(self, session: McpSession, tool: str) -> str | None:
        key = (session.name, tool)
        if key in self._names:
            return self._names[key]
        # MCP allows dots and more, which models' APIs refuse.
        plain = re.sub(r"[^A-Za-z0-9_\-]", "_", tool)
        prefixed = f"{session.name}_{plain}"[:MAX_NAME_CHARS]
        choice = [prefixed] if session.config.prefix else [plain[:MAX_NAME_CHARS], prefixed]
        taken = {*self._config.http, *self._names.values()}
        name = next((name for name in choice if name and name not in taken), None)
        if name is not None:
            self._names[key] = name
        return name

    def _complain(self, server: str, tool: str, problem: str) -> None:
        if (server, tool) not in self._complaints:
            self._complaints.add((server, tool))
            log_lines.warning("a tool of an MCP server is left out", server=server, tool=clipped(tool), problem=problem)


def make_toolbox(config: Tools) -> Toolbox:
    """Raises `SettingsError` for a declared tool whose parameters can't be used."""
    return Toolbox(config)


def _spec(name: str, description: str, parameters: dict[str, Any]) -> Tool:
    return Tool(FunctionSpec(name=name, description=description[:MAX_DESCRIPTION_CHARS] or None, parameters=parameters))
