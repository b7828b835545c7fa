"""Readers that are cut at random bytes, and readers across `kill -9`: the text is what the upstream itself recorded."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from rich.progress import Progress

from benchmarks.show.gateway_process import GatewayProcess, UpstreamProcess, running_gateway, running_upstream
from benchmarks.show.ledger import Ledger
from benchmarks.show.raw import Raw, RawEvents, RawWebSocket
from benchmarks.show.report import Report

TITLE = "readers cut 100 times at random bytes, and across kill -9"
READERS = 4
CUTS = 100
LEAST_BYTES, MOST_BYTES = 1, 12_000
"""Of a connection before it is cut: the first are in mid-handshake."""
SCRIPT = "tokens=2500 rate=125 size=9 script=unicode chunk=cut"
CRASHED = 10
KILLS = 2
CRASH_SCRIPT = "tokens=300 rate=60 size=9 script=unicode chunk=cut"


class CutReader:
    """One reader of one turn. Whatever it has is its cursor: every connection starts after that."""

    def __init__(self, url: str, name: str, script: str) -> None:
        self.ledger = Ledger(name)
        self.cuts = {"WebSocket": 0, "SSE": 0}
        self.resumes = 0
        self.received_bytes = 0
        self.refused: list[str] = []
        self._url = url
        self._question = {"conversation_id": name, "message_id": "q1", "message": f"key={name} {script}"}
        self._rng = random.Random(name)

    @property
    def all_cuts(self) -> int:
        return sum(self.cuts.values())

    @property
    def over(self) -> bool:
        return self.ledger.level

    async def read(self, *, cuts: int, progress: Progress, task: Any) -> None:
        """Reads to the end of the turn; the first `cuts` connections are cut, WebSocket and SSE in turn."""
        while not self.over and not self.refused:
            kind = ("WebSocket", "SSE")[self.all_cuts % 2]
            cutting = self.all_cuts < cuts
            connection = await self._connect(kind, self._budget() if cutting else None)
            while not connection.closed.is_set() and not self.over:
                await asyncio.wait([asyncio.create_task(connection.closed.wait())], timeout=0.05)
            self.received_bytes += connection.received_bytes
            self.cuts[kind] += connection.was_cut
            progress.update(task, advance=int(connection.was_cut))
            connection.close()

    async def read_through_crashes(self, kind: str) -> None:
        """Reads to the end of the turn over connections of one kind, whatever happens to the gateway."""
        while not self.over and not self.refused:
            try:
                connection = await self._connect(kind, None)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            while not connection.closed.is_set() and not self.over:
                await asyncio.wait([asyncio.create_task(connection.closed.wait())], timeout=0.05)
            connection.close()

    def _budget(self) -> int:
        # As many short as long ones: the exponent is what is drawn.
        return int(LEAST_BYTES * (MOST_BYTES / LEAST_BYTES) ** self._rng.random())

    async def _connect(self, kind: str, budget_bytes: int | None) -> Raw:
        ledger = self.ledger
        self.resumes += ledger.seq > 0
        if kind == "WebSocket":
            socket = await RawWebSocket(self._frame, budget_bytes).connect(self._url)
            if ledger.seq == 0:
                socket.send(type="chat_message", **self._question)
            else:
                name = ledger.conversation_id
                socket.send(type="subscribe", conversation_id=name, after=ledger.seq, epoch=ledger.epoch)
            return socket
        events = RawEvents(self._frame, budget_bytes)
        if ledger.seq == 0:
            return await events.request(self._url, "/api/chat/stream", self._question)
        target = f"/api/chat/stream?conversation_id={ledger.conversation_id}"
        cursor = f"{ledger.seq}.{ledger.epoch}" if ledger.epoch else str(ledger.seq)
        if self._rng.random() < 0.5:
            return await events.request(self._url, target, last_event_id=cursor)
        return await events.request(self._url, f"{target}&after={cursor}")

    def _frame(self, frame: dict[str, Any], _: int) -> None:
        if not self.ledger.take(frame) and frame["type"] == "error" and not frame["error"]["retryable"]:
            self.refused.append(str(frame["error"]))


async def _mismatch(reader: CutReader, upstream: UpstreamProcess) -> str | None:
    """Whether the reader's text isn't that of the last generation that the upstream made for it."""
    name = reader.ledger.conversation_id
    records = await upstream.record(name)
    if not records or not reader.ledger.messages:
        return f"{name}: nothing was asked or nothing came"
    text = reader.ledger.text(reader.ledger.messages[-1])
    if records[-1]["ended"] is None:
        return f"{name}: the upstream's last answer isn't whole"
    if text != records[-1]["text"]:
        return f"{name}: {len(text)} characters, the upstream sent {len(records[-1]['text'])}"
    return None


async def _random_bytes(report: Report, gateway: GatewayProcess, upstream: UpstreamProcess) -> None:
    readers = [CutReader(gateway.url, f"cut-{number}", SCRIPT) for number in range(READERS)]
    with report.progress() as progress:
        task = progress.add_task("cuts", total=READERS * CUTS)
        async with asyncio.timeout(90):
            await asyncio.gather(*(reader.read(cuts=CUTS, progress=progress, task=task) for reader in readers))
    ledgers = [reader.ledger for reader in readers]
    report.figure("readers", READERS)
    report.figure("cuts of each reader", ", ".join(str(reader.cuts) for reader in readers[:1]))
    report.figure("resumes by cursor", sum(reader.resumes for reader in readers))
    report.figure("frames", f"{sum(ledger.frames for ledger in ledgers):,}")
    report.figure("  of which merged slices", f"{sum(ledger.merged for ledger in ledgers):,}")
    report.figure("snapshots", sum(ledger.snapshots for ledger in ledgers))
    report.figure("duplicates / gaps", f"{sum(x.duplicates for x in ledgers)} / {sum(x.gaps for x in ledgers)}")
    report.none((line for reader in readers for line in reader.refused), "nothing was refused")
    report.check(
        all(reader.cuts == {"WebSocket": CUTS // 2, "SSE": CUTS // 2} for reader in readers),
        f"each reader was cut {CUTS} times before its turn ended, half of them WebSocket, half SSE",
    )
    report.none((ledger.problem() for ledger in ledgers), "no gap, no duplicate, `text_length` right")
    mismatches = [await _mismatch(reader, upstream) for reader in readers]
    report.none(mismatches, "every text is exactly what the upstream recorded, non-ASCII included")


async def _crashes(report: Report, gateway: GatewayProcess, upstream: UpstreamProcess) -> None:
    readers = [CutReader(gateway.url, f"crash-{number}", CRASH_SCRIPT) for number in range(CRASHED)]
    kinds = ("WebSocket", "SSE")
    tasks = [
        asyncio.create_task(reader.read_through_crashes(kinds[number % 2])) for number, reader in enumerate(readers)
    ]
    try:
        with report.progress() as progress:
            task = progress.add_task("kill -9", total=KILLS)
            for number in range(KILLS):
                await asyncio.sleep(2 + 0.3 * number)
                await gateway.kill()
                await gateway.start()
                progress.update(task, completed=number + 1)
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
    finally:
        for reading in tasks:
            reading.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ledgers = [reader.ledger for reader in readers]
    generations = [len(await upstream.record(ledger.conversation_id)) for ledger in ledgers]
    report.figure("kill -9", f"{KILLS} times under {CRASHED} running turns (half WebSocket, half SSE)")
    report.figure("  generations asked for", sum(generations))
    report.figure("  snapshots / restarts seen", f"{sum(x.snapshots for x in ledgers)} / {_restarts(ledgers)}")
    report.check(set(generations) == {1 + KILLS}, "every turn was generated again after every kill, and only then")
    report.none((line for reader in readers for line in reader.refused), "across kill -9 nothing was refused")
    report.none((x.problem() for x in ledgers), "across kill -9: no gap, no duplicate, `text_length` right")
    mismatches = [await _mismatch(reader, upstream) for reader in readers]
    report.none(mismatches, "across kill -9 every text is exactly the upstream's last generation")


def _restarts(ledgers: list[Ledger]) -> int:
    return sum(ledger.restarts for ledger in ledgers)


async def show(report: Report, _: str | None) -> None:
    async with (
        running_upstream() as upstream,
        running_gateway(upstream=upstream.url, LOG_URL="sqlite:show.db", BATCH_CHARS=0) as gateway,
    ):
        await _random_bytes(report, gateway, upstream)
        await _crashes(report, gateway, upstream)
        report.check(not gateway.complaints(), "no traceback in the gateway's log")
