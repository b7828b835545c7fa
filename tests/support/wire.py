"""Raw clients: what they hand out is what was on the wire. They check of each frame only what holds for every frame."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

Frame = dict[str, Any]

JSON, MSGPACK = "convobase.v1+json", "convobase.v1+msgpack"
WITHIN_S = 15.0
"""For anything that should come at once, on a machine that does other things too."""
LOGGED = {"message", "token", "function_call", "function_result", "context", "restart", "done"}
MAX_SLICE_BYTES = 65536
MAX_MESSAGE_BYTES = 1 << 26


class Order:
    """The promise to readers (SPEC.md section 2.7): in order, no gap, no duplicate, per conversation."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int]] = {}
        """By conversation: (seq, epoch) of the last entry."""

    def check(self, frame: Frame) -> None:
        kind, conversation = frame["type"], frame.get("conversation_id", "")
        if kind == "subscribed":
            self.last[conversation] = (frame["after"], -1)
        elif kind == "snapshot":
            self.last[conversation] = (frame["seq"], frame["epoch"])
        elif kind in ("deleted", "unsubscribed"):
            self.last.pop(conversation, None)
        elif is_logged(frame) and not frame.get("duplicate"):
            first: int = frame["first_seq"] if "first_seq" in frame else frame["seq"]
            epoch: int = frame.get("epoch", 0)
            before, epoch_before = self.last.get(conversation, (first - 1, 0))
            assert first == before + 1, f"entry {first} after {before}: {frame}"
            assert epoch >= epoch_before, f"epoch {epoch} after {epoch_before}: {frame}"
            assert frame["seq"] > first or "first_seq" not in frame, f"one entry is no slice: {frame}"
            assert kind == "token" or "first_seq" not in frame, f"only tokens are merged: {frame}"
            assert type(frame["metadata"]["timestamp"]) is int
            assert frame["turn_id"]
            assert frame.get("epoch") != 0, "epoch 0 is left out"
            self.last[conversation] = (frame["seq"], epoch)


def is_logged(frame: Frame) -> bool:
    return frame["type"] in LOGGED or (frame["type"] == "error" and "turn_id" in frame)


