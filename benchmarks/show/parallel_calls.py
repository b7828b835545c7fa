"""Five calls in one round, their arguments interleaved by the model, answered out of order from two devices."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.show.call_device import CallDevice
from benchmarks.show.gateway_process import running_gateway
from benchmarks.show.report import Report
from benchmarks.show.small_upstream import Answer, Call, results_in, small_upstream

TITLE = "five parallel calls, answered out of order from two devices"
NAME = "parallel"
CITIES = ("Oslo", "Lima", "Kyoto", "Nairobi", "Quito")
ORDER = (3, 0, 4, 1, 2)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _script(body: dict[str, Any]) -> Answer:
    found = results_in(body)
    if found:
        return [f"{result['city']} {result['degrees']}; " for result in found]
    return ["Let me look. ", *(Call("get_weather", {"city": city}) for city in CITIES)]


async def show(report: Report, _: str | None) -> None:
    async with (
        small_upstream(_script) as upstream,
        running_gateway(upstream=upstream.url, MODEL="any") as gateway,
    ):
        devices = [CallDevice(gateway.url), CallDevice(gateway.url)]
        await asyncio.gather(*(device.connect() for device in devices))
        try:
            devices[1].send(type="subscribe", conversation_id=NAME, after=0)
            await devices[1].until(lambda: devices[1].subscribed == 1, 20)
            devices[0].send(type="chat_message", conversation_id=NAME, message="How warm?", tools=[WEATHER])
            calls = [await device.until_some("function_call", len(CITIES)) for device in devices]
            for number, place in enumerate(ORDER):
                device = devices[number % 2]
                device.answer(calls[0][place], result={"city": CITIES[place], "degrees": 10 * place})
                await devices[0].until_some("function_result", number + 1)
            devices[0].answer(calls[0][0], result={"city": "Oslo", "degrees": -99})
            devices[1].answer(calls[0][1], result={"city": "Lima", "degrees": 10})
            for device in devices:
                await device.until_level([NAME], 20)
            await devices[0].until_some("error")
            await devices[1].until(lambda: len(devices[1].of("accepted")) == 3, 20)
        finally:
            for device in devices:
                device.close()
        _judge(report, devices, upstream.requests)
        report.check(not gateway.complaints(), "no traceback in the gateway's log")


def _judge(report: Report, devices: list[CallDevice], requests: list[dict[str, Any]]) -> None:
    asked = [frame["args"]["city"] for frame in devices[0].of("function_call")]
    report.check(asked == list(CITIES), f"five whole calls: {', '.join(asked)}")
    answered = [[frame["result"]["city"] for frame in device.of("function_result")] for device in devices]
    expected = [CITIES[place] for place in ORDER]
    report.check(
        answered == [expected] * 2, f"answered in this order, as both devices saw it: {', '.join(answered[0])}"
    )
    report.check(len(requests) == 2, "the model was called again once, when the last result was there")
    told = [result["city"] for result in results_in(requests[-1])]
    report.check(told == list(CITIES), f"and was told the results in the order of its calls: {', '.join(told)}")
    codes = [frame["error"]["code"] for frame in devices[0].of("error")]
    report.check(codes == ["CALL_CLOSED"], "another result for an answered call is refused, the same one accepted")
    ledger = devices[0].ledgers[NAME]
    report.note(f"The answer: {ledger.text(ledger.messages[0])!r}")
    problems = [device.ledgers[NAME].problem() for device in devices]
    report.none(problems, "both devices: no gap, no duplicate, `text_length` right")
