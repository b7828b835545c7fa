import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.chunks import MAX_EVENT_BYTES, ChatStream
from gateway.models.failures import Upstream
from gateway.models.model import CallFragment, Event, Finish
from protocol.codes import ErrorCode
from protocol.frames import Usage

UPSTREAM = Upstream("http://127.0.0.1:9999/v1", "sk-test-secret")
STOP, WANTS_ANSWERS = Finish("stop"), Finish(None)


def chunk(delta: dict[str, Any] | None = None, finish: Any = None, index: Any = 0, **more: Any) -> str:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion.chunk", "choices": [choice], **more})


def text(content: Any, finish: Any = None) -> str:
    return chunk({"content": content}, finish)


def call(index: int | None = None, **fields: Any) -> str:
    function = {k: v for k, v in fields.items() if k in ("name", "arguments")}
    whole = {"function": function} | ({"index": index} if index is not None else {})
    return chunk({"tool_calls": [whole | ({"id": fields["id"]} if "id" in fields else {})]})


def sse(*payloads: str, end: str = "\n\n", done: bool = True) -> bytes:
    return "".join(f"data: {p}{end}" for p in (*payloads, *(["[DONE]"] if done else []))).encode()


USAGE = '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}'
END = chunk(finish="stop")
ENDED = [STOP]

