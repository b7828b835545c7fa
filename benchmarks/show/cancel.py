"""Cancelling before the first token and in mid-stream: how soon the upstream's own log shows the request closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from benchmarks.show.gateway_process import UpstreamProcess, running_gateway, running_upstream
from benchmarks.show.ledger import Ledger
from benchmarks.show.raw import RawWebSocket
from benchmarks.show.report import Report, median

TITLE = "cancel closes the upstream request within 200 ms"
TURNS = 50
LIMIT_MS = 200.0
SCRIPTS = {"before the first token": "tokens=50 delay=60", "mid-stream": "tokens=6000 rate=50 size=6"}


class Device:
    """One connection and what it saw."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._socket = RawWebSocket(self._frame)
        self.send = self._socket.send
        self.close = self._socket.close
        self.ledgers: dict[str, Ledger] = {}
        self.subscribed = 0
        self._changed = asyncio.Event()

    async def connect(self) -> None:
        await self._socket.connect(self._url)

    def _frame(self, frame: dict[str, Any], _: int) -> None:
        name = frame.get("conversation_id", "")
        self.subscribed += frame["type"] == "subscribed"
        self.ledgers.setdefault(name, Ledger(name)).take(frame)
        self._changed.set()

    async def until(self, met: Callable[[], bool], timeout_s: float) -> None:
        """Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while not met():
                self._changed.clear()
                await self._changed.wait()

    async def until_level(self, names: list[str], timeout_s: float) -> None:
        """Until every turn of these conversations has ended. Raises `TimeoutError`."""
        await self.until(lambda: all(self.ledgers[name].level for name in names), timeout_s)


async def _asked(upstream: UpstreamProcess, prefix: str, tokens: int) -> None:
    """Waits until the upstream is at work on every turn. Raises `TimeoutError`."""
    async with asyncio.timeout(20):
        while True:
            records = [record for record in await upstream.record() if record["key"].startswith(prefix)]
            if len(records) == TURNS and all(record["tokens"] >= tokens for record in records):
                return
            await asyncio.sleep(0.1)


async def _cancel_all(report: Report, url: str, upstream: UpstreamProcess, when: str) -> None:
    prefix = when.replace(" ", "-")
    names = [f"{prefix}-{number}" for number in range(TURNS)]
    asking, other = Device(url), Device(url)
    await asyncio.gather(asking.connect(), other.connect())
    for name in names:
        other.send(type="subscribe", conversation_id=name, after=0)
    await other.until(lambda: other.subscribed == TURNS, 20)
    for name in names:
        asking.send(type="chat_message", conversation_id=name, message=f"key={name} {SCRIPTS[when]}")
    await _asked(upstream, prefix, 10 if when == "mid-stream" else 0)
    asked_at: dict[str, float] = {}
    async with aiohttp.ClientSession() as session:
        with report.progress() as progress:
            for number, name in enumerate(progress.track(names, description=f"cancels {when}")):
                asked_at[name] = time.monotonic()
                if number % 2:
                    async with session.post(f"{url}/api/conversations/{name}/cancel", json={}) as answer:
                        await answer.read()
                else:
                    other.send(type="cancel", conversation_id=name)
                await asyncio.sleep(0.03)
    for device in (asking, other):
        await device.until_level(names, 10)
    await asyncio.sleep(0.3)
    records = {record["key"]: record for record in await upstream.record()}
    closed_ms = [1000 * ((records[name]["closed"] or float("inf")) - asked_at[name]) for name in names]
    asking.close()
    other.close()
    report.figure(f"{when}: closed after", f"median {median(closed_ms):.1f} ms, worst {max(closed_ms):.1f} ms")
    report.check(max(closed_ms) <= LIMIT_MS, f"{when}: {TURNS} requests closed within {LIMIT_MS:.0f} ms")
    problems = [device.ledgers[name].problem("cancelled") for device in (asking, other) for name in names]
    report.none(problems, f"{when}: `done` `cancelled` seen by both devices, `text_length` right")


async def show(report: Report, _: str | None) -> None:
    async with running_upstream() as upstream, running_gateway(upstream=upstream.url) as gateway:
        for when in SCRIPTS:
            await _cancel_all(report, gateway.url, upstream, when)
        report.check(await gateway.metric("convobase_streams_running") == 0, "no turn is left running")
        report.check(not gateway.complaints(), "no traceback in the gateway's log")
