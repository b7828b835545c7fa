"""OpenAPI 3.1 for the HTTP side and AsyncAPI 3.0 for `/chat`, from the same records that are sent and validated.

The answers that aren't frames are records here too: `POST /api/chat`, `GET /api/conversations/{id}` and so on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from protocol.codec import CODECS
from protocol.codes import CloseCode, ErrorCode
from protocol.frames import (
    MAX_METADATA_BYTES,
    AnyClientFrame,
    AnyServerFrame,
    Cancel,
    ChatMessage,
    ClientFunctionResult,
    ErrorBody,
    FoldedCall,
    FoldedMessage,
    RunningTurn,
    Usage,
)
from protocol.refusals import MAX_REF_CHARS

Schema: TypeAlias = dict[str, Any]

# ------------------------------------------------------------------------ answers over HTTP (SPEC.md section 3.5)


class ChatReply(Struct, frozen=True):
    reply: str
    conversation_id: str
    turn_id: str
    status: Literal["completed", "cancelled", "function_call"]
    function_calls: list[FoldedCall]
    usage: Usage | None


class Conversation(Struct, frozen=True):
    conversation_id: str
    seq: int
    epoch: int
    messages: list[FoldedMessage]
    turn: RunningTurn | None


class CancelReply(Struct, frozen=True):
    outcome: Literal["stopped", "already_done", "not_found"]
    turn_id: str | None


class AcceptedReply(Struct, frozen=True):
    accepted: Literal[True]


class ErrorReply(Struct, frozen=True):
    error: ErrorBody


_REPLIES: tuple[type[Struct], ...] = (ChatReply, Conversation, CancelReply, AcceptedReply, ErrorReply)
_BODIES: dict[str, tuple[type[Struct], tuple[str, ...]]] = {
    "ChatMessageBody": (ChatMessage, ()),
    "CancelBody": (Cancel, ("conversation_id",)),
    "FunctionResultBody": (ClientFunctionResult, ("conversation_id",)),
}
"""An HTTP body is its frame, where `type` and what the path says needn't be given."""

_CLIENT: tuple[type[Struct], ...] = get_args(AnyClientFrame)
_SERVER: tuple[type[Struct], ...] = get_args(AnyServerFrame)
_IDENTIFIER: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9_.\-]{1,128}$"}
_CURSOR: Schema = {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,15})(\.(0|[1-9][0-9]{0,15}))?$"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(kinds: Iterable[type[Struct]]) -> dict[str, Schema]:
    """The component schemas of `kinds` and all that they use, as they are on the wire."""
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    if message := schemas.get("Message"):
        # What the log alone knows (SPEC.md section 6.1), and a default that is always sent.
        del message["properties"]["options"]
        del schemas["Options"]
        message["properties"]["role"].pop("default")
        message["required"].append("role")
    if context := schemas.get("Context"):
        del context["properties"]["memory"]
        del schemas["Memory"]
    for schema in schemas.values():
        properties = schema.get("properties", {})
        if "ref" in properties:
            properties["ref"] = {"type": ["string", "null"], "maxLength": MAX_REF_CHARS}
    if chat := schemas.get("ChatMessage"):
        chat["properties"]["metadata"]["description"] = f"at most {MAX_METADATA_BYTES} bytes of JSON"
    if result := schemas.get("ClientFunctionResult"):
        result["oneOf"] = [{"required": ["result"]}, {"required": ["error"]}]
    return schemas


# ------------------------------------------------------------------------------------------------------ OpenAPI


def openapi(version: str) -> Schema:
    """The HTTP endpoints; `version` is the gateway's own."""
    schemas = _schemas((*_SERVER, *_REPLIES, *(kind for kind, _ in _BODIES.values())))
    for name, (kind, from_path) in _BODIES.items():
        schemas[name] = _body_schema(schemas.pop(kind.__name__), name, from_path)
    schemas["Frame"] = _one_of(_SERVER)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Convobase Gateway", "version": version, "summary": "Conversations over HTTP and SSE"},
        "paths": _paths(),
        "components": {"schemas": schemas},
    }


def _body_schema(schema: Schema, title: str, from_path: tuple[str, ...]) -> Schema:
    optional = {"type", *from_path}
    return {**schema, "title": title, "required": [name for name in schema["required"] if name not in optional]}


def _one_of(kinds: Iterable[type[Struct]]) -> Schema:
    names = {str(kind.__struct_config__.tag): kind.__name__ for kind in kinds}
    return {
        "oneOf": [_ref(name) for name in names.values()],
        "discriminator": {
            "propertyName": "type",
            "mapping": {tag: _ref(name)["$ref"] for tag, name in names.items()},
        },
    }


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _stream(description: str) -> Schema:
    # OpenAPI can't say that `data:` lines are frames; the schema is that of one `data:` line.
    return {"description": description, "content": {"text/event-stream": {"schema": _ref("Frame")}}}


def _operation(name: str, summary: str, answers: Schema, **more: Any) -> Schema:
    refused = _json("refused: see `error.code`", _ref("ErrorReply"))
    return {"operationId": name, "summary": summary, **more, "responses": {**answers, "default": refused}}


