"""The opening handshake (RFC 6455 section 4): what the app may decide about it, and how it is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct
from websockets.http11 import Request, Response
from websockets.protocol import SEND_EOF
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from gateway.edge.handler import Handler
from gateway.edge.http_guard import error_body
from protocol.codes import ErrorCode

JSON: Final = Subprotocol("convobase.v1+json")
MSGPACK: Final = Subprotocol("convobase.v1+msgpack")


class Accept(Struct, frozen=True):
    """Opens the connection. `handler` is called once with the `WebSocketShell` (not named here: that module imports
    this one), before the answer is sent. If it raises, the answer is a 500; if it returns, `opened` and later `closed`
    will be called."""

    handler: Callable[[Any], Handler]


class Reject(Struct, frozen=True):
    """Answers with an HTTP error and a JSON body (`http_guard.error_body`)."""

    status: int
    body: bytes
    headers: Sequence[tuple[str, str]] = ()


class AcceptThenClose(Struct, frozen=True):
    """Opens the connection only to close it: a browser shows its page a close code, but no HTTP status."""

    code: int
    reason: str = ""


Decision: TypeAlias = Accept | Reject | AcceptThenClose
Policy: TypeAlias = Callable[[Request, str], Decision]
"""Decides on a handshake that is valid as such, by the request and the peer's `host:port`. Called once, it must not
block; if it raises, the answer is a 500."""


class Wire(ServerProtocol):
    """websockets' sans-I/O connection with our subprotocols and our error bodies."""

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """The client's first that we know. None is no reason to refuse: JSON is spoken then, without the header, and
        the client may go away if it minds (RFC 6455 section 4.1)."""
        return next((offer for offer in subprotocols if offer in (JSON, MSGPACK)), None)

    def decide(self, request: Request, peer: str, policy: Policy) -> tuple[Decision, Response]:
        """What is to be done, and the answer in case it is not a `Reject`. The policy isn't asked about a handshake
        that isn't valid, so what it counts is what will be closed again."""
        response = self.accept(request)
        if response.status_code == 101:
            return policy(request, peer), response
        headers = [(name, response.headers[name]) for name in ("Allow", "Upgrade") if name in response.headers]
        body = error_body(ErrorCode.BAD_FRAME, f"This is not a WebSocket handshake: {self.handshake_exc}.")
        return Reject(response.status_code, body, headers), response

    def refuse(self, refusal: Reject) -> None:
        """Answers with an HTTP error and ends the stream; also after the library has given up on the request."""
        response = self.reject(refusal.status, "")
        response.body = refusal.body
        for name in ("Content-Length", "Content-Type"):
            del response.headers[name]
        response.headers["Content-Length"] = str(len(refusal.body))
        response.headers["Content-Type"] = "application/json"
        for name, value in refusal.headers:
            response.headers[name] = value
        if self.eof_sent:
            self.writes[:] = [response.serialize(), SEND_EOF]
        else:
            self.send_response(response)
