"""What an MCP server says on its standard error: lines of our log, and the last words of one that can't start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TextIO

import anyio
import structlog

_MAX_LINE_BYTES = 2_048
_LAST_WORDS_S = 0.2

log_lines = structlog.get_logger(__name__)


class Stderr(asyncio.Protocol):
    """Writes each line at level debug: most servers narrate every request there."""

    def __init__(self, server: str) -> None:
        self.last_line = ""
        self.ended = asyncio.Event()
        self._server = server
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        # The rest of a longer line than this is a line of its own.
        while len(rest) > _MAX_LINE_BYTES:
            self._line(rest[:_MAX_LINE_BYTES])
            rest = rest[_MAX_LINE_BYTES:]
        self._rest = rest

    def connection_lost(self, exc: Exception | None) -> None:
        self._line(self._rest)
        self.ended.set()

    def _line(self, line: bytes) -> None:
        text = line[:_MAX_LINE_BYTES].decode(errors="replace").strip()
        if text:
            self.last_line = text
            log_lines.debug("an MCP server says", server=self._server, line=text)


@asynccontextmanager
async def stderr_of(server: str) -> AsyncIterator[tuple[Stderr, TextIO]]:
    """The file to start the server with, and who reads it; both are closed at the end."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as source, os.fdopen(writing, "w") as target:
        transport, stderr = await asyncio.get_running_loop().connect_read_pipe(lambda: Stderr(server), source)
        try:
            yield stderr, target
        finally:
            target.close()
            # What a server said last is often why it ended, and may still be in the pipe. A child that outlived it
            # holds the pipe open.
            with anyio.move_on_after(_LAST_WORDS_S, shield=True):
                await stderr.ended.wait()
            transport.close()