def _body(name: str, *, required: bool = True) -> Schema:
    return {"required": required, "content": {"application/json": {"schema": _ref(name)}}}


def _parameter(name: str, where: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required, "schema": schema, "description": description}


def _paths() -> Schema:
    conversation = _parameter("conversation_id", "path", _IDENTIFIER, "the conversation", required=True)
    attach = [
        _parameter("conversation_id", "query", _IDENTIFIER, "the conversation", required=True),
        _parameter("after", "query", _CURSOR, "start after this cursor; default: the turn in progress"),
        _parameter("Last-Event-ID", "header", _CURSOR, "what EventSource sends at a reconnect; wins over `after`"),
    ]
    chat = {"requestBody": _body("ChatMessageBody")}
    text = {"200": {"description": "yes", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    state = _json("as the status says", {"type": "object", "properties": {"status": {"type": "string"}}})
    whole = {"200": _json("a schema", {"type": "object"})}
    page = {"200": {"description": "a page", "content": {"text/html": {"schema": {"type": "string"}}}}}
    return {
        "/api/chat/stream": {
            "post": _operation("chatStream", "Send a message, read its turn", {"200": _stream("frames")}, **chat),
            "get": _operation(
                "attach",
                "Read a conversation from a cursor on",
                {"200": _stream("frames"), "204": {"description": "nothing to read: no turn is open"}},
                parameters=attach,
            ),
        },
        "/api/chat": {
            "post": _operation("chat", "Send a message, wait", {"200": _json("reply", _ref("ChatReply"))}, **chat)
        },
        "/api/conversations/{conversation_id}": {
            "parameters": [conversation],
            "get": _operation("read", "The conversation", {"200": _json("its fold", _ref("Conversation"))}),
            "delete": _operation("delete", "End its turns and erase it", {"204": {"description": "it is gone"}}),
        },
        "/api/conversations/{conversation_id}/cancel": {
            "parameters": [conversation],
            "post": _operation(
                "cancel",
                "Stop a turn",
                {"200": _json("what became of it", _ref("CancelReply"))},
                requestBody=_body("CancelBody", required=False),
            ),
        },
        "/api/conversations/{conversation_id}/function_results": {
            "parameters": [conversation],
            "post": _operation(
                "functionResult",
                "Answer a function call",
                {"200": _json("taken", _ref("AcceptedReply"))},
                requestBody=_body("FunctionResultBody"),
            ),
        },
        "/healthz": {"get": _operation("healthz", "Alive", {"200": state})},
        "/readyz": {"get": _operation("readyz", "Ready for traffic", {"200": state, "503": state})},
        "/metrics": {"get": _operation("metrics", "Prometheus", text)},
        "/": {"get": _operation("playground", "A chat page", page)},
        "/openapi.json": {"get": _operation("openapi", "This document", whole)},
        "/asyncapi.json": {"get": _operation("asyncapi", "The same for `/chat`", whole)},
    }


# ----------------------------------------------------------------------------------------------------- AsyncAPI

# The direct answers (SPEC.md section 4.4), by `type`; every frame may also be answered by `error`.
ANSWERS: dict[str, str] = {
    "chat_message": "message",
    "function_result": "accepted",
    "cancel": "cancelled",
    "subscribe": "subscribed",
    "unsubscribe": "unsubscribed",
    "auth": "welcome",
    "ping": "pong",
}


def asyncapi(version: str) -> Schema:
    """The realtime endpoint, seen from the gateway: it receives what clients send."""
    messages = {kind.__name__: _message(kind) for kind in (*_CLIENT, *_SERVER)}
    server = {str(kind.__struct_config__.tag): kind.__name__ for kind in _SERVER}
    operations: dict[str, Schema] = {
        "sendFrames": {"action": "send", "channel": _channel(), "messages": [_in_channel(n) for n in server.values()]}
    }
    for kind in _CLIENT:
        answers = [server[ANSWERS[str(kind.__struct_config__.tag)]], server["error"]]
        operations[f"receive{kind.__name__}"] = {
            "action": "receive",
            "channel": _channel(),
            "messages": [_in_channel(kind.__name__)],
            "reply": {"channel": _channel(), "messages": [_in_channel(name) for name in answers]},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Convobase Gateway", "version": version, "description": _codes()},
        "defaultContentType": "application/json",
        "channels": {
            "chat": {
                "address": "/chat",
                "description": f"A WebSocket; subprotocols: {', '.join(CODECS)}.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": operations,
        "components": {"messages": messages, "schemas": _schemas((*_CLIENT, *_SERVER))},
    }


def _channel() -> Schema:
    return {"$ref": "#/channels/chat"}


def _in_channel(name: str) -> Schema:
    return {"$ref": f"#/channels/chat/messages/{name}"}


def _message(kind: type[Struct]) -> Schema:
    return {"name": kind.__struct_config__.tag, "payload": _ref(kind.__name__)}


def _codes() -> str:
    closes = ", ".join(f"{code.value} {code.name.lower()}" for code in CloseCode)
    errors = ", ".join(f"{code.name} ({'' if code.retryable else 'not '}retryable)" for code in ErrorCode)
    return f"Error codes: {errors}. Close codes: {closes}."
