"""What can go wrong for a client, as one tree.

ClientError
├── RequestError       the gateway refused a request (`code`, `message`, `retryable`, `retry_after_s`)
│   └── Unauthorized   no credentials, or not the right ones
├── Unreachable        no connection to the gateway could be made
├── ConnectionLost     the connection broke while a request was under way that can't be repeated safely
├── ConnectionFailed   the connection ended for a reason that trying again doesn't mend
├── ClientClosed       this client was closed
├── AlreadySent        a `message_id` was sent before, and its turn is over
├── OrderError         a frame came out of order: an entry is missing, repeated, or of an older epoch
└── ProofError         a turn's text isn't as long as its `done` says
"""

from __future__ import annotations


class ClientError(Exception):
    """Root of all errors of this package."""


class RequestError(ClientError):
    """The gateway refused a request; `code` is one of SPEC.md section 8."""

    def __init__(self, code: str, message: str, retryable: bool, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class Unauthorized(RequestError):
    """The token is missing, wrong or out of date: get a new one."""

    def __init__(self, message: str = "the gateway doesn't accept these credentials") -> None:
        super().__init__("UNAUTHORIZED", message, False)


class Unreachable(ClientError, ConnectionError):
    """Nobody answers at that address, or what answers isn't a gateway that is ready. Trying again may help.

    `asked_ms`: when the gateway said that it is worth it (`Retry-After`).
    """

    def __init__(self, message: str, *, asked_ms: int | None = None) -> None:
        super().__init__(message)
        self.asked_ms = asked_ms


class ConnectionLost(ClientError, ConnectionError):
    """The connection broke before the answer came, and repeating this request by itself could do harm."""


class ConnectionFailed(ClientError):
    """The connection ended for a reason that trying again doesn't mend; `code` is the WebSocket close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the connection was closed with code {code}: {reason or 'no reason given'}")
        self.code = code
        self.reason = reason


class ClientClosed(ClientError):
    """This client was closed, so nothing can be asked of it any more."""


class AlreadySent(ClientError):
    """A `message_id` that was sent before is sent again on a connection that has read past its answer.

    The turn is over. Its text is in the conversation: read it with `get_conversation`, or `subscribe` after
    `seq - 1`.
    """

    def __init__(self, conversation_id: str, turn_id: str, seq: int) -> None:
        super().__init__(f"this message was sent before as turn {turn_id} of conversation {conversation_id}")
        self.conversation_id = conversation_id
        self.turn_id = turn_id
        self.seq = seq


class OrderError(ClientError):
    """`first_seq or seq == last seq + 1` doesn't hold, or an epoch went back (SPEC.md section 2)."""


class ProofError(ClientError):
    """`done.text_length` doesn't fit the text that was received (SPEC.md section 6)."""
