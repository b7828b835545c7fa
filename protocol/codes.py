"""Error and close codes as data (SPEC.md sections 8 and 9).

`ErrorCode` is the closed set of codes that a peer may see; each knows its HTTP status and whether trying
again can help. `Refusal` is the one exception that carries a code: everything a peer is ever told went
through it, so nothing internal can leak by accident.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class ErrorCode(Enum):
    """`code -> (HTTP status, retryable)`; the value of `code.value` is unique because the name is part of it."""

    BAD_FRAME = ("BAD_FRAME", 400, False)
    UNKNOWN_TYPE = ("UNKNOWN_TYPE", 400, False)
    UNAUTHORIZED = ("UNAUTHORIZED", 401, False)
    FORBIDDEN_ORIGIN = ("FORBIDDEN_ORIGIN", 403, False)
    NOT_FOUND = ("NOT_FOUND", 404, False)
    BUSY = ("BUSY", 409, True)
    CALL_CLOSED = ("CALL_CLOSED", 409, False)
    FRAME_TOO_LARGE = ("FRAME_TOO_LARGE", 413, False)
    CONTEXT_TOO_LARGE = ("CONTEXT_TOO_LARGE", 422, False)
    RATE_LIMITED = ("RATE_LIMITED", 429, True)
    QUOTA_EXCEEDED = ("QUOTA_EXCEEDED", 429, True)
    TOO_MANY_CONVERSATIONS = ("TOO_MANY_CONVERSATIONS", 429, True)
    UPSTREAM_RATE_LIMITED = ("UPSTREAM_RATE_LIMITED", 429, True)
    INTERNAL = ("INTERNAL", 500, True)
    UPSTREAM_REJECTED = ("UPSTREAM_REJECTED", 502, False)
    STREAM_ERROR = ("STREAM_ERROR", 502, True)
    UPSTREAM_UNAVAILABLE = ("UPSTREAM_UNAVAILABLE", 503, True)
    OVERLOADED = ("OVERLOADED", 503, True)
    NODE_LOST = ("NODE_LOST", 503, True)
    UPSTREAM_TIMEOUT = ("UPSTREAM_TIMEOUT", 504, True)
    FUNCTION_TIMEOUT = ("FUNCTION_TIMEOUT", 504, True)

    @property
    def http_status(self) -> int:
        return self.value[1]

    @property
    def retryable(self) -> bool:
        return self.value[2]


class CloseCode(IntEnum):
    """WebSocket close codes. 1000 to 1011 as RFC 6455 section 7.4.1; 1012 is in IANA's registry; 44xx are ours."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_TEXT = 1007
    TOO_BIG = 1009
    INTERNAL = 1011
    DRAINING = 1012
    UNAUTHORIZED = 4401
    NO_CREDENTIALS = 4408
    OVER_CONNECTION_LIMIT = 4429


class Refusal(Exception):
    """A request or a turn that is refused, in words that may be shown to the peer.

    `message` is for people: it says what is wrong and what would be right, and never carries a stack trace,
    a secret or another user's data. `retry_after_s` becomes `Retry-After` over HTTP.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, retryable: bool | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.retryable = code.retryable if retryable is None else retryable
        self.retry_after_s = retry_after_s
