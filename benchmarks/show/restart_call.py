"""A gateway that is killed with `kill -9` while a call waits: the answer comes after its restart, and the turn ends."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from benchmarks.show.call_device import CallDevice
from benchmarks.show.gateway_process import GatewayProcess, running_gateway
from benchmarks.show.report import Report
from benchmarks.show.small_upstream import Answer, Call, results_in, small_upstream

TITLE = "kill -9 and restart while a call waits, then the answer, then the end of the turn"
NAME = "restart"
ASK_COLOR = {"type": "function", "function": {"name": "ask_color", "description": "Asks the user for a colour"}}
TURNS = 20
"""Conversations that wait at once; each has its own answer."""


def _script(body: dict[str, Any]) -> Answer:
    found = results_in(body)
    return ["I see: ", str(found[0])] if found else ["Which one? ", Call("ask_color", {})]


async def _asked(gateway: GatewayProcess, names: list[str]) -> CallDevice:
    device = CallDevice(gateway.url)
    await device.connect()
    for name in names:
        device.send(type="chat_message", conversation_id=name, message="Paint it", tools=[ASK_COLOR])
    await device.until_some("function_call", len(names))
    return device


async def _again(gateway: GatewayProcess, before: CallDevice) -> CallDevice:
    """The same device on a new connection: everything that it has, and its cursors."""
    device = CallDevice(gateway.url)
    device.ledgers = before.ledgers
    device.frames = before.frames
    await device.connect()
    for name, ledger in before.ledgers.items():
        if name:  # those without a name are of the connection
            device.send(type="subscribe", conversation_id=name, after=ledger.seq, epoch=ledger.epoch)
    return device


async def _answer(gateway: GatewayProcess, device: CallDevice) -> None:
    """Half by frame, half by POST."""
    async with aiohttp.ClientSession() as session:
        for number, call in enumerate(device.of("function_call")):
            if number % 2:
                device.answer(call, result=f"colour {number}")
                continue
            name = call["conversation_id"]
            address = f"{gateway.url}/api/conversations/{name}/function_results"
            body = {"call_id": call["call_id"], "result": f"colour {number}"}
            async with session.post(address, json=body) as response:
                response.raise_for_status()


async def show(report: Report, _: str | None) -> None:
    names = [f"{NAME}-{number}" for number in range(TURNS)]
    async with (
        small_upstream(_script) as upstream,
        running_gateway(upstream=upstream.url, MODEL="any", LOG_URL="sqlite:show.db") as gateway,
    ):
        device = await _asked(gateway, names)
        await gateway.kill()
        await asyncio.sleep(1)
        device.close()
        await gateway.start()
        report.check(
            await gateway.metric("convobase_streams_running") == TURNS, f"{TURNS} turns wait after the restart"
        )
        device = await _again(gateway, device)
        await _answer(gateway, device)
        await device.until_level(names, 20)
        device.close()
        numbered = enumerate(device.of("function_call"))
        texts = {call["conversation_id"]: f"Which one? I see: colour {number}" for number, call in numbered}
        ledgers = [device.ledgers[name] for name in names]
        wrong = [x.conversation_id for x in ledgers if x.text(x.messages[0]) != texts[x.conversation_id]]
        report.none(wrong, "every turn went on with its own answer, half of them sent by frame, half by POST")
        report.none((x.problem() for x in ledgers), "no gap, no duplicate, `text_length` right")
        report.check(sum(x.restarts for x in ledgers) == 0, "no text was repeated: a turn that waits needs no restart")
        report.check(len(upstream.requests) == 2 * TURNS, "the model was called twice for each turn")
        report.check(not gateway.complaints(), "no traceback in the gateway's log")
