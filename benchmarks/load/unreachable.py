"""Why a connection couldn't be made, in few and fixed words, so that they can be counted."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import msgspec

from benchmarks.load.websocket import Answer

_BY_ERRNO = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
    errno.EADDRNOTAVAIL: "no local port left",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.ETIMEDOUT: "no answer in time",
}


class Unwelcome(OSError):
    """The gateway let us in, or answered at all, but not as it should; `reason` says what it did."""

    def __init__(self, reason: str, *, asked_ms: int | None = None, crowded: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.asked_ms = asked_ms
        """When to come again, if it said so."""
        self.crowded = crowded
        """Over a limit of connections."""


def unreachable_reason(problem: Exception) -> str:
    match problem:
        case Unwelcome():
            return problem.reason
        case TimeoutError():
            return "no answer in time"
        case ssl.SSLCertVerificationError():
            return f"certificate not trusted: {problem.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {(problem.reason or 'unknown').replace('_', ' ').lower()}"
        case socket.gaierror():
            return "name not known"
        case OSError(errno=int() as number):
            return _BY_ERRNO.get(number) or os.strerror(number)
        case _:
            return str(problem) or type(problem).__name__


def refusal_reason(answer: Answer) -> str:
    """As in `HTTP 503 OVERLOADED`."""
    if answer.status == 101:
        return "HTTP 101 without a valid handshake"
    code = error_code(answer.body)
    return f"HTTP {answer.status} {code}".rstrip() if answer.status else "not HTTP"


def error_code(body: bytes) -> str:
    """The code in the body of an HTTP error of the gateway's; empty when it is none."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError):
        return ""
    error = content.get("error") if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""


def retry_after_ms(answer: Answer) -> int | None:
    seconds = answer.headers.get("retry-after", "")
    return int(seconds) * 1000 if seconds.isdecimal() else None
