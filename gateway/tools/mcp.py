"""Tools of MCP servers, through the official SDK: one session a server, started again when it dies.

The SDK's contexts are task groups, so a session is entered and left by one task, its owner here; calls may come from
any task. A session over stdio ends with its process, which is seen at once; one over HTTP ends when a request fails.
Calls that were under way then fail: whether the tool did its work isn't known. The owner starts the next session
after a pause with full-range jitter that doubles while it doesn't help.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
import httpx2
import structlog
from mcp import Client, MCPError, types
from mcp.client.session import IncomingMessage
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from gateway.settings import McpServer
from gateway.tools.failure import ToolFailed, clipped
from gateway.tools.mcp_result import json_value
from gateway.tools.mcp_stderr import Stderr, stderr_of

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 30.0
"""A session that lasted so long was a good one: the next pause is the first again."""
WAIT_S = 5.0
"""A call waits so long for a session that is being made."""
MAX_PAGES = 50
MAX_TOOLS = 1_000
MAX_MESSAGE_BYTES = 4_194_304

log_lines = structlog.get_logger(__name__)
# It writes stack traces for what a server does wrong; the owner says the same in one line.
logging.getLogger("mcp").setLevel(logging.CRITICAL)


class McpSession:
    """The session with one server, kept up from `start` to `stop`. `on_tools` is called when its list changed."""

    def __init__(self, name: str, config: McpServer, on_tools: Callable[[], None]) -> None:
        self.name = name
        self.config = config
        self.tools: tuple[types.Tool, ...] = ()
        """As last listed, without those that aren't to be offered; kept while the server is away."""
        self._on_tools = on_tools
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._over = asyncio.Event()
        self._stale = asyncio.Event()
        self._scope = anyio.CancelScope()
        self._owner: asyncio.Task[None] | None = None
        self._quiet = False

    # ------------------------------------------------------------ life

    def start(self) -> None:
        self._owner = asyncio.create_task(self._own(), name=f"mcp {self.name}")

    async def first_try(self) -> None:
        """Returns once the server is there or was seen not to be."""
        await self._tried.wait()

    async def stop(self) -> None:
        """Ends the session and its process; takes a few seconds if that one has to be killed."""
        if self._owner is None:
            return
        # Not `task.cancel()`, which would break the SDK's shield around the end of the process.
        self._scope.cancel()
        await self._owner
        self._owner = None

    async def _own(self) -> None:
        pause_s = FIRST_PAUSE_S
        with self._scope:
            while True:
                started = anyio.current_time()
                await self._attempt()
                if anyio.current_time() - started > STEADY_S:
                    pause_s = FIRST_PAUSE_S
                await anyio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _attempt(self) -> None:
        """One session from its start to its end, however it ends."""
        self._over.clear()
        stderr: Stderr | None = None
        with anyio.CancelScope(deadline=anyio.current_time() + self.config.start_timeout_s) as starting:
            try:
                async with AsyncExitStack() as stack:
                    if self.config.command is not None:
                        stderr, errors = await stack.enter_async_context(stderr_of(self.name))
                        transport = stdio_client(self._process(), errlog=errors)
                    else:
                        transport = streamable_http_client(
                            self.config.url or "",
                            http_client=await stack.enter_async_context(self._http()),
                            max_sse_event_size=MAX_MESSAGE_BYTES,
                        )
                    client = await stack.enter_async_context(
                        Client(_watched(transport, self._end), cache=None, message_handler=self._on_message)
                    )
                    await self._list(client)
                    starting.deadline = float("inf")
                    await self._live(client)
            except Exception as problem:  # noqa: BLE001  # a server's faults are many, and none may end the owner
                self._report(problem, stderr)
            finally:
                self._client = None
                self._up.clear()
                self._tried.set()
        if starting.cancelled_caught:
            self._report(TimeoutError(f"it took longer than {self.config.start_timeout_s:g} s"), stderr)

    async def _live(self, client: Client) -> None:
        self._client = client
        self._quiet = False
        self._up.set()
        self._tried.set()
        log_lines.info("MCP server ready", server=self.name, tools=len(self.tools))
        while not self._over.is_set():
            waiting = [asyncio.ensure_future(event.wait()) for event in (self._over, self._stale)]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
            if self._stale.is_set() and not self._over.is_set():
                self._stale.clear()
                await self._list(client)
        raise ConnectionError("the session ended")

    async def _list(self, client: Client) -> None:
        tools: list[types.Tool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += [tool for tool in page.tools if self.config.offers(tool.name)]
            cursor = page.next_cursor
            if cursor is None or len(tools) > MAX_TOOLS:
                break
        self.tools = tuple(tools[:MAX_TOOLS])
        self._on_tools()

    async def _on_message(self, message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._stale.set()

    def _report(self, problem: Exception, stderr: Stderr | None) -> None:
        """One line for each time that the server went away, not for each attempt to get it back."""
        if self._quiet:
            return
        self._quiet = True
        log_lines.warning(
            "MCP server not available; its tools fail until it is back",
            server=self.name,
            problem=clipped(_root(problem)),
            last_line=clipped(stderr.last_line) or None if stderr else None,
        )

    def _process(self) -> StdioServerParameters:
        env = {name: value.get_secret_value() for name, value in self.config.env.items()}
        return StdioServerParameters(command=self.config.command or "", args=list(self.config.args), env=env)

    def _http(self) -> httpx2.AsyncClient:
        # A call has its own deadline, and an answer may take its time.
        return httpx2.AsyncClient(
            headers={name: value.get_secret_value() for name, value in self.config.headers.items()},
            timeout=httpx2.Timeout(30.0, read=None),
            trust_env=False,
        )

    # ------------------------------------------------------------ calls

    async def call(self, tool: str, args: dict[str, Any]) -> Any:
        """The tool's answer as a JSON value. Raises `ToolFailed`. Cancelling it tells the server."""
        for again in (True, False):
            client = await self._session()
            try:
                return json_value(await client.call_tool(tool, args))
            except MCPError as problem:
                if _session_unknown(problem):
                    # The server was started anew and has run nothing.
                    self._end()
                    if again:
                        continue
                if _connection_lost(problem):
                    raise self._lost() from None
                raise ToolFailed(f"the tool's server refused the call: {clipped(problem.message)}") from None
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                raise self._lost() from None
        raise AssertionError("the second time returns or raises")

    async def _session(self) -> Client:
        try:
            async with asyncio.timeout(WAIT_S):
                while self._client is None or not self._up.is_set():
                    await self._up.wait()
                return self._client
        except TimeoutError:
            raise ToolFailed("the tool's server isn't available now; it may be later") from None

    def _end(self) -> None:
        """From here on calls wait for the next session."""
        self._over.set()
        self._up.clear()

    def _lost(self) -> ToolFailed:
        self._end()
        return ToolFailed("the tool's server went away before it answered; whether the tool did its work isn't known")


def _session_unknown(problem: MCPError) -> bool:
    # How the SDK reports a 404 to a session id.
    return problem.code == types.INVALID_REQUEST and problem.message == "Session terminated"


def _connection_lost(problem: MCPError) -> bool:
    # The code alone doesn't tell: -32000 is also what many servers use for errors of their own.
    return problem.code == types.CONNECTION_CLOSED and problem.message.startswith(("Connection closed", "SSE stream"))


def _root(problem: BaseException) -> str:
    """Of the groups in groups that task groups make, the first cause."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__


@asynccontextmanager
async def _watched(transport: Any, on_end: Callable[[], None]) -> AsyncIterator[Any]:
    """The same transport; says when the server's side ends, which the SDK tells only the next call."""
    async with transport as (reading, writing):
        yield _Watched(reading, on_end), writing


class _Watched:
    def __init__(self, inner: Any, on_end: Callable[[], None]) -> None:
        self._inner = inner
        self._on_end = on_end

    @property
    def last_context(self) -> Any:
        return getattr(self._inner, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        try:
            message: SessionMessage | Exception = await self._inner.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._on_end()
            raise
        return message

    async def aclose(self) -> None:
        await self._inner.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
