"""From the bytes of a streaming chat completion to events. Pure: no I/O, no clock.

An answer is an event stream (WHATWG HTML, section 9.2) whose `data:` lines are `chat.completion.chunk` objects,
ended by `[DONE]`; that is the theory. What servers in the field send besides, and what is made of it:

- several events in one read, one event over many reads, CRLF, comments, `event:` and `id:` lines
  (lone CRs as line ends, which the standard also permits, were seen nowhere and are not understood);
- an event over several `data:` lines, events without the blank line between them;
- chunks without choices, without content, with usage only, with usage in all of them (the last one counts);
- no `[DONE]` after a finish reason: whole. `[DONE]` with no finish reason but an answer: whole, `stop`.
  The end of the bytes with neither: truncated;
- surrogate halves: an emoji escaped as two halves, even in two chunks, is joined; a half without a partner is U+FFFD;
- function calls in fragments, whole, without an index, all with index 0, or in the older `function_call` form;
- one whole completion object, as an event or as the entire body, from servers that don't know `stream`;
- an `error` object instead of a chunk; a web page instead of an API.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import orjson

from gateway.models import failures
from gateway.models.fragments import Calls, Halves
from gateway.models.model import CallFragment, Event, Finish, ModelError
from protocol.frames import FinishReason, Usage

MAX_EVENT_BYTES = 1_048_576
"""Of one event, and of a body that is no event stream. Above it the stream has failed."""

_NEXT_EVENT = b"\n\ndata:"
_SPARED_BYTES = len(_NEXT_EVENT) - 1
_TEXT = -1
"""Beside the indexes of calls: which running text a surrogate half belongs to."""

_MISSHAPEN = (ModelError, AttributeError, KeyError, TypeError, ValueError)
"""What reading an object of another shape than a chunk raises: the shapes aren't checked one by one."""

_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
}


class _TextDelta(msgspec.Struct, gc=False):
    content: str
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _TextChoice(msgspec.Struct, gc=False):
    delta: _TextDelta
    index: Literal[0] = 0
    finish_reason: None = None


