"""Many conversations at once on one WebSocket connection: what `fifty` and `real-upstream` have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from rich.progress import Progress

from benchmarks.show.ledger import Ledger
from benchmarks.show.raw import RawWebSocket


class Many:
    """Sends one question in each of many conversations, and reads until every one of them is answered."""

    def __init__(self, url: str, questions: list[str], **fields: Any) -> None:
        self._url = url
        prefix = uuid4().hex[:8]
        self._questions = {f"show-{prefix}-{number}": text for number, text in enumerate(questions)}
        self._fields = fields
        self.ledgers = {name: Ledger(name) for name in self._questions}
        self.order: list[str] = []
        """Of which conversation each token frame was."""
        self.refused: list[str] = []
        self.at_once = 0
        """The most conversations that had begun and not ended at one moment."""
        self.seconds = 0.0
        self.arrivals: dict[str, list[float]] = {name: [] for name in self._questions}
        self._streaming: set[str] = set()
        self._left = set(self._questions)
        self._done = asyncio.Event()
        self._on_end: Callable[[int], None] = lambda _: None
        self._socket = RawWebSocket(self._frame)
        self.answer_calls = False

    @property
    def tokens(self) -> int:
        return len(self.order)

    @property
    def switches(self) -> int:
        """How often a token was of another conversation than the one before it."""
        return sum(a != b for a, b in zip(self.order, self.order[1:], strict=False))

    async def run(self, progress: Progress, description: str, timeout_s: float) -> None:
        """Raises `TimeoutError` when not all are answered in time."""
        task = progress.add_task(description, total=len(self._questions))
        self._on_end = lambda count: progress.update(task, completed=count)
        started = time.perf_counter()
        await self._socket.connect(self._url)
        try:
            for name, text in self._questions.items():
                self._socket.send(
                    type="chat_message", conversation_id=name, message_id="q1", message=text, **self._fields
                )
            async with asyncio.timeout(timeout_s):
                await self._done.wait()
        finally:
            self.seconds = time.perf_counter() - started
            self._socket.close()

    def _frame(self, frame: dict[str, Any], _: int) -> None:
        name = frame.get("conversation_id", "")
        ledger = self.ledgers.get(name)
        if ledger is None or not ledger.take(frame):
            if frame["type"] == "error":
                self.refused.append(str(frame["error"]))
                self._ended(name)
            return
        match frame["type"]:
            case "token":
                self.order.append(name)
                self.arrivals[name].append(time.perf_counter())
                self._streaming.add(name)
                self.at_once = max(self.at_once, len(self._streaming))
            case "function_call" if self.answer_calls:
                self._socket.send(
                    type="function_result", conversation_id=name, call_id=frame["call_id"], result={"degrees": 21}
                )
            case "done" | "error":
                self._ended(name)

    def _ended(self, name: str) -> None:
        self._streaming.discard(name)
        self._left.discard(name)
        self._on_end(len(self._questions) - len(self._left))
        if not self._left:
            self._done.set()

    def problems(self, finish_reasons: tuple[str, ...] = ("stop",)) -> list[str | None]:
        """Of the conversations that aren't whole, why."""
        return [*self.refused, *(ledger.problem(*finish_reasons) for ledger in self.ledgers.values())]

    def begun_together(self) -> bool:
        """Every conversation had its first token before any had its last."""
        if not all(self.arrivals.values()):
            return False
        return max(times[0] for times in self.arrivals.values()) < min(times[-1] for times in self.arrivals.values())