class Wire:
    """One WebSocket connection. `frames` are all that came, `raw` the same as bytes or text."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.binary = socket.subprotocol == MSGPACK
        self.frames: list[Frame] = []
        self.raw: list[str | bytes] = []
        self.order = Order()

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_frame({"type": kind, **fields})

    async def send_frame(self, frame: Frame) -> None:
        await self.socket.send(msgspec.msgpack.encode(frame) if self.binary else json.dumps(frame))

    async def next(self, within_s: float = WITHIN_S) -> Frame:
        async with asyncio.timeout(within_s):
            raw = await self.socket.recv()
        assert isinstance(raw, bytes) is self.binary
        if isinstance(raw, str):
            assert "\n" not in raw
            assert "\r" not in raw
        frame: Frame = msgspec.msgpack.decode(raw) if isinstance(raw, bytes) else json.loads(raw)
        self.raw.append(raw)
        self.frames.append(frame)
        if frame["type"] == "token" and "first_seq" in frame:
            assert len(json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode()) <= MAX_SLICE_BYTES
        self.order.check(frame)
        return frame

    async def until(self, last: Callable[[Frame], bool], within_s: float = WITHIN_S) -> list[Frame]:
        """Frames up to and with the first that `last` accepts."""
        seen: list[Frame] = []
        async with asyncio.timeout(within_s):
            while not seen or not last(seen[-1]):
                seen.append(await self.next(within_s))
        return seen

    async def get(self, kind: str, **fields: Any) -> Frame:
        """The next frame of that type and with these fields; what comes before it is in `frames` only."""
        return (await self.until(is_(kind, **fields)))[-1]

    async def ask(self, kind: str, **fields: Any) -> Frame:
        """Sends a frame with a `ref` and returns its direct answer."""
        ref = fields.setdefault("ref", f"r{len(self.frames)}")
        await self.send(kind, **fields)
        return (await self.until(lambda frame: frame.get("ref") == ref))[-1]

    async def turn(self, message: str, conversation_id: str, **fields: Any) -> list[Frame]:
        """Sends a message, and returns the frames of its turn, to the end of it."""
        acknowledged = await self.ask("chat_message", message=message, conversation_id=conversation_id, **fields)
        assert acknowledged["type"] == "message", acknowledged
        return [acknowledged, *await self.rest(acknowledged["turn_id"])]

    async def rest(self, turn_id: str) -> list[Frame]:
        """The frames of that turn from here on, to the end of it."""
        seen = await self.until(lambda frame: is_end(frame) and frame["turn_id"] == turn_id)
        return [frame for frame in seen if frame.get("turn_id") == turn_id and is_logged(frame)]

    async def silent(self) -> list[Frame]:
        """All that came before the answer to a ping: what the gateway had to say before it was asked."""
        await self.send("ping")
        return (await self.until(is_("pong")))[:-1]

    async def closed(self, within_s: float = WITHIN_S) -> int:
        """Waits for the end of the connection, and returns the close code."""
        async with asyncio.timeout(within_s):
            await self.socket.wait_closed()
        assert self.socket.close_code is not None
        return self.socket.close_code


@asynccontextmanager
async def wire(url: str, *subprotocols: str, **options: Any) -> AsyncIterator[Wire]:
    """A connection that has had its `welcome`."""
    async with bare_wire(url, *subprotocols, **options) as opened:
        assert (await opened.next())["type"] == "welcome"
        yield opened


@asynccontextmanager
async def bare_wire(url: str, *subprotocols: str, **options: Any) -> AsyncIterator[Wire]:
    # Who leaves with many frames unread doesn't see the other side's close frame behind them.
    options = {"max_size": MAX_MESSAGE_BYTES, "proxy": None, "open_timeout": WITHIN_S, "close_timeout": 1, **options}
    offered = [Subprotocol(name) for name in subprotocols] or None
    async with connect(url, subprotocols=offered, **options) as socket:
        yield Wire(socket)


# ---------------------------------------------------------------- event streams


class Event(NamedTuple):
    frame: Frame
    id: str | None


class Events:
    """One answer with an event stream, read line by line as section 3.4 has it."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        assert answer.status == 200, answer.status
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        self.answer = answer
        self.comments = 0
        self.order = Order()
        self._lines = self._read_lines()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        fields: dict[str, str] = {}
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, colon, value = line.partition(": ")
                    assert name in ("id", "data"), line
                    assert colon, line
                    assert name not in fields, line
                    fields[name] = value
                elif fields:
                    return self._event(fields)
        assert not fields, f"a half event at the end: {fields}"
        raise StopAsyncIteration

    def _event(self, fields: dict[str, str]) -> Event:
        frame: Frame = json.loads(fields["data"])
        self.order.check(frame)
        if is_logged(frame) or frame["type"] == "snapshot":
            epoch = frame.get("epoch", 0)
            assert fields["id"] == (f"{frame['seq']}.{epoch}" if epoch else str(frame["seq"]))
        else:
            assert "id" not in fields
        return Event(frame, fields.get("id"))

    async def _read_lines(self) -> AsyncIterator[str]:
        rest = b""
        async for piece in self.answer.content.iter_any():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                assert b"\r" not in line
                yield line.decode()
        assert not rest

    async def next(self) -> Frame:
        return (await anext(self)).frame

    async def until(self, last: Callable[[Frame], bool]) -> list[Frame]:
        seen = [await self.next()]
        while not last(seen[-1]):
            seen.append(await self.next())
        return seen

    async def all(self) -> list[Frame]:
        """All frames to the end of the stream."""
        return [event.frame async for event in self]


# ---------------------------------------------------------------- what frames say


def is_(kind: str, **fields: Any) -> Callable[[Frame], bool]:
    return lambda frame: frame["type"] == kind and all(frame.get(name) == value for name, value in fields.items())


def is_end(frame: Frame) -> bool:
    return frame["type"] == "done" or (frame["type"] == "error" and "turn_id" in frame)


def is_token(frame: Frame) -> bool:
    return bool(frame["type"] == "token")


def text(frames: Sequence[Frame]) -> str:
    """The text that stands: a `restart` takes back what came after `keep_seq`."""
    said: list[tuple[int, str]] = []
    for frame in frames:
        if frame["type"] == "token":
            said.append((frame["seq"], frame["content"]))
        elif frame["type"] == "restart":
            said = [(seq, content) for seq, content in said if seq <= frame["keep_seq"]]
    return "".join(content for _, content in said)


def kinds(frames: Sequence[Frame]) -> list[str]:
    """Types in order; a run of tokens counts once."""
    names = [str(frame["type"]) for frame in frames]
    return [name for i, name in enumerate(names) if name != "token" or i == 0 or names[i - 1] != "token"]


def assert_complete(frames: Sequence[Frame]) -> None:
    """A whole turn of text: acknowledged, told, and ended, and nothing is missing."""
    assert kinds(frames) in (["message", "token", "done"], ["message", "done"]), kinds(frames)
    assert frames[-1]["text_length"] == len(text(frames))
