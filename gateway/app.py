"""The composition root: the only place where the parts meet. Builds a gateway from its settings, and stops it without
losing a turn."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import structlog
from websockets.http11 import Request

from gateway.context.manager import ContextManager
from gateway.context.selection import ToolSelector
from gateway.context.summary import Summarizer
from gateway.edge.connection import Connection
from gateway.edge.gate import Gate
from gateway.edge.handshake import Accept, AcceptThenClose, Decision, Reject
from gateway.edge.http_guard import error_body
from gateway.edge.principal import Authenticator, NoAuthentication
from gateway.edge.routes import Edge, Scrape
from gateway.edge.websocket import WebSocketShell
from gateway.logs.journal import Journal
from gateway.logs.log import Log, LogUnavailable
from gateway.logs.opening import open_log, open_nodes
from gateway.models.demo import Demo
from gateway.models.model import Model
from gateway.sessions.generation import Engine
from gateway.sessions.pool import SessionPool
from gateway.sessions.router import Router
from gateway.settings import Settings, Upstream
from gateway.telemetry.metrics import Metrics
from gateway.tools.toolbox import make_toolbox
from protocol.codes import CloseCode, ErrorCode, Refusal
from protocol.frames import Welcome

if TYPE_CHECKING:
    from gateway.models.embeddings import OpenAIEmbeddings

READY_WITHIN_S = 0.8
"""Who asks whether this node is ready (a load balancer) mostly waits one second for the answer."""
GOAWAY_SPREAD_MS = 3000
"""Clients that are sent away come back spread over this time, so that the next node isn't stormed."""
log_lines = structlog.get_logger(__name__)


def gateway_version() -> str:
    try:
        return version("convobase-gateway")
    except PackageNotFoundError:
        return "0"


def make_model(settings: Upstream) -> Model:
    if settings.model == "demo":
        return Demo()
    # The SDK takes a second to import, which the demo model needn't wait for.
    from gateway.models.openai_compatible import OpenAICompatible  # noqa: PLC0415

    key = settings.openai_api_key
    return OpenAICompatible(api_key=key.get_secret_value() if key else None, base_url=settings.openai_base_url)


def make_embeddings(settings: Upstream) -> OpenAIEmbeddings | None:
    """For choosing tools by meaning; None: by words."""
    if not settings.embedding_model or settings.model == "demo":
        return None
    from gateway.models.embeddings import OpenAIEmbeddings  # noqa: PLC0415 # as above

    key = settings.openai_api_key
    return OpenAIEmbeddings(
        settings.embedding_model,
        api_key=key.get_secret_value() if key else None,
        base_url=settings.openai_base_url,
    )


