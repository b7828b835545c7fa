"""The seam between the WebSocket shell and the logic of one connection."""

from __future__ import annotations

import traceback
from pathlib import PurePath
from typing import Protocol

import structlog

_log = structlog.get_logger("gateway.edge")


class Handler(Protocol):
    """One connection's logic; the shell calls it from the event loop, never concurrently.

    An exception that leaves any of its methods is logged as one line and closes the connection with 1011.
    """

    def opened(self) -> None:
        """The handshake is done, the subprotocol chosen. `shell.request` is gone when this has returned."""
        ...

    def received(self, data: bytes, binary: bool) -> None:
        """One whole message, within `max_message_bytes`, and valid UTF-8 unless `binary`. Not called after
        `shell.close`; after `shell.pause_reading` only for what is left of a slice (`intake.SLICE_BYTES`)."""
        ...

    def writable(self) -> None:
        """The write buffer was over the high-water mark and has fallen under the low-water mark."""
        ...

    def closed(self) -> None:
        """Exactly once after `opened`, whatever happened."""
        ...


def log_failure(exc: Exception, peer: str) -> None:
    """Says what went wrong, and where, in one line: the mistake may be made by 20,000 connections at once."""
    at = traceback.extract_tb(exc.__traceback__)[-1]
    _log.error("a connection failed", peer=peer, error=repr(exc), at=f"{PurePath(at.filename).name}:{at.lineno}")
