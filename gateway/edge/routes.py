"""The HTTP side: every route of the contract, each a few lines over the session pool (SPEC.md section 3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import structs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.edge.answers import committed, error_body, starting_at
from gateway.edge.gate import Gate
from gateway.edge.playground import ASSETS, CONTENT_SECURITY_POLICY
from gateway.edge.principal import Authenticator
from gateway.edge.reply import Gone, reply_to
from gateway.edge.sse import EventStream, after_turn, when_idle
from gateway.logs.log import ANY_EPOCH, Key, LogUnavailable, Position
from gateway.sessions.refusals import log_unreadable
from gateway.sessions.router import Router
from gateway.sessions.session import new_id
from gateway.settings import Limits
from protocol.codec import BadFrame, decode_body, parse_cursor, valid_identifier
from protocol.codes import ErrorCode, Refusal
from protocol.frames import Cancel, ChatMessage, ClientFrame, ClientFunctionResult, Snapshot
from protocol.schema import asyncapi, openapi

F = TypeVar("F", bound=ClientFrame)

Scrape = Callable[[], Awaitable[tuple[bytes, str]]]
"""Makes the body of `/metrics` and its content type."""

log_lines = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Edge:
    """What the routes need of the gateway."""

    router: Router
    authenticator: Authenticator
    gate: Gate
    limits: Limits
    scrape: Scrape
    heartbeat_s: float
    version: str
    ready: Callable[[], Awaitable[str | None]]
    """Why the gateway isn't ready for traffic; None: it is."""


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def refusal_answer(refusal: Refusal, status: int | None = None) -> Response:
    """The contract's error body, with `Retry-After` where the code has it."""
    status = status or refusal.code.http_status
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, round(refusal.retry_after_s or 1)))
    return json_answer({"error": error_body(refusal)}, status, headers)


