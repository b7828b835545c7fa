"""Frames to bytes and back, in JSON and in MessagePack (SPEC.md section 4).

Decoding a client's frame validates all of it: what comes out can be acted upon. Encoders and decoders are made once
and keep no state between frames.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, get_args

import msgspec
from msgspec import structs

from protocol.checks import MAX_NESTING, check
from protocol.frames import (
    AnyClientFrame,
    AnyServerFrame,
    ClientFrame,
    Context,
    LoggedFrame,
    Message,
    Token,
)
from protocol.refusals import BAD, UNREADABLE, BadFrame, explain, not_an_object, valid_identifier

__all__ = [
    "CODECS",
    "JSON",
    "MAX_NESTING",
    "MSGPACK",
    "BadFrame",
    "Codec",
    "WireMessage",
    "decode_body",
    "format_cursor",
    "parse_cursor",
    "valid_identifier",
]

AnyFrame: TypeAlias = AnyClientFrame | AnyServerFrame

_SERVER_TYPES = frozenset(kind.__struct_config__.tag for kind in get_args(AnyServerFrame))
_encode_json: Final = msgspec.json.Encoder().encode
_decode_json: Final = msgspec.json.Decoder().decode


class WireMessage(LoggedFrame, frozen=True, tag="message"):
    """A `message` as it is sent: without `options`, and with its `role` always there."""

    role: Literal["user"]
    content: str
    message_id: str
    interrupt: bool = False
    ref: str | None = None
    duplicate: bool = False


def _to_wire(frame: Message) -> WireMessage:
    return WireMessage(
        conversation_id=frame.conversation_id,
        turn_id=frame.turn_id,
        seq=frame.seq,
        epoch=frame.epoch,
        metadata=frame.metadata,
        role=frame.role,
        content=frame.content,
        message_id=frame.message_id,
        interrupt=frame.interrupt,
        ref=frame.ref,
        duplicate=frame.duplicate,
    )


class Codec:
    """One encoding of frames, named by its WebSocket subprotocol. `binary` says which kind of WebSocket message it
    travels in. Use the instances `JSON` and `MSGPACK`."""

    __slots__ = ("_client", "_encode", "_plain", "_server", "binary", "language", "name")

    def __init__(
        self, language: str, *, binary: bool, encode: Callable[[Any], bytes], decoder: Callable[[Any], Any]
    ) -> None:
        self.name = f"convobase.v1+{language.lower().replace('messagepack', 'msgpack')}"
        self.language = language
        self.binary = binary
        self._encode = encode
        self._client: Callable[[bytes], AnyClientFrame] = decoder(AnyClientFrame).decode
        self._server: Callable[[bytes], AnyServerFrame] = decoder(AnyServerFrame).decode
        self._plain: Callable[[bytes], object] = decoder(Any).decode

    def __repr__(self) -> str:
        return f"<Codec {self.name}>"

    def encode(self, frame: AnyFrame) -> bytes:
        """The bytes of one frame, always on one line in JSON. What only the log has to know isn't sent."""
        if type(frame) is Message:
            return self._encode(_to_wire(frame))
        if type(frame) is Context:
            return self._encode(structs.replace(frame, memory=None))
        return self._encode(frame)

    def encode_all(self, frames: Sequence[AnyServerFrame]) -> list[bytes]:
        """The bytes of each frame."""
        if len(frames) == 1 and type(frames[0]) is Token:  # as nearly always
            return [self._encode(frames[0])]
        return [self.encode(frame) for frame in frames]

    def decode_client(self, data: bytes) -> AnyClientFrame:
        """One validated frame of a client. Raises `BadFrame`, with `BAD_FRAME` or `UNKNOWN_TYPE`."""
        try:
            frame = self._client(data)
        except UNREADABLE as error:
            refusal = explain(error, lambda: self._plain(data), "frame", self.language)
        else:
            check(frame)
            return frame
        # Outside of the handler, so that no half-read payload hangs on the error as its context.
        raise refusal

    def decode_server(self, data: bytes) -> AnyServerFrame | None:
        """One frame of a gateway; None for a type that this version doesn't know, which a client ignores.

        Unknown fields are ignored too. Raises `BadFrame` for what isn't a frame at all.
        """
        try:
            return self._server(data)
        except UNREADABLE as error:
            try:
                content = self._plain(data)
            except UNREADABLE:
                content = None
            if isinstance(content, dict):
                kind = content.get("type")
                if isinstance(kind, str) and kind not in _SERVER_TYPES:
                    return None
            raise BadFrame(BAD, f"the gateway sent a frame that can't be read: {error}") from None

    def wrong_message_kind(self) -> BadFrame:
        """The refusal of a binary WebSocket message on a text subprotocol, or the other way round."""
        right, wrong = ("binary", "text") if self.binary else ("text", "binary")
        return BadFrame(BAD, f"this connection speaks {self.language}: frames are {right} messages, not {wrong} ones")


