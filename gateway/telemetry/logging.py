"""Structured logs: one event a line, to people (`console`) or machines (`json`), on stderr.

Every library's `logging` goes through the same processors, so that ids bound with `structlog.contextvars` stand on
each line and a secret is blotted out wherever it comes from. Lines are for operators; nothing here is per token.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["console", "json"]

HIDDEN = "[hidden]"
_SECRET_KEYS = frozenset(
    (
        "api_key",
        "authorization",
        "cookie",
        "jwt",
        "jwt_secret",
        "openai_api_key",
        "password",
        "secret",
        "ticket",
        "token",
    )
)
# Bearer tokens, OpenAI keys, credentials in a query, and passwords in a URL.
_SECRET_TEXT = re.compile(
    r"(?i)(?<=bearer )[^\s\"',;]+|\bsk-[a-z0-9_\-]{8,}|(?<=[?&]ticket=)[^\s&\"']+|(?<=[?&]token=)[^\s&\"']+"
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MULTI_LINE = ("exception", "stack")

# Below these levels the libraries write each frame, header or request: noise, and what users said.
_QUIET = {
    "aiohttp": logging.WARNING,
    "asyncio": logging.INFO,
    "httpcore2": logging.WARNING,
    "httpx2": logging.WARNING,
    "openai": logging.INFO,
    "uvicorn": logging.INFO,
    "websockets": logging.INFO,
}


def configure(
    level: str,
    format: Format,  # noqa: A002  # the setting's name
    stream: TextIO | None = None,
    *,
    worker: int | None = None,
) -> None:
    """Routes structlog and the standard library's `logging` to `stream` (default: stderr), from `level` up. `worker`
    stands on each line, where it isn't None.

    May be called again, which replaces the earlier configuration. uvicorn has to be told `log_config=None`, or it
    installs its own handlers.
    """
    target = sys.stderr if stream is None else stream
    least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *([] if worker is None else [_of_worker(worker)]),
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Module-level loggers must follow a later `configure`.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(format, target)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least)
    _adopt_libraries(least)


def _of_worker(index: int) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        # A supervisor's line may be about another one.
        event.setdefault("worker", index)
        return event

    return add


def _adopt_libraries(least: int) -> None:
    logging.captureWarnings(capture=True)
    for name, own in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, own))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # One line a request says less than the metrics do, and its path may hold a ticket.
    logging.getLogger("uvicorn.access").disabled = True


def _renderer(format: Format, target: TextIO) -> list[Processor]:  # noqa: A002  # as above
    if format == "json":
        return [structlog.processors.JSONRenderer(serializer=_to_json)]
    return [
        _escape_control,
        structlog.dev.ConsoleRenderer(
            colors=target.isatty(),
            # rich's would print local variables, secrets included.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Blots out values whose key says that they are secret, and what looks like a credential inside any text."""
    for key, value in event.items():
        if key.lower() in _SECRET_KEYS:
            event[key] = HIDDEN
        elif isinstance(value, str):
            event[key] = _SECRET_TEXT.sub(HIDDEN, value)
    return event


def _escape_control(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    # Text from outside must neither start a line of its own nor move the terminal's cursor.
    for key, value in event.items():
        if key not in _MULTI_LINE and isinstance(value, str):
            event[key] = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], value)
    return event


def _to_json(event: EventDict, default: Callable[[Any], Any] = repr, **_: object) -> str:
    try:
        return orjson.dumps(event, default=default, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        # Lone surrogates and integers over 64 bits are beyond orjson.
        return json.dumps(event, default=repr)