CASES: dict[str, tuple[bytes, list[Event]]] = {
    "plain": (sse(text("Hel"), text(""), text("lo"), END), ["Hel", "lo", STOP]),
    "role only, null and empty content": (
        sse(chunk({"role": "assistant"}), chunk({"role": "assistant", "content": None}), text(""), text("a"), END),
        ["a", STOP],
    ),
    "usage in a chunk of its own": (sse(text("a"), END, USAGE), ["a", STOP, Usage(5, 2)]),
    "usage in every chunk: the last counts": (
        sse(
            chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
            chunk({"content": "b"}, "stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
        ),
        ["a", "b", STOP, Usage(5, 2)],
    ),
    "usage of another shape": (sse(text("a"), END, '{"choices":[],"usage":{"prompt_tokens":"5"}}'), ["a", STOP]),
    "null usage": (sse(chunk({"content": "a"}, "stop", usage=None)), ["a", STOP]),
    "content with the finish reason": (sse(text("a", "length")), ["a", Finish("length")]),
    "content filter": (sse(text("a"), chunk(finish="content_filter")), ["a", Finish("content_filter")]),
    "unknown reason": (sse(text("a"), chunk(finish="eos_token")), ["a", STOP]),
    "empty reasons on the way": (sse(text("a", ""), END), ["a", STOP]),
    "nothing after the finish counts": (sse(text("a"), END, text("b")), ["a", STOP]),
    "no choices": (sse('{"choices":[]}', '{"choices":null}', '{"id":"x"}', text("a"), END), ["a", STOP]),
    "Azure's annotations": (sse('{"choices":[],"prompt_filter_results":[{}]}', text("a"), END), ["a", STOP]),
    "no delta": (sse('{"choices":[{"index":0,"delta":null}]}', text("a"), END), ["a", STOP]),
    "comments and other fields": (
        b": OPENROUTER PROCESSING\n\nevent: message\nid: 7\nretry: 10\n" + sse(text("a")) + b": ping\n\n",
        ["a", STOP],
    ),
    "a comment that has an event in it": (
        sse(text("a"), done=False) + f": data: {text('b')}\n\n".encode() + sse(END),
        ["a", STOP],
    ),
    "a blank before the name of a field": (
        sse(text("a"), text("b"), done=False)[:-1] + b" " + sse(text("c")) + sse(END),
        ["a", "b", STOP],
    ),
    "CRLF": (sse(text("a"), END, end="\r\n\r\n"), ["a", STOP]),
    "single line ends": (sse(text("a"), END, end="\n"), ["a", STOP]),
    "no blank after the colon": (sse(text("a"), END).replace(b"data: ", b"data:"), ["a", STOP]),
    "BOM and blank lines first": (b"\xef\xbb\xbf\r\n\n" + sse(text("a"), END), ["a", STOP]),
    "an event over several data lines": (
        b'data: {"choices":\r\ndata: [{"delta":{"content":"a"}}]}\r\n\r\n' + sse(END),
        ["a", STOP],
    ),
    "an empty data line": (b"data:\n\ndata: \n\n" + sse(text("a"), END), ["a", STOP]),
    "[DONE] with blanks": (sse(text("a"), END, done=False) + b"data:  [DONE] \n\n", ["a", STOP]),
    "no [DONE]": (sse(text("a"), END, USAGE, done=False), ["a", STOP, Usage(5, 2)]),
    "no last line end": (sse(text("a"), END).rstrip(), ["a", STOP]),
    "[DONE] without a finish reason": (sse(text("a")), ["a", STOP]),
    "[DONE] without a finish reason, after a role": (sse(chunk({"role": "assistant"}), text("a")), ["a", STOP]),
    "what follows [DONE] is ignored": (sse(text("a"), END) + sse(text("b")), ["a", STOP]),
    "characters of several bytes": (
        sse(json.dumps({"choices": [{"delta": {"content": "žluťoučký 東京 🧭"}}]}, ensure_ascii=False), END),
        ["žluťoučký 東京 🧭", STOP],
    ),
    "an escaped emoji": (sse(text("🧭"), END), ["🧭", STOP]),
    "an emoji in two halves": (sse(text("a\ud83d"), text("\ude00b"), END), ["a", "😀b", STOP]),
    "halves without partners": (
        sse(text("\ude00"), text("a\ud83d"), text("b"), text("\ud83d"), END),
        ["\ufffd", "a", "\ufffdb", "\ufffd", STOP],
    ),
    "bytes that are no UTF-8": (
        b'data: {"choices":[{"delta":{"content":"a\xffb"}}]}\n\n' + sse(END),
        ["a\ufffdb", STOP],
    ),
    "a refusal": (sse(chunk({"refusal": "I can't."}), END), ["I can't.", STOP]),
    "content in parts": (
        sse(text([{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}]), END),
        ["a", STOP],
    ),
    "only the first choice": (
        sse(chunk({"content": "x"}, index=1), text("a"), chunk(finish="length", index=1), END),
        ["a", STOP],
    ),
    "interleaved calls": (
        sse(
            call(0, id="c1", name="f", arguments=""),
            call(1, id="c2", name="g", arguments=""),
            call(0, arguments='{"a"'),
            call(1, arguments="{}"),
            call(0, arguments=":1}"),
            chunk(finish="tool_calls"),
        ),
        [
            CallFragment(0, "c1", "f", ""),
            CallFragment(1, "c2", "g", ""),
            CallFragment(0, None, None, '{"a"'),
            CallFragment(1, None, None, "{}"),
            CallFragment(0, None, None, ":1}"),
            WANTS_ANSWERS,
        ],
    ),
    "id and name repeated in every fragment": (
        sse(call(0, id="c1", name="f", arguments="{"), call(0, id="c1", name="f", arguments="}"), END),
        [CallFragment(0, "c1", "f", "{"), CallFragment(0, None, None, "}"), WANTS_ANSWERS],
    ),
    "whole calls without an index": (
        sse(call(id="c1", name="f", arguments="{}"), call(id="c2", name="f", arguments="{}"), END),
        [CallFragment(0, "c1", "f", "{}"), CallFragment(1, "c2", "f", "{}"), WANTS_ANSWERS],
    ),
    "fragments without an index": (
        sse(call(id="c1", name="f", arguments="{"), call(arguments="}"), call(name="g", arguments="{}"), END),
        [
            CallFragment(0, "c1", "f", "{"),
            CallFragment(0, None, None, "}"),
            CallFragment(1, None, "g", "{}"),
            WANTS_ANSWERS,
        ],
    ),
    "several calls that all have index 0": (
        sse(call(0, id="c1", name="f", arguments="{}"), call(0, id="c2", name="g", arguments="{}"), END),
        [CallFragment(0, "c1", "f", "{}"), CallFragment(1, "c2", "g", "{}"), WANTS_ANSWERS],
    ),
    "arguments as an object": (
        sse(call(0, id="c1", name="f", arguments={"a": "ä"}), END),
        [CallFragment(0, "c1", "f", '{"a": "ä"}'), WANTS_ANSWERS],
    ),
    "the older function_call": (
        sse(
            chunk({"function_call": {"name": "f", "arguments": "{"}}),
            chunk({"function_call": {"arguments": "}"}}),
            chunk(finish="function_call"),
        ),
        [CallFragment(0, None, "f", "{"), CallFragment(0, None, None, "}"), WANTS_ANSWERS],
    ),
    "tool_calls as a reason without calls": (sse(text("a"), chunk(finish="tool_calls")), ["a", STOP]),
    "cut off in a call": (
        sse(call(0, id="c1", name="f", arguments="{"), chunk(finish="length")),
        [CallFragment(0, "c1", "f", "{"), Finish("length")],
    ),
    "a surrogate half in arguments": (
        sse(call(0, id="c1", name="f", arguments="\ud83d"), call(0, arguments="\ude00"), END),
        [CallFragment(0, "c1", "f", ""), CallFragment(0, None, None, "😀"), WANTS_ANSWERS],
    ),
    "a whole completion as the body": (
        json.dumps(
            {
                "object": "chat.completion",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 2},
            },
            indent=2,
        ).encode(),
        ["Hi", STOP, Usage(5, 2)],
    ),
    "a whole completion as one event, with calls": (
        sse(
            json.dumps(
                {
                    "choices": [
                        {
                            "message": {"content": None, "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
                            "finish_reason": "tool_calls",
                        }
                    ]
                }
            )
        ),
        [CallFragment(0, "c", "f", ""), WANTS_ANSWERS],
    ),
}

TRUNCATED = "broke off"
UNREADABLE = "not a chat completion chunk"
FAULTS: dict[str, tuple[bytes, list[Event], ErrorCode, str]] = {
    "nothing": (b"", [], ErrorCode.STREAM_ERROR, TRUNCATED),
    "comments only": (b": ping\n\n", [], ErrorCode.STREAM_ERROR, TRUNCATED),
    "no end": (sse(text("a"), done=False), ["a"], ErrorCode.STREAM_ERROR, TRUNCATED),
    "cut in an event": (sse(text("a"), text("b"), done=False)[:-20], ["a"], ErrorCode.STREAM_ERROR, TRUNCATED),
    "[DONE] and nothing else": (sse(), [], ErrorCode.STREAM_ERROR, "without a word"),
    "half a body": (b'{"choices": [', [], ErrorCode.STREAM_ERROR, TRUNCATED),
    "garbage": (sse(text("a"), "{nonsense", text("b")), ["a"], ErrorCode.STREAM_ERROR, UNREADABLE),
    "another shape": (sse(text("a"), "[1, 2]"), ["a"], ErrorCode.STREAM_ERROR, UNREADABLE),
    "choices of another shape": (sse('{"choices":{"a":1}}'), [], ErrorCode.STREAM_ERROR, UNREADABLE),
    "content of another shape": (sse(text({"a": 1})), [], ErrorCode.STREAM_ERROR, UNREADABLE),
    "content is a number": (sse(text(5)), [], ErrorCode.STREAM_ERROR, UNREADABLE),
    "an error": (
        sse(text("a"), '{"error":{"message":"overloaded, key sk-test-secret","type":"server_error"}}', text("b")),
        ["a"],
        ErrorCode.STREAM_ERROR,
        "(overloaded, key [hidden])",
    ),
    "an error that is a string": (sse('{"error":"boom"}'), [], ErrorCode.STREAM_ERROR, "(boom)"),
    "an error as vLLM writes it": (
        sse('{"object":"error","message":"gone","code":400}'),
        [],
        ErrorCode.STREAM_ERROR,
        "(gone)",
    ),
    "an error with an HTTP status": (
        sse('{"error":{"message":"slow down","code":429},"choices":[]}'),
        [],
        ErrorCode.UPSTREAM_RATE_LIMITED,
        "too many requests",
    ),
    "a key refused in the stream": (
        sse('{"error":{"message":"bad key abc","code":401}}'),
        [],
        ErrorCode.UPSTREAM_REJECTED,
        "check OPENAI_API_KEY",
    ),
    "too much context": (
        sse('{"error":{"message":"x","code":"context_length_exceeded"}}'),
        [],
        ErrorCode.CONTEXT_TOO_LARGE,
        "larger",
    ),
    "error as the reason": (sse(text("a"), chunk(finish="error")), ["a"], ErrorCode.STREAM_ERROR, "reported an error"),
    "an error as the body": (b'{"error": {"message": "nope"}}', [], ErrorCode.STREAM_ERROR, "(nope)"),
    "a web page": (b"\n<!doctype html><title>x</title>", [], ErrorCode.UPSTREAM_REJECTED, "check that OPENAI_BASE_URL"),
    "another API": (b'{"status": "ok"}', [], ErrorCode.UPSTREAM_REJECTED, "check that OPENAI_BASE_URL"),
    "a huge line": (
        sse(text("a"), done=False) + b"data: " + b"x" * (MAX_EVENT_BYTES + 1),
        ["a"],
        ErrorCode.STREAM_ERROR,
        "more than 1048576 bytes",
    ),
    "a huge body": (b"{" + b" " * MAX_EVENT_BYTES, [], ErrorCode.STREAM_ERROR, "more than 1048576 bytes"),
    "a line end in an event": (sse(text("a"), text("b").replace(" ", "\n")), ["a"], ErrorCode.STREAM_ERROR, UNREADABLE),
    "text behind what is no chunk": (
        sse(text("a"), done=False) + b"data: nonsense\n" + sse(text("b")),
        ["a"],
        ErrorCode.STREAM_ERROR,
        UNREADABLE,
    ),
    "nested without end": (sse("[" * 50_000), [], ErrorCode.STREAM_ERROR, UNREADABLE),
    "nested without end, in a field": (
        sse(text("a"), '{"x":' + "[" * 50_000),
        ["a"],
        ErrorCode.STREAM_ERROR,
        UNREADABLE,
    ),
}


def read(*reads: bytes) -> tuple[list[Event], ChatStream]:
    stream = ChatStream(UPSTREAM)
    events = [event for data in reads for event in stream.feed(data)]
    return events + stream.end(), stream


def cut(data: bytes, size: int) -> list[bytes]:
    """Into reads of `size` bytes; 0: of an event each, as most servers send them; -2: of two, as a late read finds
    them, behind a first one alone."""
    if size <= 0:
        events = re.split(rb"(?=data:)", data)
        step = -size or 1
        return [*events[:2], *(b"".join(events[at : at + step]) for at in range(2, len(events), step))]
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [-2, 0, 1, 7, 1 << 30])
def test_answers(name: str, size: int) -> None:
    data, expected = CASES[name]
    events, stream = read(*cut(data, size))
    assert events == expected
    assert stream.failure is None
    assert stream.finished
    assert stream.closed


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("size", [-2, 0, 5, 1 << 30])
def test_faults(name: str, size: int) -> None:
    data, expected, code, words = FAULTS[name]
    events, stream = read(*cut(data, size if len(data) < 100_000 else 65_536))
    assert events == expected
    assert stream.failure is not None
    assert stream.failure.code is code
    assert words in stream.failure.message
    assert stream.failure.transient == (code in (ErrorCode.STREAM_ERROR, ErrorCode.UPSTREAM_RATE_LIMITED))
    assert "sk-test" not in stream.failure.message
    assert stream.feed(b"data: " + text("late").encode() + b"\n\n") == []