class Gateway:
    """One node. `start` before, `drain` and `close` after serving; each once."""

    def __init__(self, settings: Settings, *, log: Log | None = None, model: Model | None = None) -> None:
        self.settings = settings
        self.log = log or open_log(settings.log.url, retention_s=settings.log.retention_s)
        self.model = model or make_model(settings.model)
        self.metrics = Metrics()
        self.nodes = open_nodes(self.log)
        self.journal = Journal(self.log, self.nodes)
        self.embeddings = make_embeddings(settings.model)
        context = ContextManager(
            settings.model,
            Summarizer(self.model, settings.model.summary_model),
            ToolSelector(settings.model.max_tools, self.embeddings),
        )
        context.preload()
        self.toolbox = make_toolbox(settings.tools)
        engine = Engine(self.model, context, self.toolbox, settings.model, settings.log, self.metrics)
        self.pool = SessionPool(self.journal, engine, settings.limits)
        self.router = Router(self.pool, self.journal)
        self.authenticator: Authenticator = NoAuthentication()
        self.gate = Gate(settings.who.allowed_origins, any_host=settings.who.auth != "none")
        self.connections: set[Connection] = set()
        self.version = gateway_version()
        self._measure()

    def _measure(self) -> None:
        gauge = self.metrics.gauge
        gauge("convobase_connections", "Open WebSocket connections", lambda: len(self.connections))
        gauge("convobase_sessions", "Sessions in the pool", lambda: self.pool.sessions)
        gauge("convobase_streams_running", "Turns that run now", lambda: self.pool.running)
        gauge(
            "convobase_log_waiting",
            "Conversations with entries that aren't in the log yet",
            lambda: self.journal.waiting,
        )
        gauge("convobase_feeds", "Conversations that run or are read on this node", lambda: len(self.journal.feeds))
        gauge("convobase_nodes", "Nodes that are alive, with this one", lambda: 1 + len(self.nodes.others()))
        gauge("convobase_log_available", "1: the last commit worked", lambda: float(self.journal.available))

    async def start(self) -> None:
        """Opens the log and takes over what the last run left open. Raises `LogUnavailable`."""
        await self.log.open()
        await self.nodes.open(self.router.serve)
        self.journal.start()
        await self.toolbox.open()
        await self.pool.start()

    async def ready(self) -> str | None:
        """Why this node shouldn't get traffic; None: it should."""
        if self.pool.draining:
            return "draining"
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self.log.ping()
        except LogUnavailable as problem:
            return f"the conversation log can't be written: {problem}"
        except TimeoutError:
            return f"the conversation log doesn't answer within {READY_WITHIN_S:g} s"
        return None

    def edge(self, scrape: Scrape) -> Edge:
        return Edge(
            router=self.router,
            authenticator=self.authenticator,
            gate=self.gate,
            limits=self.settings.limits,
            scrape=scrape,
            heartbeat_s=self.settings.serving.heartbeat_s,
            version=self.version,
            ready=self.ready,
        )

    # ------------------------------------------------------------ WebSocket

    def accept(self, request: Request, peer: str) -> Decision:
        """What to do with a handshake (SPEC.md section 3)."""
        parts = urlsplit(request.path)
        if parts.path != "/chat":
            return Reject(404, error_body(ErrorCode.NOT_FOUND, "WebSocket connections are made to /chat."))
        try:
            self.gate.check(request.headers.get("Host"), request.headers.get("Origin"))
            principal = self.authenticator.authenticate(_token(request))
        except Refusal as refusal:
            if refusal.code is ErrorCode.UNAUTHORIZED:
                return AcceptThenClose(CloseCode.UNAUTHORIZED, "get a new token")
            return Reject(refusal.code.http_status, error_body(refusal.code, refusal.message))
        if self.pool.draining:
            return AcceptThenClose(CloseCode.DRAINING, "this node is about to stop")
        if len(self.connections) >= self.settings.limits.max_connections:
            return AcceptThenClose(CloseCode.OVER_CONNECTION_LIMIT, "too many connections")

        def handler(shell: WebSocketShell) -> Connection:
            connection = Connection(
                shell,
                principal=principal,
                authenticator=self.authenticator,
                router=self.router,
                limits=self.settings.limits,
                welcome=self._welcome,
                on_closed=self.connections.discard,
            )
            self.connections.add(connection)
            return connection

        return Accept(handler)

    def _welcome(self, connection: Connection) -> Welcome:
        limits = self.settings.limits
        return Welcome(
            connection_id=connection.id,
            protocol=connection.protocol,
            heartbeat_s=self.settings.serving.heartbeat_s,
            limits={
                "max_frame_bytes": limits.max_frame_bytes,
                "max_conversations_per_connection": limits.max_conversations_per_connection,
                "max_queued": self.settings.log.max_queued,
            },
        )

    # ------------------------------------------------------------ the end

    async def drain(self) -> None:
        """Not ready any more; new messages are refused, running turns end or are handed over; connections are sent
        away as soon as nothing runs on them."""
        within_s = self.settings.serving.drain_s
        log_lines.info("draining", within_s=within_s, connections=len(self.connections), running=self.pool.running)
        draining = asyncio.create_task(self.router.drain(within_s))
        while not draining.done():
            self._send_away([connection for connection in self.connections if not connection.busy])
            await asyncio.wait([draining], timeout=0.25)
        await draining
        self._send_away(list(self.connections))

    def _send_away(self, connections: list[Connection]) -> None:
        for connection in connections:
            self.connections.discard(connection)
            connection.goaway("draining", random.randint(0, GOAWAY_SPREAD_MS))

    async def close(self) -> None:
        """In this order: turns are handed over, tools end, entries are written, this node leaves the others, the log
        is marked clean. One part's failure doesn't keep the others from closing. Also right after a `start` that
        failed or was cancelled."""
        async with AsyncExitStack() as parts:
            if self.embeddings is not None:
                parts.push_async_callback(self.embeddings.close)
            for part in (self.model, self.log, self.nodes, self.journal, self.toolbox, self.pool):
                parts.push_async_callback(part.close)


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token
    return parse_qs(urlsplit(request.path).query).get("ticket", [None])[0]
