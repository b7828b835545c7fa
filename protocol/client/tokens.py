"""Where a client's token comes from."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]] | None
"""A token, or how to get a fresh one: asked before every attempt to connect."""


async def current(source: TokenSource) -> str | None:
    token = source() if callable(source) else source
    return await token if inspect.isawaitable(token) else token
