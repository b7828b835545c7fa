"""The steps that the demo model's answers are made of, and the ways in which it can fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeAlias

from gateway.models import demo_text as text
from gateway.models.model import Event, Finish, ModelError
from protocol.codes import ErrorCode

_TOKEN = re.compile(r"\s*\S{1,8}|\s+")


class Pause(Enum):
    FOREVER = "silent until somebody cancels"


Step: TypeAlias = Event | ModelError | Pause


def tokens_of(prose: str) -> Iterator[str]:
    """Word-like pieces, leading blanks included, that add up to exactly `prose`."""
    return (match.group() for match in _TOKEN.finditer(prose))


def spoken(prose: str) -> Iterator[Step]:
    yield from tokens_of(prose)
    yield Finish("stop")


def _refusing(
    code: ErrorCode, words: str, *, transient: bool, retry_after_s: float | None = None
) -> Callable[[], Iterator[Step]]:
    return lambda: iter([ModelError(code, words, transient=transient, retry_after_s=retry_after_s)])


def _breaking(words: str) -> Callable[[], Iterator[Step]]:
    def steps() -> Iterator[Step]:
        yield from tokens_of(text.BREAKING)
        yield ModelError(ErrorCode.STREAM_ERROR, words, transient=True)

    return steps


FAILURES: dict[str, Callable[[], Iterator[Step]]] = {
    "rejected": _refusing(
        ErrorCode.UPSTREAM_REJECTED, "The demo model refused the request, as you asked.", transient=False
    ),
    "rate_limited": _refusing(
        ErrorCode.UPSTREAM_RATE_LIMITED,
        "The demo model pretends to receive too many requests.",
        transient=True,
        retry_after_s=1.0,
    ),
    "unavailable": _refusing(
        ErrorCode.UPSTREAM_UNAVAILABLE, "The demo model pretends to be out of reach.", transient=True
    ),
    "context_too_large": _refusing(
        ErrorCode.CONTEXT_TOO_LARGE, "The demo model pretends that this is too long for it.", transient=False
    ),
    "stream_error": _breaking("The demo model broke its stream, as you asked."),
    "truncated": _breaking("The demo model's answer broke off before its end, as you asked."),
    "timeout": lambda: iter([Pause.FOREVER]),
}
"""By the name that `/fail` takes; also the contract's codes, with or without `UPSTREAM_`."""