def test_nothing_comes_after_a_failure() -> None:
    stream = ChatStream(UPSTREAM)
    assert stream.feed(sse(text("a"), done=False)) == ["a"]
    assert stream.feed(sse('{"error":{"message":"m"}}', done=False)) == []
    assert stream.failure is not None
    assert stream.feed(sse(text("late"), done=False)) == []


@pytest.mark.parametrize(
    ("late", "events"),
    [
        (sse(text("b"), text(""), text("c"), done=False), ["b", "c"]),
        (sse(text("b"), done=False) + b": a comment\n\n" + sse(text("c"), done=False), ["b", "c"]),
        (sse(text("b"), done=False) + text("not data").encode() + b"\n\n\n", ["b"]),
        (sse(text("b"), END, done=False), ["b", STOP]),
        (sse(text("b"), text("c").replace(":", ":\n", 1), done=False), ["b"]),
        (sse(text("b"), done=False)[:-1] + text("not data").encode() + b"\n\n", ["b"]),
    ],
)
def test_several_events_in_a_late_read(late: bytes, events: list[Event]) -> None:
    stream = ChatStream(UPSTREAM)
    assert stream.feed(sse(text("a"), done=False)) == ["a"]
    assert stream.feed(late) == events


def test_finished_is_told_before_the_bytes_end() -> None:
    stream = ChatStream(UPSTREAM)
    assert stream.feed(sse(text("a"), done=False)) == ["a"]
    assert not stream.finished
    assert stream.feed(sse(END, done=False)) == [STOP]
    assert stream.finished
    assert not stream.closed
    assert stream.feed(sse(USAGE)) == [Usage(5, 2)]
    assert stream.closed
    assert stream.end() == []


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1), st.data())
def test_any_text_survives_any_cut(pieces: list[str], data: st.DataObject) -> None:
    body = sse(*(text(piece) for piece in pieces), END, end=data.draw(st.sampled_from(["\n\n", "\r\n\r\n"])))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=20)))
    events, stream = read(*(body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)))
    assert events == [*pieces, STOP]
    assert stream.failure is None


