"""One connection that answers function calls: what the shows about calls have in common."""

from __future__ import annotations

from typing import Any

from benchmarks.show.cancel import Device


class CallDevice(Device):
    """Keeps every frame of its conversation, direct answers among them."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.frames: list[dict[str, Any]] = []

    def _frame(self, frame: dict[str, Any], size_bytes: int) -> None:
        self.frames.append(frame)
        super()._frame(frame, size_bytes)

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] in kinds]

    async def until_some(self, kind: str, number: int = 1, timeout_s: float = 20) -> list[dict[str, Any]]:
        """The frames of this kind, as soon as there are so many. Raises `TimeoutError`."""
        await self.until(lambda: len(self.of(kind)) >= number, timeout_s)
        return self.of(kind)

    def answer(self, call: dict[str, Any], **answer: Any) -> None:
        """With `result` or `error`."""
        self.send(
            type="function_result", conversation_id=call["conversation_id"], call_id=call["call_id"],
            ref=call["call_id"], **answer,
        )  # fmt: skip
