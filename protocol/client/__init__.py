"""The Python client of Convobase Gateway.

`Client` is the WebSocket: many conversations on one connection that mends itself. `stream_chat` and `attach` read
turns over SSE, and `rest` has the request-response endpoints. They stand on one pure core, `state`.
"""

from __future__ import annotations

from protocol.client.connection import Connected, Event, Reconnecting
from protocol.client.consumers import Subscription, Turn
from protocol.client.errors import (
    AlreadySent,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    ConnectionLost,
    OrderError,
    ProofError,
    RequestError,
    Unauthorized,
    Unreachable,
)
from protocol.client.rest import (
    Conversation,
    cancel_turn,
    chat,
    delete_conversation,
    get_conversation,
    send_function_result,
)
from protocol.client.sse import ChatStream, attach, stream_chat
from protocol.client.websocket import Client

__all__ = [
    "AlreadySent",
    "ChatStream",
    "Client",
    "ClientClosed",
    "ClientError",
    "Connected",
    "ConnectionFailed",
    "ConnectionLost",
    "Conversation",
    "Event",
    "OrderError",
    "ProofError",
    "Reconnecting",
    "RequestError",
    "Subscription",
    "Turn",
    "Unauthorized",
    "Unreachable",
    "attach",
    "cancel_turn",
    "chat",
    "delete_conversation",
    "get_conversation",
    "send_function_result",
    "stream_chat",
]
