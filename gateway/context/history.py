"""From the fold of a conversation to the messages of a model call."""

from __future__ import annotations

from typing import Any

import orjson
from msgspec import UNSET

from protocol.fold import TurnFold
from protocol.frames import FoldedCall

UNANSWERED = "the turn ended before this call was answered"


def turn_messages(turn: TurnFold) -> list[dict[str, Any]]:
    """One turn: its question, and per round what was said, the calls, and their results.

    A turn that ended without text or calls (it failed, or was stopped at once) keeps its question: the person
    did ask. Text of a generation that isn't over is left out; only finished rounds are fed back.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": turn.message.content}]
    text, start = turn.text, 0
    for calls in _rounds(turn):
        offset = calls[0].offset
        messages.append(
            {
                "role": "assistant",
                "content": text[start:offset] or None,
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": orjson.dumps(call.args).decode()},
                    }
                    for call in calls
                ],
            }
        )
        messages += [{"role": "tool", "tool_call_id": call.call_id, "content": _answer(call)} for call in calls]
        start = offset
    if start < len(text):
        messages.append({"role": "assistant", "content": text[start:]})
    return messages


def _rounds(turn: TurnFold) -> list[list[FoldedCall]]:
    rounds: dict[int, list[FoldedCall]] = {}
    for call in turn.calls.values():
        rounds.setdefault(call.round, []).append(call)
    return [rounds[number] for number in sorted(rounds)]


def _answer(call: FoldedCall) -> str:
    if call.error is not UNSET:
        return orjson.dumps({"error": call.error}).decode()
    if call.result is UNSET:
        return orjson.dumps({"error": UNANSWERED}).decode()
    return call.result if isinstance(call.result, str) else orjson.dumps(call.result).decode()
