"""Raw readers that stay with one node: many conversations on one connection, which comes back with their cursors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from benchmarks.show.audit import Audited, Findings
from benchmarks.show.raw import RawWebSocket
from benchmarks.show.report import Report
from benchmarks.show.waiting import until

AGAIN_S = 0.3


class Follow:
    """Use it as `async with Follow(…) as readers`, and wait for `level`.

    `questions` are asked, each under the same `message_id` however often; without them the conversations are only
    read, from their beginning. Whatever a ledger has is its cursor.
    """

    def __init__(self, url: str, names: Iterable[str], questions: Mapping[str, str] | None = None) -> None:
        self.ledgers = {name: Audited(name) for name in names}
        self.connections = 0
        self.refused: dict[str, int] = {}
        self.level = asyncio.Event()
        """Every conversation has come to the end of its turn."""
        self._url = url
        self._questions = questions or {}
        self._socket: RawWebSocket | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"follow {self._url}")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def tokens(self) -> int:
        """Frames with text so far, of all conversations."""
        return sum(ledger.frames for ledger in self.ledgers.values())

    async def until_streaming(self, frames: int, within_s: float = 30.0) -> None:
        """Until every conversation has brought so many frames. Raises `TimeoutError`."""
        if not await until(lambda: all(each.frames >= frames for each in self.ledgers.values()), within_s):
            raise TimeoutError("the streams don't begin")

    async def wait(self, within_s: float) -> None:
        """Until all are level, or the time is over: the ledgers say which."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.level.wait()

    async def _run(self) -> None:
        while not self.level.is_set():
            try:
                await self._connected()
            except OSError:
                pass
            finally:
                if self._socket is not None:
                    self._socket.close()
                    self._socket = None
            await asyncio.sleep(AGAIN_S)

    async def _connected(self) -> None:
        self.connections += 1
        socket = RawWebSocket(self._frame)
        await socket.connect(self._url)
        self._socket = socket
        for name, ledger in self.ledgers.items():
            if not ledger.level:
                self._go_on(name)
        await socket.closed.wait()

    def _go_on(self, name: str) -> None:
        """Asks if nobody has acknowledged it, else reads on."""
        ledger = self.ledgers[name]
        if self._socket is None:
            return
        if name in self._questions and not ledger.messages:
            self._socket.send(
                type="chat_message", conversation_id=name, message_id="q1", message=self._questions[name], ref=name
            )
        else:
            self._socket.send(type="subscribe", conversation_id=name, after=ledger.seq, epoch=ledger.epoch, ref=name)

    def _frame(self, frame: dict[str, Any], _: int) -> None:
        if frame["type"] == "error" and "seq" not in frame:
            self._refused(frame)
            return
        ledger = self.ledgers.get(frame.get("conversation_id", ""))
        if ledger is None or not ledger.take(frame):
            return
        if frame["type"] == "snapshot" and not ledger.messages and ledger.conversation_id in self._questions:
            self._go_on(ledger.conversation_id)  # the log has lost it: it is sent again
        if ledger.level and all(each.level for each in self.ledgers.values()):
            self.level.set()

    def _refused(self, frame: dict[str, Any]) -> None:
        code = frame["error"]["code"]
        self.refused[code] = self.refused.get(code, 0) + 1
        if frame.get("ref") in self.ledgers:
            asyncio.get_running_loop().call_later(AGAIN_S, self._go_on, frame["ref"])


def report_readers(report: Report, where: str, readers: Follow, found: Findings) -> None:
    """Whether they have come to what the log has."""
    ledgers = readers.ledgers.values()
    snapshots = sum(ledger.snapshots for ledger in ledgers)
    refused = f", refused {readers.refused}" if readers.refused else ""
    report.figure(f"readers on {where}", f"{readers.connections} connections, {snapshots} snapshots{refused}")
    report.none(
        (_differs(each, found.ledgers[each.conversation_id]) for each in ledgers),
        f"readers on {where}: in order, level, with the log's text",
    )


def _differs(ledger: Audited, log: Audited) -> str | None:
    name = ledger.conversation_id
    if not ledger.level:
        return f"{name}: no end by seq {ledger.seq}"
    if ledger.gaps or ledger.duplicates or ledger.epochs_back:
        return f"{name}: {ledger.gaps} gaps, {ledger.duplicates} duplicates, {ledger.epochs_back} epochs back"
    if not log.messages or ledger.text(ledger.messages[-1]) != log.text(log.messages[-1]):
        return f"{name}: not the text that the log has"
    return None
