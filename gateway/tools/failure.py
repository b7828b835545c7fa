"""The one way in which a tool fails."""

from __future__ import annotations

MAX_MESSAGE_CHARS = 500


class ToolFailed(Exception):
    """A tool gave no result. Its text may be shown to the model and to the client: plain words, never a secret, an
    address or a stack trace."""


def clipped(text: str) -> str:
    """What somebody else's server said, on one line and short enough to hand on."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 1] + "…"
