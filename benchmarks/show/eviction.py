"""1,000 conversations that are idle for longer than the eviction time, with readers that stay subscribed to them."""

from __future__ import annotations

import asyncio
from typing import Any

from rich.progress import Progress

from benchmarks.show.gateway_process import GatewayProcess, running_gateway, running_upstream
from benchmarks.show.ledger import Ledger
from benchmarks.show.many import Many
from benchmarks.show.raw import RawWebSocket
from benchmarks.show.report import MIB, Report, mib

TITLE = "1,000 idle conversations leave memory and continue from the log"
CONVERSATIONS = 1000
AT_ONCE = 50
IDLE_S = 12.0
SCRIPT = "tokens=200 size=100"
GIVEN_BACK_S = 7.0
"""After the eviction: free memory goes back to the system a little later (`gateway.sessions.allocator`)."""
CYCLES = 3
LEAK_BYTES = 4 * MIB
"""What the last cycle may leave over the one before. The first ones also leave what 1,000 subscriptions take, and
holes: pages of which malloc or the interpreter still uses a part."""


class Subscriber:
    """One connection that asks in many conversations, a few at a time, and stays subscribed to all of them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._socket = RawWebSocket(self._frame)
        self.ledgers = {f"idle-{number}": Ledger(f"idle-{number}") for number in range(CONVERSATIONS)}
        self._ended: dict[str, asyncio.Event] = {}

    async def connect(self) -> None:
        await self._socket.connect(self._url)

    @property
    def connected(self) -> bool:
        return not self._socket.closed.is_set()

    def close(self) -> None:
        self._socket.close()

    async def ask_all(self, report: Report, number: int) -> None:
        gate = asyncio.Semaphore(AT_ONCE)
        with report.progress() as progress:
            task = progress.add_task(f"question {number} in every conversation", total=CONVERSATIONS)

            async def ask(name: str) -> None:
                async with gate, asyncio.timeout(60):
                    self._ended[name] = asyncio.Event()
                    text = f"key={name} turn={number} {SCRIPT}"
                    self._socket.send(type="chat_message", conversation_id=name, message_id=f"q{number}", message=text)
                    await self._ended[name].wait()
                    progress.advance(task)

            await asyncio.gather(*(ask(name) for name in self.ledgers))

    def _frame(self, frame: dict[str, Any], _: int) -> None:
        name = frame.get("conversation_id", "")
        if name in self.ledgers and self.ledgers[name].take(frame) and frame["type"] in ("done", "error"):
            self._ended[name].set()


async def _evicted(gateway: GatewayProcess) -> float:
    """Waits until the pool is empty, at most four times the idle time; returns how many sessions are left."""
    sessions = float("nan")
    for _ in range(int(4 * IDLE_S / 0.25)):
        sessions = await gateway.metric("convobase_sessions")
        if sessions == 0:
            break
        await asyncio.sleep(0.25)
    await asyncio.sleep(GIVEN_BACK_S)
    return sessions


def _continued(records: list[dict[str, Any]], ledger: Ledger) -> str | None:
    """Whether the upstream got all turns before as history with the last question."""
    name = ledger.conversation_id
    if len(records) != CYCLES or len(ledger.messages) != CYCLES:
        return f"{name}: {len(records)} requests, {len(ledger.messages)} turns"
    told = [(message["role"], message["content"]) for message in records[-1]["messages"] if message["role"] != "system"]
    asked = [f"key={name} turn={number} {SCRIPT}" for number in range(1, CYCLES + 1)]
    turns = zip(asked, [record["text"] for record in records[:-1]], strict=False)
    history = [line for question, text in turns for line in (("user", question), ("assistant", text))]
    return None if told == [*history, ("user", asked[-1])] else f"{name}: the history isn't that of the turns before"


async def warm_up(url: str) -> None:
    """So that what is loaded with the first question (vocabularies, connections) isn't taken for a conversation's."""
    many = Many(url, [SCRIPT] * AT_ONCE)
    with Progress(disable=True) as progress:
        await many.run(progress, "", timeout_s=30)
    await asyncio.sleep(1)


async def show(report: Report, _: str | None) -> None:
    async with (
        running_upstream() as upstream,
        running_gateway(upstream=upstream.url, SESSION_IDLE_S=IDLE_S, MAX_CONTEXT_TOKENS=100000) as gateway,
    ):
        subscriber = Subscriber(gateway.url)
        await subscriber.connect()
        await warm_up(gateway.url)
        start = gateway.rss_bytes()
        sessions, left, peaks, after = [], [], [], []
        for number in range(1, CYCLES + 1):
            await subscriber.ask_all(report, number)
            peaks.append(gateway.rss_bytes())
            sessions.append(await gateway.metric("convobase_sessions"))
            left.append(await _evicted(gateway))
            after.append(gateway.rss_bytes())
        records: dict[str, list[dict[str, Any]]] = {}
        for record in await upstream.record():
            records.setdefault(record["key"], []).append(record)
        report.figure("sessions", f"{min(sessions):.0f}; {max(left):.0f} after {IDLE_S:g} s")
        report.figure("memory at the start", mib(start))
        for number, (peak, rest) in enumerate(zip(peaks, after, strict=True), 1):
            report.figure(f"after answer {number} of each, after eviction", f"{mib(peak)}, {mib(rest)}")
        report.check(min(sessions) >= CONVERSATIONS, f"{CONVERSATIONS:,} sessions were in memory at once")
        report.check(max(left) == 0, "sessions 0 after every eviction")
        report.check(subscriber.connected, "the connection stayed, subscribed to all of them")
        ledgers = subscriber.ledgers
        report.none(
            (_continued(records.get(name, []), ledgers[name]) for name in ledgers), "each continued from its log"
        )
        report.none((ledger.problem() for ledger in ledgers.values()), "`seq` goes on without gap or duplicate")
        leak = after[-1] - after[-2]
        report.check(
            leak < LEAK_BYTES, f"memory is back: the last cycle left {leak / MIB:+.1f} MiB over the one before"
        )
        report.check(not gateway.complaints(), "no traceback in the gateway's log")
        subscriber.close()
