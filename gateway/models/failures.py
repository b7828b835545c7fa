"""Why a model call failed: from a status, an exception or an error object to a `ModelError` (SPEC.md section 8).

Every text here is shown to people. It names the cause and what to do next, and carries no secret: of what an
upstream writes about a refused key nothing is passed on (OpenAI's repeats a part of the key), of other answers
only short codes, and the message of a refused request after `scrub`.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.models.model import ModelError
from protocol.codes import ErrorCode

MAX_QUOTE_CHARS = 200
MAX_RETRY_AFTER_S = 3600.0

_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"}
_CONTEXT_WORDS = re.compile(
    r"maximum context length|context window|available context size|prompt is too long", re.IGNORECASE
)
_RATE_CODES = {"rate_limit_exceeded", "rate_limit_error", "too_many_requests", "rate_limited"}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_PASSING_STATUS = {408, 409, 425, 529}

_SLUG = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,47}")
_SECRETS = re.compile(
    r"""
      \b(?:bearer|basic)\s+[^\s"',;]+                                           # an Authorization header
    | \beyJ[\w\-]+\.[\w\-]+(?:\.[\w\-]+)?                                       # a JWT
    | \b(?:sk|pk|rk|gsk|xai|hf|ghp|nvapi)[-_*][\w\-*.]{3,}             # keys with a maker's prefix, masked too
    | \bAIza[\w\-]{10,}
    | (?:api[-_ ]?key|token|secret|password|authorization)(?:\s+provided)?["']?\s*[:=]\s*
        ["']?(?:(?:bearer|basic)\s+)?[^\s"',;]{4,}
    | \b(?=\w*\d)(?=\w*[A-Za-z])\w{24,}\b                                       # long random-looking runs
    | //[^\s/@]+@                                                               # userinfo in a URL
    """,
    re.IGNORECASE | re.VERBOSE,
)


class Upstream(Struct, frozen=True):
    """What an error text may and may not name."""

    address: str
    """Scheme, host, port and path; never userinfo or query."""
    secret: str | None = None


def upstream_at(base_url: str, secret: str | None) -> Upstream:
    parts = urlsplit(base_url)
    host = parts.netloc.rpartition("@")[2]
    return Upstream(f"{parts.scheme}://{host}{parts.path}".rstrip("/"), secret)


def scrub(text: str, secret: str | None = None) -> str:
    """One line of at most `MAX_QUOTE_CHARS` characters without anything that looks like a credential."""
    if secret:
        text = text.replace(secret, "[hidden]")
    text = _SECRETS.sub("[hidden]", " ".join(text.split()))
    text = "".join(c for c in text if c.isprintable())
    return text if len(text) <= MAX_QUOTE_CHARS else text[: MAX_QUOTE_CHARS - 1] + "…"


# ---------------------------------------------------------------- before the stream


def from_status(
    status: int, headers: Mapping[str, str], body: object, upstream: Upstream, *, now_s: float
) -> ModelError:
    """An answer that isn't 2xx. `body` is its JSON, its `error` object or its text; `now_s` is Unix seconds."""
    told = _Told(body, upstream)
    wait_s = retry_after(headers, now_s)
    if status == 429 or told.has(_RATE_CODES):
        return _rate_limited(told, wait_s)
    if status in _PASSING_STATUS or (status >= 500 and status != 501):
        return ModelError(
            ErrorCode.UPSTREAM_UNAVAILABLE,
            f"The model's server at {upstream.address} can't answer now ({status}{told.label(', ')}); try again soon.",
            transient=True,
            retry_after_s=wait_s,
        )
    if status == 413 or (status in (400, 422) and told.context_too_large):
        return _context_too_large()
    return _rejected(_refusal_text(status, told, upstream))


def from_exception(error: BaseException, upstream: Upstream) -> ModelError:
    """No answer came: the connection failed before the response headers."""
    where = upstream.address
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        text = f"No secure connection to {where}: its TLS certificate or protocol was not accepted."
    elif any(isinstance(cause, socket.gaierror) for cause in causes):
        text = f"The host of {where} can't be found: check OPENAI_BASE_URL and the network."
    elif any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        text = f"Nothing answers at {where}: is the server there running?"
    elif any(isinstance(cause, TimeoutError) for cause in causes):
        text = f"{where} did not accept a connection in time: check OPENAI_BASE_URL and the network."
    else:
        text = f"The connection to {where} failed before it answered: is the server there running?"
    return ModelError(ErrorCode.UPSTREAM_UNAVAILABLE, text, transient=True)


def retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (RFC 9110 section 10.2.3), within 0 and `MAX_RETRY_AFTER_S`."""
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        if "retry-after-ms" in lower:
            wait_s = float(lower["retry-after-ms"]) / 1000
        elif re.fullmatch(r"\s*[\d.]+\s*", lower.get("retry-after", "")):
            wait_s = float(lower["retry-after"])
        elif "retry-after" in lower:
            at = parsedate_to_datetime(lower["retry-after"])
            wait_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_s
        else:
            return None
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S) if wait_s == wait_s else None


# ---------------------------------------------------------------- in the stream


def reported(error: object, upstream: Upstream) -> ModelError:
    """An `error` object where a chunk was expected. OpenRouter and vLLM put an HTTP status into `code`."""
    told = _Told(error, upstream)
    if told.status == 429 or told.has(_RATE_CODES | _QUOTA_CODES):
        return _rate_limited(told, None)
    if told.context_too_large:
        return _context_too_large()
    if told.status in (401, 402, 403):
        return _rejected(_refusal_text(told.status, told, upstream))
    return _stream_error(f"The model's server reported an error in the middle of its answer{told.quote()}; try again.")


def truncated() -> ModelError:
    return _stream_error("The model's answer broke off before its end; try again.")


def broken(upstream: Upstream) -> ModelError:
    return _stream_error(f"The connection to {upstream.address} broke in the middle of the answer; try again.")


def empty() -> ModelError:
    return _stream_error("The model's server ended its answer without a word; try again.")


def unreadable() -> ModelError:
    return _stream_error("The model's server sent something that is not a chat completion chunk; try again.")


def too_large(limit_bytes: int) -> ModelError:
    return _stream_error(f"The model's server sent one event of more than {limit_bytes} bytes.")


def not_a_chat_api(upstream: Upstream) -> ModelError:
    return _rejected(
        f"{upstream.address} did not answer with a chat completion: "
        "check that OPENAI_BASE_URL is the root of an OpenAI-compatible API (it mostly ends in /v1)."
    )


def unexpected() -> ModelError:
    """For what the gateway itself couldn't make sense of; the cause is chained for the log, not for the peer."""
    return ModelError(ErrorCode.STREAM_ERROR, "The model's answer could not be processed.", transient=False)


# ---------------------------------------------------------------- what an upstream told


class _Told:
    """The few things that may be read from an error body, of whatever type and shape it is."""

    def __init__(self, body: object, upstream: Upstream) -> None:
        error = body.get("error", body) if isinstance(body, Mapping) else body
        fields: Mapping[str, object] = error if isinstance(error, Mapping) else {}
        text = error if isinstance(error, str) else fields.get("message", fields.get("detail", ""))
        self.message = text if isinstance(text, str) else ""
        code = fields.get("code")
        self.slugs = [str(s) for s in (code, fields.get("type")) if isinstance(s, str) and _SLUG.fullmatch(s)]
        number = code if isinstance(code, (int, str)) and not isinstance(code, bool) else ""
        self.status = int(number) if re.fullmatch(r"[1-5]\d\d", str(number)) else 0
        self._upstream = upstream

    def has(self, codes: set[str]) -> bool:
        return any(slug in codes for slug in self.slugs)

    @property
    def context_too_large(self) -> bool:
        return self.has(_CONTEXT_CODES) or bool(_CONTEXT_WORDS.search(self.message))

    def label(self, before: str) -> str:
        slug = scrub(self.slugs[0], self._upstream.secret) if self.slugs else ""
        return before + slug if slug else ""

    def quote(self) -> str:
        text = scrub(self.message, self._upstream.secret)
        return f" ({text})" if text else self.label(" (") + (")" if self.slugs else "")


def _refusal_text(status: int, told: _Told, upstream: Upstream) -> str:
    if status == 401:
        return f"{upstream.address} refused the API key (401): check OPENAI_API_KEY."
    if status == 402:
        return f"The account at {upstream.address} has no credit left (402): check its billing."
    if status == 403:
        return f"{upstream.address} does not allow this (403{told.label(', ')}): check what OPENAI_API_KEY may use."
    if status == 404:
        what = f"the model or the path (404){told.quote()}"
        return f"{upstream.address} does not know {what}: check MODEL and OPENAI_BASE_URL."
    if status in (400, 422):
        return f"The model's server refused the request ({status}){told.quote()}."
    if 300 <= status < 400:
        return f"{upstream.address} only redirects ({status}): check OPENAI_BASE_URL."
    return f"The model's server refused the request ({status}{told.label(', ')}): check OPENAI_BASE_URL and MODEL."


def _rate_limited(told: _Told, wait_s: float | None) -> ModelError:
    if told.has(_QUOTA_CODES):
        text = "The quota of the API key at the model's server is used up: check its plan and billing."
        return ModelError(ErrorCode.UPSTREAM_RATE_LIMITED, text, transient=False, retryable=False)
    text = "The model's server is receiving too many requests; try again a little later."
    return ModelError(ErrorCode.UPSTREAM_RATE_LIMITED, text, transient=True, retry_after_s=wait_s)


def _context_too_large() -> ModelError:
    text = "The conversation is larger than the model's context window: shorten it or set MAX_CONTEXT_TOKENS lower."
    return ModelError(ErrorCode.CONTEXT_TOO_LARGE, text, transient=False)


def _rejected(text: str) -> ModelError:
    return ModelError(ErrorCode.UPSTREAM_REJECTED, text, transient=False)


def _stream_error(text: str) -> ModelError:
    return ModelError(ErrorCode.STREAM_ERROR, text, transient=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The chain of causes, innermost last; bounded, as chains can be circular."""
    for _ in range(16):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
