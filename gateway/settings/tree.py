"""The settings tree: every setting's name, default, unit and meaning, in the slices in which it is handed on.

A field's name is its key in `convobase.toml`, with dashes its flag, and in upper case after `CONVOBASE_` its
environment variable. The README's table is made from these definitions (`python -m gateway.settings`).
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from gateway.settings.template import RIGHT, checked_template

DEFAULT_UPSTREAM_MODEL = "gpt-5.4-mini"
"""Taken when an upstream is set and `MODEL` isn't: OpenAI's current small chat model."""

_AT_LEAST_0 = "a whole number of at least 0"
_AT_LEAST_1 = "a whole number of at least 1"
_SECONDS = "a number of seconds, at least 0"
_SECONDS_OVER_0 = "a number of seconds above 0"


def _setting(default: Any, meaning: str, right: str, **constraints: Any) -> Any:
    """`meaning` goes into the README, `right` into the error ("… give {right}")."""
    return Field(default, description=meaning, json_schema_extra={"right": right}, **constraints)


def _no_bool(value: object) -> object:
    # pydantic would read `port = true` as 1.
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _origin(value: str) -> str:
    if not re.fullmatch(r"https?://[^/?#\s@]+", value):
        raise ValueError("not an origin")
    # Browsers send an origin in lower case.
    return value.lower()


def _known_engine(value: str) -> str:
    scheme, _, rest = value.partition(":")
    known = ("sqlite", "redis", "rediss", "redis+sentinel", "rediss+sentinel")
    if value != "memory:" and not (scheme.lower() in known and rest):
        raise ValueError("not a log URL")
    return value


def _minus_one_or_more(value: float) -> float:
    if value < 0 and value != -1:
        raise ValueError("negative")
    return value


def _window(value: int) -> int:
    if value != 0 and value < 256:
        raise ValueError("too small")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]


class Slice(BaseModel):
    """One part of the tree, immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Serving(Slice):
    """How the gateway listens, stops and talks to its operator."""

    host: str = _setting("127.0.0.1", "address to listen on", "an address or a host name", min_length=1)
    port: Whole = _setting(8080, "port; 0: any free one", "a port number from 0 to 65535", ge=0, le=65535)
    tls_cert: Path | None = _setting(None, "PEM file of the certificate chain", "the path of a PEM file")
    tls_key: Path | None = _setting(None, "PEM file of its key", "the path of a PEM file")
    workers: Whole = _setting(
        1,
        "processes that serve together, one for each core; several need a `redis:` log",
        _AT_LEAST_1,
        ge=1,
    )
    drain_s: Seconds = _setting(30, "how long running turns may go on after SIGTERM", _SECONDS, ge=0)
    handshake_timeout_s: Seconds = _setting(
        10, "for a WebSocket handshake and for half-sent HTTP headers", _SECONDS_OVER_0, gt=0
    )
    write_deadline_s: Seconds = _setting(
        10, "a reader that takes nothing for so long is cut off, and resumes later", _SECONDS_OVER_0, gt=0
    )
    heartbeat_s: Seconds = _setting(20, "between pings (WebSocket) and comment lines (SSE)", _SECONDS_OVER_0, gt=0)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = _setting(
        "info", "`debug`, `info`, `warning` or `error`", "debug, info, warning or error"
    )
    log_format: Annotated[Literal["console", "json"], BeforeValidator(_lower)] = _setting(
        "console", "`console` for people, `json` for machines", "console or json"
    )
    insecure: bool = _setting(False, "allow other machines without authentication", "true or false")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect. A name other than `localhost` may resolve to anything."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


class LogAndSessions(Slice):
    """Where conversations are kept and how their sessions behave."""

    log_url: Annotated[str, AfterValidator(_known_engine)] = _setting(
        "sqlite:convobase.db",
        "the conversation log: `sqlite:PATH`, `redis://HOST` (for several nodes), or `memory:` (lost at a restart)",
        "sqlite:PATH, memory: or redis://HOST",
    )
    retention_s: Whole = _setting(
        2592000, "a conversation is removed so long after its last entry; 0: never", _AT_LEAST_0, ge=0
    )
    max_queued: Whole = _setting(16, "messages that may wait in one conversation", _AT_LEAST_0, ge=0)
    session_idle_s: Seconds = _setting(300, "an idle session leaves memory after this", _SECONDS_OVER_0, gt=0)
    batch_chars: Whole = _setting(10, "tokens are joined up to so many characters; 0: no batching", _AT_LEAST_0, ge=0)
    batch_ms: Whole = _setting(
        50, "and wait at most so many milliseconds, if more can be expected; 0: no batching", _AT_LEAST_0, ge=0
    )

    @property
    def url(self) -> str:
        return self.log_url