JSON: Final = Codec("JSON", binary=False, encode=_encode_json, decoder=msgspec.json.Decoder)
MSGPACK: Final = Codec(
    "MessagePack", binary=True, encode=msgspec.msgpack.Encoder().encode, decoder=msgspec.msgpack.Decoder
)
CODECS: Final[dict[str, Codec]] = {JSON.name: JSON, MSGPACK.name: MSGPACK}
"""By subprotocol, in the order in which the gateway prefers them."""


# ----------------------------------------------------------------------------------------- HTTP (section 3.5)

F = TypeVar("F", bound=ClientFrame)


def decode_body(data: bytes, kind: type[F], **fields: str) -> F:
    """The JSON body of an HTTP request as the frame that it stands for. No body counts as `{}`.

    `type` may be absent. `fields` come from the path: they win, and one that differs in the body is refused.
    Raises `BadFrame` with `BAD_FRAME`.
    """
    try:
        content = _decode_json(data or b"{}")
    except UNREADABLE as error:
        refusal = explain(error, lambda: _decode_json(data), "body", "JSON")
    else:
        return _convert(content, kind, fields)
    raise refusal


def _convert(content: object, kind: type[F], fields: dict[str, str]) -> F:
    if not isinstance(content, dict):
        raise not_an_object(content, "body")
    tag = kind.__struct_config__.tag
    if content.get("type", tag) != tag:
        raise BadFrame(BAD, f"`type` has to be {tag} here, or absent", field="type")
    for name, value in fields.items():
        if content.get(name, value) not in (value, None):
            raise BadFrame(BAD, f"`{name}` has to be the one in the path, or absent", field=name)
    whole = {**content, **fields, "type": tag}
    try:
        frame = msgspec.convert(whole, kind)
    except UNREADABLE as error:
        refusal = explain(error, lambda: whole, "body", "JSON")
    else:
        check(cast("AnyClientFrame", frame))
        return frame
    raise refusal


# -------------------------------------------------------------------------------------- cursors (section 2.3)

# 16 digits hold every whole number up to 2**53 - 1.
_CURSOR = re.compile(r"(0|[1-9][0-9]{0,15})(?:\.(0|[1-9][0-9]{0,15}))?")
_MAX_COUNT = 2**53 - 1


def parse_cursor(text: str, name: str = "after") -> tuple[int, int]:
    """`seq` and `epoch` of a cursor in a URL or an SSE id; the epoch beside `seq` 0 has no meaning and is 0.

    Raises `BadFrame` that names the parameter `name`.
    """
    match = _CURSOR.fullmatch(text)
    seq, epoch = (int(match[1]), int(match[2] or 0)) if match else (-1, -1)
    if not 0 <= seq <= _MAX_COUNT or epoch > _MAX_COUNT:
        raise BadFrame(BAD, f"`{name}` has to be a cursor: a `seq`, or `seq.epoch`, in decimal digits", field=name)
    return (seq, epoch) if seq else (0, 0)


def format_cursor(seq: int, epoch: int) -> str:
    """A cursor as URLs and SSE ids carry it: `seq`, or `seq.epoch` when the epoch isn't 0."""
    return f"{seq}.{epoch}" if epoch else str(seq)
