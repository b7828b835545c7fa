"""What a reader has of one conversation, and whether it came in order: the contract's check on every logged frame."""

from __future__ import annotations

from typing import Any

OPEN = {"queued", "running", "function_call"}
LOGGED = {"message", "token", "function_call", "function_result", "context", "restart", "done", "error"}


class Ledger:
    """Takes the frames of one conversation from any connection. It forgives nothing and mends nothing."""

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.seq = self.epoch = 0
        self.frames = self.merged = self.gaps = self.duplicates = self.snapshots = self.restarts = 0
        self.calls: list[dict[str, Any]] = []
        self.messages: list[str] = []
        """`turn_id` of the questions, in order."""
        self.ends: dict[str, dict[str, Any]] = {}
        """`turn_id` -> its `done` or `error`."""
        self._text: dict[str, list[tuple[int, str]]] = {}

    def take(self, frame: dict[str, Any]) -> bool:
        """True when it was an entry, or a snapshot, of this conversation."""
        if frame["type"] == "snapshot":
            self._snapshot(frame)
            return True
        if frame["type"] not in LOGGED or "seq" not in frame or frame.get("duplicate"):
            return False
        first = frame.get("first_seq", frame["seq"])
        if first > self.seq + 1:
            self.gaps += 1
        elif first <= self.seq:
            self.duplicates += 1
        self.seq, self.epoch = frame["seq"], frame.get("epoch", 0)
        self.frames += 1
        self._entry(frame)
        return True

    def _entry(self, frame: dict[str, Any]) -> None:
        turn_id = frame["turn_id"]
        match frame["type"]:
            case "message":
                self.messages.append(turn_id)
            case "token":
                self.merged += "first_seq" in frame
                self._text.setdefault(turn_id, []).append((frame["seq"], frame["content"]))
            case "function_call":
                self.calls.append(frame)
            case "restart":
                self.restarts += 1
                kept = [piece for piece in self._text.get(turn_id, []) if piece[0] <= frame["keep_seq"]]
                self._text[turn_id] = kept
            case "done" | "error":
                self.ends[turn_id] = frame

    def _snapshot(self, frame: dict[str, Any]) -> None:
        self.snapshots += 1
        self.seq, self.epoch = frame["seq"], frame["epoch"]
        self.messages = [line["turn_id"] for line in frame["messages"] if line["role"] == "user"]
        self._text = {
            line["turn_id"]: [(frame["seq"], line["content"])]
            for line in frame["messages"]
            if line["role"] == "assistant"
        }
        # An end that the log has lost doesn't stand either.
        self.ends = {
            line["turn_id"]: self.ends.get(line["turn_id"]) or _end_in(line)
            for line in frame["messages"]
            if line["role"] == "assistant" and line["status"] not in OPEN
        }

    def text(self, turn_id: str) -> str:
        """The turn's text that stands."""
        return "".join(text for _, text in self._text.get(turn_id, []))

    @property
    def level(self) -> bool:
        """Every question has its end."""
        return bool(self.messages) and all(turn_id in self.ends for turn_id in self.messages)

    def problem(self, *finish_reasons: str) -> str | None:
        """Why this isn't a whole conversation whose turns ended so (default: `stop`); None: it is one."""
        if self.gaps or self.duplicates:
            return f"{self.conversation_id}: {self.gaps} gaps, {self.duplicates} duplicates"
        for turn_id in self.messages:
            end = self.ends.get(turn_id)
            if end is None:
                return f"{self.conversation_id}: a turn without its end"
            if end["type"] == "error":
                return f"{self.conversation_id}: {end['error']}"
            if end["finish_reason"] not in (finish_reasons or ("stop",)):
                return f"{self.conversation_id}: ended with {end['finish_reason']}"
            if end["text_length"] != len(self.text(turn_id)):
                return f"{self.conversation_id}: text_length {end['text_length']}, not {len(self.text(turn_id))}"
        return None if self.messages else f"{self.conversation_id}: nothing came"


def _end_in(line: dict[str, Any]) -> dict[str, Any]:
    """The `done` or `error` that a snapshot's line stands for."""
    if "error" in line:
        return {"type": "error", "error": line["error"]}
    return {"type": "done", "finish_reason": line.get("finish_reason"), "text_length": len(line["content"])}