@given(st.text(st.characters(codec="utf-8")), st.data())
def test_text_cut_between_surrogate_halves_is_joined(whole: str, data: st.DataObject) -> None:
    units = whole.encode("utf-16-le")
    cuts = sorted({2 * n for n in data.draw(st.lists(st.integers(0, len(units) // 2)))})
    pieces = [
        units[a:b].decode("utf-16-le", "surrogatepass") for a, b in zip([0, *cuts], [*cuts, len(units)], strict=True)
    ]
    events, _ = read(sse(*(text(piece) for piece in pieces), END))
    assert "".join(e for e in events if isinstance(e, str)) == whole


@given(st.binary(max_size=400))
def test_no_bytes_raise(data: bytes) -> None:
    for head in (b"", b"data: ", b'data: {"choices":[{"delta":', b"{"):
        _, stream = read(head + data)
        assert stream.closed


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "message", "content", "tool_calls", "function", "name", "id", "index", "arguments",
             "finish_reason", "usage", "error", "code", "type", "function_call", "refusal", "prompt_tokens"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip


@given(st.lists(json_values, max_size=4))
def test_no_json_raises(values: list[Any]) -> None:
    events, stream = read(sse(*(json.dumps({"choices": [v]}) for v in values), *(json.dumps(v) for v in values)))
    assert stream.closed
    for event in events:
        fields = (event.arguments, event.id or "", event.name or "") if isinstance(event, CallFragment) else ()
        assert type(event) in (str, CallFragment, Finish, Usage)
        assert {type(field) for field in fields} <= {str}
