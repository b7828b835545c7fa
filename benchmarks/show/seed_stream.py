"""The stream that the product was drawn with: token, token, function_call, token, done, in one turn.

A client offers `search_papers`, the model calls it in mid-answer, the client answers, and the same stream goes on.
Over a WebSocket the answer is a frame; over SSE it is a POST beside the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson

from benchmarks.show.gateway_process import GatewayProcess, running_gateway
from benchmarks.show.ledger import Ledger
from benchmarks.show.raw import Raw, RawEvents, RawWebSocket
from benchmarks.show.report import Report
from benchmarks.show.small_upstream import Answer, Call, small_upstream

TITLE = "token, token, function_call, token, done: one turn, over a WebSocket and over SSE"
QUESTION = "Explain quantum computing"
BEFORE = ("Quantum", " computing", " is", " a")
AFTER = (" revolutionary", " way to compute.")
FOUND = {"papers": ["Quantum supremacy using a programmable superconducting processor"]}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search_papers",
        "description": "Finds papers",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
EXPECTED = ["message", *["token"] * len(BEFORE), "function_call", "function_result", *["token"] * len(AFTER), "done"]
SHOWN = ("type", "content", "name", "args", "result", "finish_reason")


def _script(body: dict[str, Any]) -> Answer:
    if any(message["role"] == "tool" for message in body["messages"]):
        return AFTER
    return [*BEFORE, Call("search_papers", {"query": "quantum computing"})]


class _Reader:
    """Prints what comes, and answers the call. `answer` sends a result for a `call_id`."""

    def __init__(self, report: Report, name: str) -> None:
        self.ledger = Ledger(name)
        self.frames: list[dict[str, Any]] = []
        self.over = asyncio.Event()
        self.calls: asyncio.Queue[str] = asyncio.Queue()
        self._report = report

    def take(self, frame: dict[str, Any], _: int) -> None:
        if not self.ledger.take(frame):
            return
        self.frames.append(frame)
        shown = {key: frame[key] for key in SHOWN if key in frame}
        self._report.console.print(f"  data: {orjson.dumps(shown).decode()}", markup=False, highlight=False)
        if frame["type"] == "function_call":
            self.calls.put_nowait(frame["call_id"])
        elif frame["type"] in ("done", "error"):
            self.over.set()

    async def read(self, connection: Raw, answer: Callable[[str], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(20):
                await answer(await self.calls.get())
                await self.over.wait()
        finally:
            connection.close()


async def _over_websocket(report: Report, gateway: GatewayProcess) -> _Reader:
    reader = _Reader(report, "123")
    socket = await RawWebSocket(reader.take).connect(gateway.url)
    socket.send(type="chat_message", message=QUESTION, conversation_id="123", tools=[SEARCH])

    async def answer(call_id: str) -> None:
        socket.send(type="function_result", conversation_id="123", call_id=call_id, result=FOUND)

    await reader.read(socket, answer)
    return reader


async def _over_sse(report: Report, gateway: GatewayProcess) -> _Reader:
    reader = _Reader(report, "124")
    body = {"message": QUESTION, "conversation_id": "124", "tools": [SEARCH]}
    events = await RawEvents(reader.take).request(gateway.url, "/api/chat/stream", body)

    async def answer(call_id: str) -> None:
        address = f"{gateway.url}/api/conversations/124/function_results"
        async with (
            aiohttp.ClientSession() as session,
            session.post(address, json={"call_id": call_id, "result": FOUND}) as response,
        ):
            report.check(response.status == 200, f"the result is taken by POST: {await response.text()}")

    await reader.read(events, answer)
    return reader


async def show(report: Report, _: str | None) -> None:
    async with (
        # A gap, so that no two tokens come in one slice and are merged.
        small_upstream(_script, gap_s=0.05) as upstream,
        running_gateway(upstream=upstream.url, MODEL="any", BATCH_CHARS=0) as gateway,
    ):
        for name, way in (("WebSocket", _over_websocket), ("SSE", _over_sse)):
            report.console.print(f"  [dim]{name}[/]")
            reader = await way(report, gateway)
            kinds = [frame["type"] for frame in reader.frames]
            report.check(kinds == EXPECTED, f"{name}: {' '.join(kinds)}")
            report.check(len({frame["turn_id"] for frame in reader.frames}) == 1, f"{name}: all of one turn")
            text = reader.ledger.text(reader.ledger.messages[0])
            report.check(text == "".join(BEFORE + AFTER), f"{name}: the text is {text!r}")
            report.none([reader.ledger.problem()], f"{name}: no gap, no duplicate, `text_length` right")
        report.check(not gateway.complaints(), "no traceback in the gateway's log")