class Routes:
    """One method a route."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._router = edge.router
        self._feeds = edge.router.journal.feeds

    # ------------------------------------------------------------ chat

    async def chat_stream(self, request: Request) -> ASGIApp:
        frame = await self._body(request, ChatMessage)
        key = self._key(request, frame.conversation_id or new_id("c"))
        feed, done = await self._router.submit(key, frame)
        await committed(feed, done.seq)
        return EventStream(
            self._feeds,
            feed,
            Position(done.seq - 1, ANY_EPOCH),
            after_turn(done.turn_id),
            heartbeat_s=self._edge.heartbeat_s,
            ref=frame.ref,
            own_seq=done.seq,
        )

    async def attach(self, request: Request) -> ASGIApp:
        conversation_id = request.query_params.get("conversation_id", "")
        key = self._key(request, conversation_id)
        feed, current = await self._router.attach(key)
        given = request.headers.get("last-event-id") or request.query_params.get("after")
        snapshot: Snapshot | None = None
        if given:
            position, snapshot = await starting_at(feed, Position(*parse_cursor(given)))
        else:
            position = Position(current.message.seq - 1, ANY_EPOCH) if current else feed.head()
        if snapshot is None and position.seq >= feed.seq and not feed.open_turns:
            return Response(status_code=204)
        heartbeat_s = self._edge.heartbeat_s
        return EventStream(self._feeds, feed, position, when_idle, heartbeat_s=heartbeat_s, snapshot=snapshot)

    async def chat(self, request: Request) -> Response:
        frame = await self._body(request, ChatMessage)
        key = self._key(request, frame.conversation_id or new_id("c"))
        feed, done = await self._router.submit(key, frame)
        await committed(feed, done.seq)
        return json_answer(await reply_to(self._feeds, feed, done.seq, request.receive, self._edge.heartbeat_s))

    # ------------------------------------------------------------ conversations

    async def conversation(self, request: Request) -> Response:
        feed = await self._router.feed(self._path_key(request))
        try:
            snapshot = await feed.snapshot()
        except LogUnavailable:
            raise log_unreadable() from None
        if snapshot.seq == 0:
            raise _unknown()
        body = structs.asdict(snapshot)
        del body["ref"]
        return json_answer(body)

    async def delete(self, request: Request) -> Response:
        await self._router.delete(self._path_key(request))
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        key = self._path_key(request)
        frame = await self._body(request, Cancel, conversation_id=key.conversation_id)
        done = await _acknowledged(self._router.cancel(key, frame.turn_id))
        return json_answer({"outcome": done.outcome, "turn_id": done.turn_id})

    async def function_results(self, request: Request) -> Response:
        key = self._path_key(request)
        frame = await self._body(request, ClientFunctionResult, conversation_id=key.conversation_id)
        await _acknowledged(self._router.answer(key, frame.call_id, frame.result, frame.error))
        return json_answer({"accepted": True})

    async def not_a_handshake(self, request: Request) -> Response:
        text = "This address is for WebSocket connections; send Upgrade: websocket. Without it: POST /api/chat/stream."
        answer = refusal_answer(Refusal(ErrorCode.BAD_FRAME, text), 426)
        answer.headers["Upgrade"] = "websocket"
        return answer

    # ------------------------------------------------------------ operations

    async def healthz(self, request: Request) -> Response:
        return json_answer({"status": "alive", "version": self._edge.version})

    async def readyz(self, request: Request) -> Response:
        problem = await self._edge.ready()
        if problem is None:
            return json_answer({"status": "ready"})
        return json_answer({"status": "not ready", "reason": problem}, 503, {"Retry-After": "1"})

    async def metrics(self, request: Request) -> Response:
        body, content_type = await self._edge.scrape()
        return Response(body, media_type=content_type)

    async def playground(self, request: Request) -> Response:
        asset = ASSETS.get(request.path_params.get("name", "index.html"))
        if asset is None:
            raise HTTPException(404)
        content, media_type = asset
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(content, 200, headers | {"Cache-Control": "no-cache"}, media_type)

    async def openapi(self, request: Request) -> Response:
        return json_answer(openapi(self._edge.version))

    async def asyncapi(self, request: Request) -> Response:
        return json_answer(asyncapi(self._edge.version))

    # ------------------------------------------------------------ requests

    def _key(self, request: Request, conversation_id: str) -> Key:
        if not valid_identifier(conversation_id):
            raise BadFrame(ErrorCode.BAD_FRAME, "`conversation_id` has to be 1 to 128 characters of A-Z a-z 0-9 _ . -")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        principal = self._edge.authenticator.authenticate(token if scheme.lower() == "bearer" else None)
        return principal.key(conversation_id)

    def _path_key(self, request: Request) -> Key:
        return self._key(request, request.path_params["conversation_id"])

    async def _body(self, request: Request, kind: type[F], **fields: str) -> F:
        """The body as a frame. Raises `Refusal`: `FRAME_TOO_LARGE`, `BAD_FRAME`."""
        most = self._edge.limits.max_frame_bytes
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise Refusal(ErrorCode.FRAME_TOO_LARGE, f"A body may have {most} bytes at most.")
        return decode_body(bytes(body), kind, **fields)


def _unknown() -> Refusal:
    return Refusal(ErrorCode.NOT_FOUND, "There is no such conversation.")


A = TypeVar("A")


async def _acknowledged(appended: Awaitable[A]) -> A:
    try:
        return await appended
    except LogUnavailable:
        raise Refusal(ErrorCode.NOT_FOUND, "The conversation was deleted meanwhile.") from None


class Guard:
    """Outermost: checks Origin and Host, and turns what goes wrong into the contract's error body."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
        try:
            self._gate.check(headers.get(b"host"), headers.get(b"origin"))
        except Refusal as refusal:
            await refusal_answer(refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception:
            # Starlette has answered already, if that was still possible, and raises again for the server's log.
            log_lines.exception("request failed by a bug", path=scope["path"])


async def _on_refusal(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return refusal_answer(refusal)


async def _on_http_exception(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    if problem.status_code == 404:
        return refusal_answer(
            Refusal(ErrorCode.NOT_FOUND, "There is nothing here. See /openapi.json for what there is.")
        )
    answer = refusal_answer(
        Refusal(ErrorCode.BAD_FRAME, "This address doesn't know that method. See /openapi.json."), problem.status_code
    )
    answer.headers.update(problem.headers or {})
    if problem.status_code == 405:
        answer.headers["Allow"] = _methods(request)
    return answer


def _methods(request: Request) -> str:
    """Those of all routes of this path: Starlette names the first one's only."""
    routes = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in routes for method in route.methods}))


async def _on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _on_bug(_: Request, __: Exception) -> Response:
    return refusal_answer(Refusal(ErrorCode.INTERNAL, "The gateway failed on this request. Please try again."))


def http_app(edge: Edge) -> ASGIApp:
    """The ASGI application."""
    routes = Routes(edge)
    conversation = "/api/conversations/{conversation_id}"
    middleware = []
    if edge.gate.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(edge.gate.allowed_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["Retry-After"],
            )
        )
    app = Starlette(
        routes=[
            Route("/api/chat/stream", routes.chat_stream, methods=["POST"]),
            Route("/api/chat/stream", routes.attach, methods=["GET"]),
            Route("/api/chat", routes.chat, methods=["POST"]),
            Route(conversation, routes.conversation, methods=["GET"]),
            Route(conversation, routes.delete, methods=["DELETE"]),
            Route(f"{conversation}/cancel", routes.cancel, methods=["POST"]),
            Route(f"{conversation}/function_results", routes.function_results, methods=["POST"]),
            Route("/chat", routes.not_a_handshake),
            Route("/healthz", routes.healthz),
            Route("/readyz", routes.readyz),
            Route("/metrics", routes.metrics),
            Route("/openapi.json", routes.openapi),
            Route("/asyncapi.json", routes.asyncapi),
            Route("/", routes.playground),
            Route("/playground/{name}", routes.playground),
        ],
        middleware=middleware,
        exception_handlers={
            Refusal: _on_refusal,
            HTTPException: _on_http_exception,
            Gone: _on_gone,
            ClientDisconnect: _on_gone,
            Exception: _on_bug,
        },
    )
    # A path with a slash too many doesn't exist: a client that follows a redirect with GET would lose its message.
    app.router.redirect_slashes = False
    return Guard(app, edge.gate)
