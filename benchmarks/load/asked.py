"""One message of the run's, and what is known of its answer."""

from __future__ import annotations


class Asked:
    """One message of ours, from when it was due to the end of its turn. Times on the monotonic clock."""

    __slots__ = (
        "acknowledged",
        "calls",
        "due_at",
        "first",
        "kept",
        "last_at",
        "length",
        "message_id",
        "text",
        "turn_id",
    )

    def __init__(self, message_id: str, text: str, due_at: float) -> None:
        self.message_id = message_id
        self.text = text
        self.due_at = due_at
        self.acknowledged = False
        self.turn_id = ""
        self.first = True
        """No token has come yet."""
        self.last_at = 0.0
        """Of the last token on this connection; 0: there is none to measure from."""
        self.length = 0
        """Code points of the text that stands."""
        self.calls: dict[str, None] = {}
        """Function calls that wait for our answer."""
        self.kept = 0
        """As many of them stand whatever happens: those before the last call."""

    def forgotten(self) -> None:
        """The log doesn't know it any more."""
        self.acknowledged, self.turn_id, self.length, self.kept = False, "", 0, 0
        self.calls.clear()
