"""200 turns under 8,000 tokens: does the last request still hold what was said once, in turn 3?

The summaries are written by a model that we didn't write: SmolLM2-135M under llama.cpp, on this machine's CPU (see
`real_upstream`). It is a very weak one, which is the point: what has to survive must not hang on the model. The chat
itself is a script, so that every request can be looked at. The gateway knows one upstream; a router in front of both
tells a request for a summary by its instructions.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import aiohttp
import orjson
from aiohttp import web

from benchmarks.processes import free_port
from benchmarks.show import dialogue
from benchmarks.show.call_device import CallDevice
from benchmarks.show.gateway_process import GatewayProcess, running_gateway
from benchmarks.show.real_upstream import installed, llama, server_process
from benchmarks.show.report import Report
from benchmarks.show.small_upstream import Answer, SmallUpstream, small_upstream
from gateway.context.budget import Budgets
from gateway.context.prompt import SUMMARY_HEADING
from gateway.context.quotes import HEADING
from gateway.context.summary import INSTRUCTIONS
from gateway.settings import Upstream

TITLE = "200 turns under 8,000 tokens: the last request still knows turn 3"
TURNS = 200
BUDGET = 8_000
SUMMARY_TOKENS = 150
"""The model's server stops it there."""
NAME = "long"
LAST_QUESTION = "Before I go to bed: what is Ingrid allergic to, and which contract do we have with the movers?"


class Summary(NamedTuple):
    """What the weak model wrote, and how long it took."""

    text: str
    seconds: float


class Router:
    """Sends requests for summaries to the real model, and remembers what it said."""

    def __init__(self, real: str, session: aiohttp.ClientSession) -> None:
        self.summaries: list[Summary] = []
        self._address = f"{real}/chat/completions"
        self._session = session

    async def forward(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
        if body["messages"][0]["content"] != INSTRUCTIONS:
            return None
        started = time.perf_counter()
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        said = bytearray()
        try:
            async with self._session.post(self._address, json=body) as answer:
                async for piece in answer.content.iter_any():
                    said += piece
                    await stream.write(piece)
        except ConnectionResetError:
            return stream  # the gateway didn't wait for the end
        self.summaries.append(Summary(_text(bytes(said)), time.perf_counter() - started))
        return stream


def _text(events: bytes) -> str:
    chunks = [orjson.loads(line[6:]) for line in events.split(b"\n") if line.startswith(b"data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(delta.get("content") or "" for delta in deltas)


def _script(body: dict[str, Any]) -> Answer:
    said = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return dialogue.reply(said[-1], len(said[-1]))


def _knows(text: str) -> bool:
    return all(word.lower() in text.lower() for word in dialogue.FACT_WORDS)


def _memory(body: dict[str, Any]) -> tuple[str, str] | None:
    """Of a request: the model's text, and what is quoted under it. None: nothing is compressed yet."""
    first = body["messages"][0]
    if first["role"] != "system":
        return None
    prose, _, quoted = first["content"].partition(SUMMARY_HEADING)[2].partition(HEADING)
    return prose, quoted


async def _talk(report: Report, gateway: GatewayProcess) -> CallDevice:
    device = CallDevice(gateway.url)
    await device.connect()
    questions = [*dialogue.questions(TURNS - 1), LAST_QUESTION]
    try:
        with report.progress() as progress:
            for number, question in enumerate(progress.track(questions, description="turns"), 1):
                device.send(type="chat_message", conversation_id=NAME, message=question)
                await device.until_some("done", number, timeout_s=300)
    finally:
        device.close()
    return device


async def _tokens(body: dict[str, Any]) -> int:
    return await Budgets(Upstream()).of("any").cost(body["messages"])


async def _judge(report: Report, device: CallDevice, upstream: SmallUpstream, router: Router) -> None:
    requests = upstream.requests
    total = sum([await _tokens({"messages": [message]}) for message in _all_messages(device)])
    report.figure("tokens of the whole conversation", f"{total:,}")
    contexts = [frame["compacted"] for frame in device.of("context")]
    report.figure("compressions", len(contexts))
    if contexts:
        after = [f"{x['tokens_before']:,} → {x['tokens_after']:,}" for x in contexts[:3]]
        report.figure("  tokens before → after", ", ".join(after) + ", …")
    slowest = max((summary.seconds for summary in router.summaries), default=0)
    report.figure("summaries by SmolLM2-135M", f"{len(router.summaries)}, slowest {slowest:.0f} s")
    own = sum(_knows(summary.text) for summary in router.summaries)
    report.figure("  that hold the fact in its own words", own)
    memories = [memory for body in requests if (memory := _memory(body)) is not None]
    report.figure("requests after the first compression", len(memories))
    report.figure("  that hold the fact in the model's text", sum(_knows(prose) for prose, _ in memories))
    report.figure("  that hold it word for word", sum(_knows(quoted) for _, quoted in memories))
    if router.summaries:
        report.note(f"Its last summary begins: {router.summaries[-1].text[:160]!r}")
    last = requests[-1]
    sizes = [await _tokens(body) for body in requests]
    report.figure("tokens of a request", f"at most {max(sizes):,}, the last one {sizes[-1]:,}")
    report.check(max(sizes) <= BUDGET, f"no request was over {BUDGET:,} tokens")
    report.check(len(contexts) >= 3, "it overflowed several times")
    report.check(bool(router.summaries), "the summaries were written by the real model")
    said = [message["content"] for message in last["messages"] if message["role"] == "user"]
    report.check(dialogue.FACT not in said, "turn 3 itself is long gone from the messages")
    missing = [word for word in dialogue.FACT_WORDS if word not in last["messages"][0]["content"]]
    report.none(missing, f"the last request holds {', '.join(dialogue.FACT_WORDS)} from turn {dialogue.FACT_TURN}")
    report.check(all(_knows(prose + quoted) for prose, quoted in memories), "and so did every request before it")
    report.none([device.ledgers[NAME].problem()], f"{TURNS} turns complete, `text_length` right")


def _all_messages(device: CallDevice) -> list[dict[str, Any]]:
    ledger = device.ledgers[NAME]
    asked = [frame["content"] for frame in device.of("message")]
    answers = [ledger.text(turn_id) for turn_id in ledger.messages]
    return [{"role": "user", "content": text} for text in [*asked, *answers]]


async def show(report: Report, _: str | None) -> None:
    try:
        python = await installed()
    except RuntimeError as problem:
        report.check(False, f"the real model couldn't be installed, so this was not shown: {problem}")
        return
    port = free_port()
    command = llama(python, port, parallel=1, answer_tokens=SUMMARY_TOKENS, context_tokens=BUDGET)
    async with server_process(port, "/health", *command) as real, aiohttp.ClientSession() as session:
        router = Router(real, session)
        async with (
            small_upstream(_script, forward=router.forward) as upstream,
            running_gateway(
                upstream=upstream.url, MODEL="scripted", SUMMARY_MODEL="smollm2", MAX_CONTEXT_TOKENS=BUDGET
            ) as gateway,
        ):
            device = await _talk(report, gateway)
            await _judge(report, device, upstream, router)
            refused = gateway.log.read_text(errors="replace").count("no summary:")
            report.figure("summaries that were refused, or came too late", refused)
            report.check(not gateway.complaints(), "no traceback in the gateway's log")
