"""Requests between nodes: a message on the other node's channel, and the reply as a message on ours.

    request   [1, id, sender, settled, payload]       reply   [2, id, outcome, payload]           (MessagePack)

The server tells how many read a channel: when nobody does, for a second, the node is gone. Messages get lost when a
connection is cut, so a request is sent again after a second without a reply, and when our own channel stands again
after a cut. Whoever serves it remembers its reply, so it is executed once. `settled` says below which id the sender
waits for nothing any more: replies needn't be remembered long, and a copy that comes very late is known for it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol, TypeAlias

import msgspec
from msgspec import Struct

from gateway.logs.log import LogUnavailable
from gateway.logs.redis_wire import Answered

PAYLOAD_BYTES = 4 << 20
"""Bound of a request's payload, and of a reply's."""


class Outcome(IntEnum):
    DONE = 0
    FAILED = 1
    GONE = 2
    """Not executed: the node is leaving."""


class RequestMessage(Struct, array_like=True, tag=1, frozen=True):
    id: int
    sender: str
    settled: int
    payload: bytes


class ReplyMessage(Struct, array_like=True, tag=2, frozen=True):
    id: int
    outcome: int
    payload: bytes


Message: TypeAlias = RequestMessage | ReplyMessage

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(message: bytes) -> Message:
    """What another node sent. Raises `msgspec.MsgspecError`."""
    return _decoder.decode(message)


class Post(Protocol):
    """How messages get to other nodes."""

    def post(self, node_id: str, message: bytes, answered: Answered) -> None:
        """Publishes on that node's channel; the reply is how many read it. Raises `LogUnavailable`."""
        ...

    def problem(self) -> LogUnavailable | None:
        """Why nothing can be posted, when trying to connect has failed."""
        ...
