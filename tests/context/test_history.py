"""What the model is told of a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.context.history import UNANSWERED, turn_messages
from protocol.fold import Fold
from protocol.frames import (
    Done,
    Entry,
    Error,
    ErrorBody,
    FunctionCall,
    FunctionResult,
    Message,
    Metadata,
    Restart,
    Token,
)


def log(*rows: tuple[Any, ...]) -> Fold:
    """A fold of rows (kind, turn, …)."""
    fold = Fold()
    for seq, (kind, turn, *fields) in enumerate(rows, 1):
        at: dict[str, Any] = {"conversation_id": "c", "turn_id": turn, "seq": seq, "metadata": Metadata(1)}
        entry: Entry
        match kind:
            case "ask":
                entry = Message(**at, content=fields[0], message_id=f"m{seq}", interrupt=len(fields) > 1)
            case "say":
                entry = Token(**at, content=fields[0])
            case "call":
                call_id, number = fields
                entry = FunctionCall(**at, call_id=call_id, name="f", args={"é": 1}, runs="client", round=number)
            case "result":
                entry = FunctionResult(**at, call_id=fields[0], name="f", result=fields[1])
            case "problem":
                entry = FunctionResult(**at, call_id=fields[0], name="f", error=fields[1])
            case "restart":
                entry = Restart(**at, attempt=1, keep_seq=fields[0])
            case "error":
                entry = Error(**at, error=ErrorBody("INTERNAL", "it failed", True))
            case _:
                entry = Done(
                    **at, finish_reason="cancelled" if kind == "cancelled" else "stop", usage=None, text_length=0
                )
        fold.apply(entry)
    return fold


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def asked(content: str | None, *call_ids: str) -> dict[str, Any]:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "f", "arguments": '{"é":1}'}} for call_id in call_ids
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def told(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


TABLE: list[tuple[str, list[tuple[Any, ...]], str, list[dict[str, Any]]]] = [
    ("a first question", [("ask", "a", "hi")], "a", [user("hi")]),
    (
        "questions and answers",
        [("ask", "a", "hi"), ("say", "a", "yo"), ("done", "a"), ("ask", "b", "2"), ("ask", "c", "3")],
        "b",
        [user("hi"), said("yo"), user("2")],
    ),
    (
        "an interrupting question goes ahead of the queued one",
        [("ask", "a", "hi"), ("ask", "b", "2"), ("say", "a", "y"), ("ask", "i", "now", True), ("cancelled", "a")],
        "i",
        [user("hi"), said("y"), user("now")],
    ),
    (
        "turns without an answer keep their question",
        [("ask", "a", "hi"), ("error", "a"), ("ask", "b", "2"), ("cancelled", "b"), ("ask", "c", "3")],
        "c",
        [user("hi"), user("2"), user("3")],
    ),
    (
        "rounds with their calls and results, in the order of the calls",
        [
            ("ask", "a", "hi"), ("say", "a", "let "), ("say", "a", "me"), ("call", "a", "k1", 1),
            ("call", "a", "k2", 1), ("result", "a", "k2", "plain"), ("problem", "a", "k1", "no"),
            ("call", "a", "k3", 2), ("result", "a", "k3", {"x": [1]}),
        ],
        "a",
        [
            user("hi"), asked("let me", "k1", "k2"), told("k1", '{"error":"no"}'), told("k2", "plain"),
            asked(None, "k3"), told("k3", '{"x":[1]}'),
        ],
    ),
    (
        "text after the last round",
        [("ask", "a", "hi"), ("call", "a", "k1", 1), ("result", "a", "k1", None), ("say", "a", "so"), ("done", "a"),
         ("ask", "b", "2")],
        "b",
        [user("hi"), asked(None, "k1"), told("k1", "null"), said("so"), user("2")],
    ),
    (
        "a call that was never answered has an error result",
        [("ask", "a", "hi"), ("call", "a", "k1", 1), ("cancelled", "a"), ("ask", "b", "2")],
        "b",
        [user("hi"), asked(None, "k1"), told("k1", f'{{"error":"{UNANSWERED}"}}'), user("2")],
    ),
    (
        "a generation that isn't over isn't fed back, nor one that was dropped",
        [("ask", "a", "hi"), ("say", "a", "half"), ("restart", "a", 1), ("say", "a", "again")],
        "a",
        [user("hi")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "turn", "messages"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_history(rows: list[tuple[Any, ...]], turn: str, messages: list[dict[str, Any]]) -> None:
    fold = log(*rows)
    made: list[dict[str, Any]] = []
    for earlier in fold.turns.values():
        made += turn_messages(earlier)
        if earlier.turn_id == turn:
            break
    assert made == messages
