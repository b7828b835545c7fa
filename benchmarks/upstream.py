"""An OpenAI-compatible upstream that does as the question says, and remembers exactly what it sent.

    python -m benchmarks.upstream [--host A] [--port N]

The last user message is a script of words, any of them may be left out:

    key=K tokens=400 rate=50 size=12 delay=0 script=ascii|unicode chunk=plain|cut

that is 400 pieces of 12 characters, 50 a second (0: at once), the first after `delay` seconds. `unicode` text mixes
scripts, directions, line ends, combining marks and emoji sequences, which pieces cut anywhere; `chunk=cut` also cuts
the bytes of every event into two HTTP chunks at a random byte, escaped and plain JSON in turn. Each request gets
another text, also when it repeats the same question.

`GET /record` tells of every request: its key, messages, text, and when it started, ended or was closed by the peer,
on the machine's monotonic clock; `GET /record?key=K` of those with this key; `DELETE /record` forgets them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

import orjson
import uvloop

ASCII = ("the", "conversation", "is", "a", "log", "and", "every", "reader", "has", "its", "own", "cursor", ".")
UNICODE = (
    *ASCII,
    "Zoë naïve façade",
    "e\u0301 o\u0308\u0323 ñ",
    "日本語の文章、漢字とかな",
    "한국어 문장",
    "שלום עולם (abc) 123",
    "مرحبا بالعالم 456",
    "\u202bRTL\u202c\u200f",
    "👩‍👩‍👧‍👦👨🏽‍💻🏳️‍🌈🇩🇪",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "line\nline\r\nline\rend",
    "\n\n",
    "data: {not an event}\n\n",
    '"quoted" \\ back\\slash </script>',
    "tab\tand\u0001control\u2028\u2029\ufeff",
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Script(NamedTuple):
    """What one question asks for."""

    key: str = ""
    tokens: int = 20
    rate: float = 0.0
    size: int = 6
    delay: float = 0.0
    script: str = "ascii"
    chunk: str = "plain"

    @classmethod
    def parse(cls, text: str) -> Script:
        """Unknown words are ignored. Raises `ValueError` for a number that is none."""
        words = dict(word.split("=", 1) for word in text.split() if "=" in word)
        return cls(
            key=words.get("key", ""),
            tokens=int(words.get("tokens", 20)),
            rate=float(words.get("rate", 0)),
            size=int(words.get("size", 6)),
            delay=float(words.get("delay", 0)),
            script=words.get("script", "ascii"),
            chunk=words.get("chunk", "plain"),
        )


class Record:
    """What happened to one request."""

    def __init__(self, script: Script, messages: list[Any]) -> None:
        self.key = script.key
        self.messages = messages
        self.sent: list[str] = []
        self.started = time.monotonic()
        self.ended: float | None = None
        self.closed: float | None = None
        """The peer hung up before the end."""

    def told(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "messages": self.messages,
            "text": "".join(self.sent),
            "tokens": len(self.sent),
            "started": self.started,
            "ended": self.ended,
            "closed": self.closed,
        }


class Answer:
    """One stream: sends what is due, and sleeps until more is."""

    def __init__(self, record: Record, script: Script, number: int, protocol: Connection) -> None:
        self.record = record
        self._script = script
        self._protocol = protocol
        self._rng = random.Random(f"{script.key}/{number}")
        self._id = f"chatcmpl-{number}"
        words = UNICODE if script.script == "unicode" else ASCII
        self._words: Callable[[], str] = lambda: self._rng.choice(words) + " "
        self._rest = ""
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time() + script.delay
        self._timer: asyncio.TimerHandle | None = self._loop.call_at(self._start, self.go_on)

    def go_on(self) -> None:
        """Sends everything that is due, unless the peer doesn't take it."""
        self._timer = None
        script, sent = self._script, self.record.sent
        now = self._loop.time()
        if now < self._start:
            self._timer = self._loop.call_at(self._start, self.go_on)
            return
        due = script.tokens if not script.rate else min(script.tokens, 1 + int((now - self._start) * script.rate))
        out = bytearray() if sent else bytearray(HEAD)
        while len(sent) < due and len(out) < 65536:
            text = self._text()
            sent.append(text)
            out += self._event(text)
        if len(sent) == script.tokens:
            self._finish(out)
            return
        self._protocol.write(out)
        if len(sent) < due:
            self._timer = self._loop.call_later(0, self.go_on) if not self._protocol.paused else None
        elif not self._protocol.paused:
            self._timer = self._loop.call_at(self._start + len(sent) / script.rate, self.go_on)

    def wake(self) -> None:
        if self._timer is None and self.record.ended is None:
            self.go_on()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.record.ended is None:
            self.record.closed = time.monotonic()

    def _text(self) -> str:
        while len(self._rest) < self._script.size:
            self._rest += self._words()
        text, self._rest = self._rest[: self._script.size], self._rest[self._script.size :]
        return text

    def _event(self, text: str) -> bytes:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": 1764000000,
            "model": "scripted",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        }
        if self._script.chunk != "cut":
            return _chunked(b"data: " + orjson.dumps(chunk) + b"\n\n")
        line = b"data: " + json.dumps(chunk, ensure_ascii=self._rng.random() < 0.5).encode() + b"\n\n"
        at = self._rng.randrange(1, len(line))
        return _chunked(line[:at]) + _chunked(line[at:])

    def _finish(self, out: bytearray) -> None:
        shell = {"id": self._id, "object": "chat.completion.chunk", "created": 1764000000, "model": "scripted"}
        last = {**shell, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        usage = {"prompt_tokens": 1, "completion_tokens": len(self.record.sent)}
        total = {**shell, "choices": [], "usage": {**usage, "total_tokens": 1 + len(self.record.sent)}}
        for event in (orjson.dumps(last), orjson.dumps(total), b"[DONE]"):
            out += _chunked(b"data: " + event + b"\n\n")
        self.record.ended = time.monotonic()
        self._protocol.write(out + b"0\r\n\r\n")
        self._protocol.answered()


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as much of it as the SDK speaks."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records
        self._buffer = b""
        self._answer: Answer | None = None
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # A peer that reads no more is felt soon: what was sent is nearly what was taken.
        self._transport.set_write_buffer_limits(131072)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._answer is None:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            method, target, _ = lines[0].split(" ")
            self._request(method, target, rest[:length])

    def _request(self, method: str, target: str, body: bytes) -> None:
        parts = urlsplit(target)
        if parts.path == "/record":
            if method == "DELETE":
                self._records.clear()
            key = parse_qs(parts.query).get("key", [None])[0]
            self._json(200, [record.told() for record in self._records if key is None or record.key == key])
        elif method == "POST" and parts.path.endswith("/chat/completions"):
            self._chat(orjson.loads(body)["messages"])
        else:
            self._json(404, {"error": {"message": "no such address", "type": "invalid_request_error"}})

    def _chat(self, messages: list[Any]) -> None:
        try:
            script = Script.parse(next(m["content"] for m in reversed(messages) if m["role"] == "user"))
        except (ValueError, StopIteration) as problem:
            self._json(400, {"error": {"message": str(problem), "type": "invalid_request_error"}})
            return
        record = Record(script, messages)
        self._records.append(record)
        self._answer = Answer(record, script, len(self._records), self)

    def _json(self, status: int, content: Any) -> None:
        body = orjson.dumps(content)
        head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)

    def write(self, data: bytes | bytearray) -> None:
        self._transport.write(data)

    def answered(self) -> None:
        self._answer = None
        if self._buffer:
            asyncio.get_running_loop().call_soon(self.data_received, b"")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._answer is not None:
            self._answer.wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.stop()


async def serve(host: str, port: int) -> None:
    """Serves until the process is ended; the first line of its output is the port."""
    records: list[Record] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(records), host, port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Entry point of `python -m benchmarks.upstream`."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible upstream.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1")
    given = parser.parse_args()
    uvloop.run(serve(given.host, given.port))


if __name__ == "__main__":
    main()
