"""The verdict of the shows: what is planted in a log is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.show.audit import Audited, Findings, judge
from benchmarks.show.redis_view import written_since

Frames = list[dict[str, Any]]


def entry(type_: str, seq: int, *, epoch: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": type_, "seq": seq, "epoch": epoch, "turn_id": "t", "conversation_id": "c", **fields}


def restarted() -> Frames:
    """A turn whose first generation was lost with its node."""
    return [
        entry("message", 1),
        entry("token", 2, content="lost "),
        entry("restart", 3, epoch=7, attempt=1, keep_seq=1),
        entry("token", 5, epoch=7, first_seq=4, content="whole text"),
        entry("done", 6, epoch=7, finish_reason="stop", text_length=10),
    ]


RECORDS = [{"text": "lost generation"}, {"text": "whole text"}]


def found_in(frames: Frames, records: list[dict[str, Any]] | None = None) -> Findings:
    ledger = Audited("c")
    for frame in frames:
        ledger.take(frame)
    found = Findings()
    judge(found, "c", ledger, RECORDS if records is None else records)
    return found


def changed(at: int, **fields: Any) -> Callable[[Frames], Frames]:
    return lambda frames: [*frames[:at], frames[at] | fields, *frames[at + 1 :]]


def without(at: int) -> Callable[[Frames], Frames]:
    return lambda frames: [*frames[:at], *frames[at + 1 :]]


def test_a_whole_turn_is_completed() -> None:
    found = found_in(restarted())
    assert (found.completed, found.restarted, found.generations) == (1, 1, 2)
    assert [found.not_ended, found.ended_twice, found.disordered, found.wrong_text] == [[]] * 4
    assert found.failed == {}


@pytest.mark.parametrize(
    ("plant", "where"),
    [
        (without(4), "not_ended"),
        (lambda frames: [*frames, entry("done", 7, epoch=7, finish_reason="stop", text_length=10)], "ended_twice"),
        (without(1), "disordered"),
        (lambda frames: [*frames[:2], frames[1], *frames[2:]], "disordered"),
        (changed(4, epoch=0), "disordered"),
        (lambda frames: [{"type": "snapshot", "seq": 0, "epoch": 0, "messages": []}, *frames], "disordered"),
        (changed(3, content="other text"), "wrong_text"),
        (changed(4, text_length=11), "wrong_text"),
        (changed(2, keep_seq=2), "wrong_text"),
    ],
)
def test_what_is_planted_is_found(plant: Callable[[Frames], Frames], where: str) -> None:
    assert len(getattr(found_in(plant(restarted())), where)) == 1


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "never asked"),
        ([{"text": "whole text"}, {"text": "a later one"}], "that of generation 1"),
        ([{"text": "whole"}], "no generation has that text"),
    ],
)
def test_the_text_has_to_be_that_of_the_last_generation(records: list[dict[str, Any]], says: str) -> None:
    [problem] = found_in(restarted(), records).wrong_text
    assert says in problem


def test_a_failed_turn_is_counted_by_its_code() -> None:
    lost = entry("error", 6, epoch=7, error={"code": "NODE_LOST", "message": "", "retryable": True})
    found = found_in([*restarted()[:4], lost])
    assert (found.failed, found.completed, found.not_ended) == ({"NODE_LOST": 1}, 0, [])


def test_an_end_that_the_log_lost_is_no_end() -> None:
    ledger = Audited("c")
    for frame in restarted():
        ledger.take(frame)
    question = {"role": "user", "turn_id": "t", "content": "q", "status": "running"}
    answer = {"role": "assistant", "turn_id": "t", "content": "whole", "status": "running"}
    ledger.take({"type": "snapshot", "seq": 4, "epoch": 9, "messages": [question, answer]})
    assert not ledger.level
    assert ledger.text("t") == "whole"
    ended = answer | {"status": "completed", "finish_reason": "stop"}
    ledger.take({"type": "snapshot", "seq": 6, "epoch": 9, "messages": [question, ended]})
    assert ledger.level
    assert ledger.ends["t"]["text_length"] == 5


@pytest.mark.parametrize(
    ("after", "counted"),
    [
        ([(0, 5), (7, 8), (7, 9)], {"by the owner": 1, "by another": 0, "rewritten": 0}),
        ([(0, 5), (7, 8), (0, 9)], {"by the owner": 0, "by another": 1, "rewritten": 0}),
        ([(0, 6), (7, 8)], {"by the owner": 0, "by another": 0, "rewritten": 1}),
    ],
)
def test_who_wrote_since(after: list[tuple[int, int]], counted: dict[str, int]) -> None:
    counts = written_since({"c": [(0, 5), (7, 8)]}, {"c": after})
    assert {name: counts[name] for name in counted} == counted
