"""The codecs against the golden vectors, and properties that no table can list."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from protocol import frames, refusals
from protocol.codec import (
    CODECS,
    JSON,
    MSGPACK,
    BadFrame,
    Codec,
    decode_body,
    format_cursor,
    parse_cursor,
    valid_identifier,
)
from protocol.codes import ErrorCode
from protocol.frames import (
    Cancel,
    ChatMessage,
    ClientFunctionResult,
    Compacted,
    Context,
    FunctionCall,
    FunctionSpec,
    Memory,
    Message,
    Metadata,
    Options,
    Ping,
    Token,
    Tool,
)

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"


def vectors(name: str, part: str) -> list[Any]:
    cases: list[Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))[part]
    return cases


def named(case: Any) -> str:
    return str(case["name"])


def bytes_of(case: dict[str, str], codec: Codec) -> bytes | None:
    """The case in the encoding of `codec`, if it has it."""
    if codec is MSGPACK:
        return bytes.fromhex(case["msgpack"]) if "msgpack" in case else None
    if "json_hex" in case:
        return bytes.fromhex(case["json_hex"])
    return case["json"].encode() if "json" in case else None


def in_each_encoding(cases: list[Any]) -> pytest.MarkDecorator:
    """Every case in the encodings that it has."""
    pairs = [
        pytest.param(codec, case, data, id=f"{case['name']}-{codec.language}")
        for case in cases
        for codec in CODECS.values()
        if (data := bytes_of(case, codec)) is not None
    ]
    return pytest.mark.parametrize(("codec", "case", "data"), pairs)


steady = settings(deadline=None)
"""The machine may be busy."""

both = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=repr)

# ------------------------------------------------------------------------------------------------- server frames


@in_each_encoding(vectors("frames", "frames"))
def test_server_frame(codec: Codec, case: dict[str, Any], data: bytes) -> None:
    frame = codec.decode_server(data)
    assert frame is not None
    assert codec.encode(frame) == data
    assert json.loads(JSON.encode(frame)) == case["frame"]
    assert type(frame).__struct_config__.tag == case["frame"]["type"]


def test_every_server_frame_has_a_vector() -> None:
    covered = {case["frame"]["type"] for case in vectors("frames", "frames")}
    assert covered == {kind.__struct_config__.tag for kind in get_args(frames.AnyServerFrame)}


@pytest.mark.parametrize("case", vectors("frames", "lenient"), ids=named)
def test_clients_ignore_unknown_fields(case: dict[str, Any]) -> None:
    frame = JSON.decode_server(case["json"].encode())
    assert frame is not None
    assert json.loads(JSON.encode(frame)) == case["frame"]
    packed = msgspec.msgpack.encode(json.loads(case["json"]))
    assert MSGPACK.decode_server(packed) == frame


@pytest.mark.parametrize("case", vectors("frames", "ignored"), ids=named)
def test_clients_ignore_unknown_types(case: dict[str, Any]) -> None:
    assert JSON.decode_server(case["json"].encode()) is None
    assert MSGPACK.decode_server(msgspec.msgpack.encode(json.loads(case["json"]))) is None


@both
@pytest.mark.parametrize("content", [[], {}, {"type": 5}, {"type": "token"}, {"type": "done", "seq": "x"}, 7])
def test_what_is_no_server_frame(codec: Codec, content: object) -> None:
    packed = msgspec.json.encode(content) if codec is JSON else msgspec.msgpack.encode(content)
    with pytest.raises(BadFrame, match="the gateway sent"):
        codec.decode_server(packed)


@both
def test_the_memory_of_a_context_stays_in_the_log(codec: Codec) -> None:
    context = Context(
        conversation_id="c",
        turn_id="t",
        seq=1,
        metadata=Metadata(timestamp=1),
        compacted=Compacted(4, 2, 100, 50),
        memory=Memory(through="t0", summary="secret"),
    )
    assert b"secret" not in codec.encode(context)
    assert codec.decode_server(codec.encode(context)) == msgspec.structs.replace(context, memory=None)


@both
def test_options_stay_in_the_log(codec: Codec) -> None:
    message = Message(
        conversation_id="c",
        turn_id="t",
        seq=1,
        metadata=Metadata(timestamp=1),
        content="x",
        message_id="m",
        options=Options(model="secret", system="secret", tools=[Tool(FunctionSpec("secret"))]),
    )
    assert b"secret" not in codec.encode(message)
    assert codec.decode_server(codec.encode(message)) == msgspec.structs.replace(message, options=None)


def test_wire_message_sends_every_other_field_of_a_message() -> None:
    sent = case_with_everything = next(c for c in vectors("frames", "frames") if "everything" in c["name"])
    fields = {name for name in Message.__struct_fields__ if name != "options"}
    assert set(case_with_everything["frame"]) == fields | {"type"}, sent


# ------------------------------------------------------------------------------------------------- client frames


@in_each_encoding(vectors("client_frames", "valid"))
def test_client_frame(codec: Codec, case: dict[str, Any], data: bytes) -> None:
    frame = codec.decode_client(data)
    assert json.loads(JSON.encode(frame)) == case["frame"]
    assert codec.decode_client(codec.encode(frame)) == frame


def test_every_client_frame_has_a_vector() -> None:
    covered = {case["frame"]["type"] for case in vectors("client_frames", "valid")}
    assert covered == set(refusals.CLIENT_TYPES)


@in_each_encoding(vectors("client_frames", "refused"))
def test_refused_client_frame(codec: Codec, case: dict[str, Any], data: bytes) -> None:
    with pytest.raises(BadFrame) as caught:
        codec.decode_client(data)
    refusal = caught.value
    assert refusal.code is ErrorCode[case["code"]]
    assert (refusal.field, refusal.ref, refusal.conversation_id) == (
        case["field"],
        case["ref"],
        case["conversation_id"],
    )
    assert case["field"] is None or f"`{case['field']}`" in refusal.message
    assert all(word in refusal.message for word in case.get("says", ()))
    assert len(refusal.message) < 200
    assert refusal.__context__ is None, "a half-read payload must not hang on the error"


@pytest.mark.parametrize("case", vectors("client_frames", "deep"), ids=named)
def test_deep_nesting_is_refused(case: dict[str, Any]) -> None:
    levels = case["levels"]
    data = (case["prefix"] + case["open"] * levels + case["close"] * levels + case["suffix"]).encode()
    for decode in (JSON.decode_client, lambda data: decode_body(data, Ping)):
        with pytest.raises(BadFrame, match="nested too deeply"):
            decode(data)


@pytest.mark.parametrize("case", vectors("client_frames", "valid"), ids=named)
def test_a_frame_cut_anywhere_is_refused(case: dict[str, Any]) -> None:
    data = case["json"].strip().encode()
    for end in range(0, len(data), max(1, len(data) // 200)):
        with pytest.raises(BadFrame):
            JSON.decode_client(data[:end])


def test_every_field_has_words_for_what_would_be_right() -> None:
    known = {"type"}
    for kind in get_args(frames.AnyClientFrame):
        known |= set(kind.__struct_fields__)
    known |= {"tools[]", "tools[].type", "tools[].function"}
    known |= {f"tools[].function.{name}" for name in FunctionSpec.__struct_fields__}
    assert set(refusals.RIGHT) == known


@both
@steady
@given(data=st.binary(max_size=60))
@example(data=b"\xd6\xff\xff\xff\xff\xff")
@example(data=b"\x81\x81\x01\x02\x03")
def test_any_bytes_are_a_frame_or_a_refusal(codec: Codec, data: bytes) -> None:
    for decode in (codec.decode_client, codec.decode_server, lambda data: decode_body(data, Cancel)):
        with contextlib.suppress(BadFrame):
            decode(data)


names = st.text("azAZ09_.-", min_size=1, max_size=128)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(text, json_values, max_size=4)
counts = st.integers(0, 2**53 - 1)
tools = st.lists(st.builds(Tool, st.builds(FunctionSpec, st.text("aZ09_-", min_size=1, max_size=64))), max_size=3)


@both
@steady
@given(
    frame=st.builds(
        ChatMessage,
        ref=st.none() | text,
        message=text.filter(len),
        conversation_id=st.none() | names,
        message_id=st.none() | names,
        on_busy=st.sampled_from(["queue", "interrupt", "reject"]),
        tools=st.none() | tools.filter(lambda found: len({tool.function.name for tool in found}) == len(found)),
        system=st.none() | text,
        metadata=st.none() | objects.filter(lambda value: len(json.dumps(value)) < 2000),
    )
    | st.builds(ClientFunctionResult, conversation_id=names, call_id=text.filter(len), result=json_values)
    | st.builds(
        ClientFunctionResult, conversation_id=names, call_id=text.filter(len), result=st.just(UNSET), error=text
    )
)
def test_client_frames_round_trip(codec: Codec, frame: ChatMessage | ClientFunctionResult) -> None:
    assert codec.decode_client(codec.encode(frame)) == frame


@both
@steady
@given(
    frame=st.builds(
        Token,
        conversation_id=names,
        turn_id=names,
        seq=counts,
        epoch=counts,
        metadata=st.builds(Metadata, timestamp=counts, client=st.none()),
        content=text,
        first_seq=st.none() | counts,
    )
    | st.builds(
        FunctionCall,
        conversation_id=names,
        turn_id=names,
        seq=counts,
        epoch=counts,
        metadata=st.builds(Metadata, timestamp=counts, client=st.none()),
        call_id=names,
        name=names,
        args=objects,
        runs=st.sampled_from(["client", "gateway", "approval"]),
        round=st.integers(1, 99),
    )
)
def test_server_frames_round_trip(codec: Codec, frame: Token | FunctionCall) -> None:
    data = codec.encode(frame)
    assert codec.decode_server(data) == frame
    if codec is JSON:
        assert b"\n" not in data
        assert b"\r" not in data


def test_codecs_are_named_by_their_subprotocols() -> None:
    assert list(CODECS) == ["convobase.v1+json", "convobase.v1+msgpack"]
    assert [codec.binary for codec in CODECS.values()] == [False, True]


def test_the_wrong_kind_of_message_is_named() -> None:
    assert JSON.wrong_message_kind().code is ErrorCode.BAD_FRAME
    assert "text messages, not binary" in JSON.wrong_message_kind().message
    assert "binary messages, not text" in MSGPACK.wrong_message_kind().message


# -------------------------------------------------------------------------------------------------- HTTP bodies


@pytest.mark.parametrize("body", [b'{"message":"Hi"}', b'{"type":"chat_message","message":"Hi"}'])
def test_body_with_or_without_type(body: bytes) -> None:
    assert decode_body(body, ChatMessage) == ChatMessage(message="Hi")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"conversation_id":"c"}', b'{"conversation_id":null}'])
def test_body_may_repeat_the_path(body: bytes) -> None:
    assert decode_body(body, Cancel, conversation_id="c") == Cancel(conversation_id="c")


@pytest.mark.parametrize(
    ("body", "kind", "path", "field"),
    [
        (b"", ChatMessage, {}, "message"),
        (b"[]", ChatMessage, {}, None),
        (b"{", ChatMessage, {}, None),
        (b" ", Cancel, {"conversation_id": "c"}, None),
        (b'{"message":"\xff"}', ChatMessage, {}, None),
        (b'{"message":5}', ChatMessage, {}, "message"),
        (b'{"message":"x","type":"cancel"}', ChatMessage, {}, "type"),
        (b'{"message":"x","type":null}', ChatMessage, {}, "type"),
        (b'{"message":"x","metadata":{"a":18446744073709551616}}', ChatMessage, {}, "metadata"),
        (b'{"conversation_id":"d"}', Cancel, {"conversation_id": "c"}, "conversation_id"),
        (b'{"conversation_id":5}', Cancel, {"conversation_id": "c"}, "conversation_id"),
        (b"{}", Cancel, {"conversation_id": "a b"}, "conversation_id"),
        (b'{"call_id":"k"}', ClientFunctionResult, {"conversation_id": "c"}, "result"),
    ],
)
def test_refused_body(body: bytes, kind: type[Any], path: dict[str, str], field: str | None) -> None:
    with pytest.raises(BadFrame) as caught:
        decode_body(body, kind, **path)
    assert caught.value.code is ErrorCode.BAD_FRAME
    assert caught.value.field == field


@pytest.mark.parametrize("case", vectors("client_frames", "valid"), ids=named)
def test_a_body_is_read_as_its_frame(case: dict[str, Any]) -> None:
    frame = JSON.decode_client(case["json"].encode())
    assert decode_body(case["json"].encode(), type(frame)) == frame


# ------------------------------------------------------------------------------------- cursors and identifiers


@pytest.mark.parametrize("case", vectors("cursors", "valid"), ids=lambda case: str(case["text"]))
def test_cursor(case: dict[str, Any]) -> None:
    assert parse_cursor(case["text"]) == (case["seq"], case["epoch"])
    assert format_cursor(case["seq"], case["epoch"]) == case["canonical"]


@pytest.mark.parametrize("cursor", vectors("cursors", "invalid"), ids=repr)
def test_refused_cursor(cursor: str) -> None:
    with pytest.raises(BadFrame, match="`Last-Event-ID`"):
        parse_cursor(cursor, "Last-Event-ID")


@steady
@given(seq=st.integers(1, 2**53 - 1), epoch=counts)
def test_cursors_round_trip(seq: int, epoch: int) -> None:
    assert parse_cursor(format_cursor(seq, epoch)) == (seq, epoch)


@steady
@given(names | text)
@example("a\n")
@example("x" * 129)
def test_identifiers_are_what_frames_accept(name: str) -> None:
    try:
        JSON.decode_client(JSON.encode(Cancel(conversation_id=name)))
    except BadFrame:
        assert not valid_identifier(name)
    else:
        assert valid_identifier(name)