class _TextChunk(msgspec.Struct, gc=False):
    """A chunk that brings some text and nothing else, as nearly all do. Everything of a chunk that would be looked at
    is named here, so that what has this shape needs no other look."""

    choices: tuple[_TextChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: None = None
    error: None = None


_decoder = msgspec.json.Decoder(_TextChunk)
_decode_text, _decode_lines = _decoder.decode, _decoder.decode_lines
"""Read a quarter faster than a reader without a schema, and make no dict to be looked through."""


class ChatStream:
    """One answer: `feed` it every read, call `end` once when no more bytes come.

    Neither raises: what was understood before an error is still returned, and then `failure` is set. `finished`
    turns true with the model's own end (a `Finish` was returned), `closed` when nothing that follows matters.
    """

    __slots__ = ("_body", "_calls", "_halves", "_held", "_mending", "_partial", "_plain", "_seen", "_started",
                 "_upstream", "_usage", "closed", "failure", "finished")  # fmt: skip

    def __init__(self, upstream: failures.Upstream) -> None:
        self.finished = False
        self.closed = False
        self.failure: ModelError | None = None
        self._upstream = upstream
        self._started = False
        self._body: bytearray | None = None
        self._partial = bytearray()
        self._held = b""
        self._seen = False
        self._plain = False
        """Some text was seen, the last read ended with an event, and nothing needs a second look."""
        self._usage: Any = None
        self._calls = Calls()
        self._mending = False
        self._halves = Halves()

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes; often one, sometimes none."""
        if self._plain and data.startswith(b"data:") and data.endswith(b"\n\n"):
            try:  # whole events of one line each, as nearly always
                if data.find(b"\n") == len(data) - 2:
                    text = _decode_text(data[5:]).choices[0].delta.content
                    return [text] if text else []
                lines = data[5:].replace(_NEXT_EVENT, b"\n")
                chunks = _decode_lines(lines)
                count = len(chunks)
                # No line ends but theirs, and none of them within an object.
                if data.count(b"\n") == 2 * count and len(data) - len(lines) == 5 + (count - 1) * _SPARED_BYTES:
                    return [text for chunk in chunks if (text := chunk.choices[0].delta.content)]
            except (ValueError, RecursionError):
                pass
        events: list[Event] = []
        if self.closed:
            return events
        try:
            if not self._started:
                data = self._start(data)
            if self._body is not None:
                self._body += data
                self._check_bytes(len(self._body))
            elif data:
                self._lines(data, events)
        except _MISSHAPEN as error:
            self._fail(error)
        over = self.finished or self.failure is not None
        self._plain = self._seen and not (over or self._mending or self._held or self._partial)
        return events

    def end(self) -> list[Event]:
        """The bytes are over: what is still due, or `failure` when the answer isn't whole."""
        self._plain = False
        events: list[Event] = []
        if self.closed:
            return events
        try:
            if self._body is not None:
                self._whole_body(bytes(self._body), events)
            elif self._partial:
                self._lines(b"\n", events)
            if not self.closed:
                if not self.finished:
                    raise failures.truncated()
                self._close(events)
        except _MISSHAPEN as error:
            self._fail(error)
        return events

    # ------------------------------------------------------------ bytes to chunks

    def _start(self, data: bytes) -> bytes:
        """Tells an event stream from a plain JSON body and from a web page by the first byte that isn't blank."""
        data = bytes(self._partial) + data
        head = data.removeprefix(b"\xef\xbb\xbf").lstrip()
        self._partial.clear()
        if not head or head in (b"\xef", b"\xef\xbb"):
            self._check_bytes(len(data))
            self._partial += data
            return b""
        self._started = True
        if head.startswith(b"<"):
            raise failures.not_a_chat_api(self._upstream)
        if head.startswith((b"{", b"[")):
            self._body = bytearray()
        return head

    def _lines(self, data: bytes, events: list[Event]) -> None:
        if b"\n" not in data:
            self._partial += data
            self._check_bytes(len(self._partial))
            return
        if self._partial:
            data = bytes(self._partial) + data
            self._partial.clear()
        lines = data.split(b"\n")
        last = lines.pop()
        for line in lines:
            if line.startswith(b"data:") and not self._held:
                # JSON permits white space at both ends, so neither the blank after the colon nor a CR is stripped.
                payload = line[5:]
                try:
                    text = _decode_text(payload).choices[0].delta.content
                except (ValueError, RecursionError):
                    self._other_line(payload, events)
                    if self.closed:
                        return
                else:
                    if not self.finished and text:
                        if self._mending:
                            self._text(text, events)
                        else:
                            self._seen = True
                            events.append(text)
            elif self._held:
                self._continued(line, events)
        if last:
            self._partial += last
            self._check_bytes(len(last))

    def _other_line(self, payload: bytes, events: list[Event]) -> None:
        """More than text, or something else."""
        try:
            chunk = orjson.loads(payload)
        except ValueError:
            self._odd_line(payload, events)
        else:
            self._take(chunk, events)

    def _odd_line(self, payload: bytes, events: list[Event]) -> None:
        """Not JSON by orjson's measure: `[DONE]`, a surrogate half, broken UTF-8, or the first line of several."""
        word = payload.strip()
        if word == b"[DONE]":
            self._done(events)
        elif word:
            try:
                chunk = _lenient(word)
            except ValueError:
                self._held = word
            else:
                self._mending = True
                self._take(chunk, events)

    def _continued(self, line: bytes, events: list[Event]) -> None:
        """A line after one that was no whole JSON: more of the same event, or the blank line that ends it."""
        if line.startswith(b"data:"):
            self._held += b"\n" + line[5:]
            self._check_bytes(len(self._held))
        elif not line.strip():
            held, self._held = self._held, b""
            try:
                chunk = _lenient(held)
            except ValueError:
                raise failures.unreadable() from None
            self._mending = True
            self._take(chunk, events)

    def _whole_body(self, body: bytes, events: list[Event]) -> None:
        try:
            completion = _lenient(body)
        except ValueError:
            raise failures.truncated() from None
        self._mending = True
        if not isinstance(completion, dict) or not (completion.get("choices") or completion.get("error")):
            raise failures.not_a_chat_api(self._upstream)
        self._take(completion, events)
        if self._seen or self.finished:
            self._done(events)

    def _check_bytes(self, size_bytes: int) -> None:
        if size_bytes > MAX_EVENT_BYTES:
            raise failures.too_large(MAX_EVENT_BYTES)

    # ------------------------------------------------------------ chunks to events

    def _take(self, chunk: dict[str, Any], events: list[Event]) -> None:
        error = chunk.get("error")
        if error or chunk.get("object") == "error":
            raise failures.reported(error or chunk, self._upstream)
        if usage := chunk.get("usage"):
            self._usage = usage
        for choice in chunk.get("choices") or ():
            if choice.get("index") or self.finished:
                continue
            delta = choice.get("delta")
            if delta is None and not self._seen:
                delta = choice.get("message")
            if delta:
                self._delta(delta, events)
            if reason := choice.get("finish_reason"):
                self._finish(reason, events)

    def _delta(self, delta: dict[str, Any], events: list[Event]) -> None:
        if text := delta.get("content"):
            self._text(text if type(text) is str else _parts(text), events)
        if refusal := delta.get("refusal"):
            self._text(refusal if type(refusal) is str else _parts(refusal), events)
        if calls := delta.get("tool_calls"):
            for call in calls:
                self._call(call.get("index"), call.get("id"), call.get("function") or {}, events)
        if function := delta.get("function_call"):
            self._call(0, None, function, events)

    def _text(self, text: str, events: list[Event]) -> None:
        if self._mending:
            text = self._halves.mend(_TEXT, text)
        if text:
            self._seen = True
            events.append(text)

    def _call(self, key: object, call_id: object, function: dict[str, Any], events: list[Event]) -> None:
        arguments = function.get("arguments")
        if arguments is None:
            arguments = ""
        elif not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        fragment = self._calls.fragment(key, _word(call_id), _word(function.get("name")), arguments)
        if self._mending:
            mended = self._halves.mend(fragment.index, fragment.arguments)
            fragment = CallFragment(fragment.index, fragment.id, fragment.name, mended)
        if fragment.id or fragment.name or fragment.arguments:
            self._seen = True
            events.append(fragment)

    def _finish(self, reason: str, events: list[Event]) -> None:
        """`error` is what OpenRouter writes when the provider behind it failed."""
        if reason == "error":
            raise failures.reported({}, self._upstream)
        for index in self._halves.left():
            alone = "\ufffd"
            events += [alone if index == _TEXT else CallFragment(index, None, None, alone)]
        told = _REASONS.get(reason)
        # Several servers write `stop` where calls were made, and some write `tool_calls` where none were.
        events.append(Finish(told if told or self._calls.any else "stop"))
        self.finished = True

    def _done(self, events: list[Event]) -> None:
        if not self.finished:
            if not self._seen:
                raise failures.empty()
            self._finish("stop", events)
        self._close(events)

    def _close(self, events: list[Event]) -> None:
        self.closed = True
        usage = self._usage
        if isinstance(usage, dict):
            counts = (usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)
            if all(isinstance(count, int) and count >= 0 for count in counts):
                events.append(Usage(*counts))

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, ModelError):
            cause, error = error, failures.unreadable()
            error.__cause__ = cause
        self.failure = error
        self.closed = True


def _word(value: object) -> str | None:
    return str(value) if value else None


def _lenient(payload: bytes) -> Any:
    """JSON by Python's own reader: it accepts surrogate halves, and bytes that are no UTF-8 become U+FFFD."""
    try:
        return json.loads(payload.decode("utf-8", "replace"), strict=False)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _parts(content: list[dict[str, Any]]) -> str:
    """Content as a list of parts, of which only text is for the reader."""
    return "".join(part["text"] for part in content if part.get("type") == "text" and part.get("text"))