class Upstream(Slice):
    """The model and the patience with it."""

    model: str = _setting(
        "demo",
        f"`demo` is the offline model; with an upstream the default is `{DEFAULT_UPSTREAM_MODEL}`",
        "the name of a model",
        min_length=1,
    )
    summary_model: str = _setting("", "writes summaries; default: `MODEL`", "the name of a model")
    embedding_model: str | None = _setting(None, "for choosing tools", "the name of an embedding model")
    max_context_tokens: Whole = _setting(8000, "budget of a model call", "a whole number of at least 256", ge=256)
    model_window: Annotated[Whole, AfterValidator(_window)] = _setting(
        0,
        "context window of `MODEL`, which bounds the budget too; 0: as known for common models, else no bound",
        "0, or a whole number of at least 256",
    )
    max_tools: Whole = _setting(16, "tools in a model call", _AT_LEAST_1, ge=1)
    system_prompt: Annotated[str, AfterValidator(checked_template)] = _setting(
        "",
        "template of the system prompt, with `{date}` `{weekday}` `{time}` (UTC) `{system}` `{summary}` `{claims}` "
        "`{claims.NAME}`; a `{system}` or `{summary}` that it doesn't mention is added at its end",
        RIGHT,
    )
    client_system: Annotated[Literal["allow", "refuse"], BeforeValidator(_lower)] = _setting(
        "allow", "whether clients may set `system`: `allow` or `refuse`", "allow or refuse"
    )
    first_token_timeout_s: Seconds = _setting(60, "until a model's first token", _SECONDS_OVER_0, gt=0)
    token_timeout_s: Seconds = _setting(30, "between two tokens", _SECONDS_OVER_0, gt=0)
    function_timeout_s: Seconds = _setting(300, "for the result of a function call", _SECONDS_OVER_0, gt=0)
    orphan_grace_s: Annotated[Seconds, AfterValidator(_minus_one_or_more)] = _setting(
        -1, "how long a turn runs on with no reader; -1: to its end", "-1 or a number of seconds, at least 0"
    )
    openai_api_key: SecretStr | None = _setting(
        None,
        "the upstream's key",
        "a key",
        validation_alias=AliasChoices("openai_api_key", "OPENAI_API_KEY"),
    )
    openai_base_url: str | None = _setting(
        None,
        "any OpenAI-compatible server",
        "a URL that starts with http:// or https://",
        pattern=r"^https?://[^\s/]",
        validation_alias=AliasChoices("openai_base_url", "OPENAI_BASE_URL"),
    )


class ToolLimits(Slice):
    """For the tools that the gateway runs itself; those are in `gateway.settings.tools`."""

    tool_concurrency: Whole = _setting(
        16, "calls of the gateway's own tools that run at once; more of them wait", _AT_LEAST_1, ge=1
    )


class Who(Slice):
    """Who may connect."""

    auth: Annotated[Literal["none", "jwt"], BeforeValidator(_lower)] = _setting(
        "none", "`none`; `jwt` comes with a later version", "none"
    )
    jwt_secret: SecretStr | None = _setting(None, "later version", "a secret")
    jwks_url: str | None = _setting(None, "later version", "a URL")
    jwt_issuer: str | None = _setting(None, "later version", "an issuer")
    jwt_audience: str | None = _setting(None, "later version", "an audience")
    jwt_leeway_s: Seconds = _setting(10, "later version", _SECONDS, ge=0)
    auth_timeout_s: Seconds = _setting(10, "later version", _SECONDS_OVER_0, gt=0)
    allowed_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)
    ] = _setting(
        (),
        "further web origins that may connect (comma-separated; a list in `convobase.toml`); always: the same origin",
        "origins such as https://chat.example.com, separated by commas",
    )


class Limits(Slice):
    """How much."""

    max_frame_bytes: Whole = _setting(
        65536, "the largest frame or body from a client", "a whole number of at least 1024", ge=1024
    )
    max_connections: Whole = _setting(10000, "connections", _AT_LEAST_1, ge=1)
    max_connections_per_user: Whole = _setting(50, "later version", _AT_LEAST_1, ge=1)
    max_conversations_per_connection: Whole = _setting(1000, "subscriptions of one connection", _AT_LEAST_1, ge=1)
    max_streams: Whole = _setting(10000, "turns that run at once", _AT_LEAST_1, ge=1)
    messages_per_minute: Whole = _setting(0, "later version", _AT_LEAST_0, ge=0)
    tokens_per_day: Whole = _setting(0, "later version", _AT_LEAST_0, ge=0)
