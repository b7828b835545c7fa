"""Refusals that several rooms give."""

from __future__ import annotations

from protocol.codes import ErrorCode, Refusal


class Stopping(Refusal):
    """This node begins nothing new; another one will."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.OVERLOADED, "This node is about to stop. Connect again and resend.", retry_after_s=1)


def log_unreadable() -> Refusal:
    """What a command or a reader is told while the log is down."""
    return Refusal(ErrorCode.OVERLOADED, "The conversation log can't be read now. Try again soon.", retry_after_s=2)
