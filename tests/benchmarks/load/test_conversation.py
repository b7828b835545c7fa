"""The load test's own reader: what it counts as wrong, and what it doesn't."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.load.asked import Asked
from benchmarks.load.conversation import Conversation, Outcome
from benchmarks.load.tally import DUPLICATE, EARLY, EPOCH, GAP, ORDER, STRAY, TEXT, TWICE, Tally
from protocol.frames import (
    Done,
    Entry,
    Error,
    ErrorBody,
    FoldedMessage,
    FunctionCall,
    Message,
    Metadata,
    Restart,
    Snapshot,
    Subscribed,
    Token,
    Usage,
)

C = "c1"


class Nobody:
    """A carrier that carries nothing."""

    number, online = 0, True

    def ask(self, conversation: Conversation) -> None: ...
    def leave(self, conversation: Conversation) -> None: ...
    def adopt(self, conversation: Conversation) -> None: ...


@pytest.fixture
def talk() -> Conversation:
    """One in which something was asked at second 100."""
    made = Conversation(C, Nobody(), Tally())
    made.asked = Asked("m1", "hi", 100.0)
    return made


def at(seq: int, turn_id: str = "t1", epoch: int = 0) -> dict[str, Any]:
    return {"conversation_id": C, "turn_id": turn_id, "seq": seq, "epoch": epoch, "metadata": Metadata(1)}


def message(seq: int = 1, message_id: str = "m1", **fields: Any) -> Message:
    return Message(**at(seq), content="hi", message_id=message_id, **fields)


def token(seq: int, content: str = "ab", first_seq: int | None = None, **place: Any) -> Token:
    return Token(**at(seq, **place), content=content, first_seq=first_seq)


def done(seq: int, length: int) -> Done:
    return Done(**at(seq), finish_reason="stop", usage=Usage(1, 2), text_length=length)


def call(seq: int, runs: Any = "client") -> FunctionCall:
    return FunctionCall(**at(seq), call_id="k", name="f", args={}, runs=runs, round=1)


def take(talk: Conversation, *frames: Entry, now: float = 101.0) -> Outcome | None:
    outcome = None
    for frame in frames:
        if isinstance(frame, Token):
            talk.token(frame, now)
        else:
            outcome = talk.entry(frame, now)
    return outcome


def wrong(talk: Conversation) -> dict[str, int]:
    return {kind: number for kind, number in talk.tally.counts.violations.items() if number}


def test_a_whole_turn(talk: Conversation) -> None:
    take(talk, message(), now=100.25)
    take(talk, token(2), now=100.5)
    take(talk, token(4, "cdef", first_seq=3), now=100.75)
    assert take(talk, done(5, 6), now=101.0) is Outcome.FREE
    counts = talk.tally.counts
    assert (counts.frames, counts.tokens, counts.token_frames, counts.characters) == (4, 3, 2, 6)
    assert (counts.acknowledged, counts.ends, counts.model_tokens) == (1, {"stop": 1}, 2)
    assert wrong(talk) == {}
    assert talk.asked is None
    assert sorted(talk.tally.watches.flush()) == ["ack", "between_tokens", "first_token", "turn"]


def test_slow_readers_are_checked_but_not_timed() -> None:
    slow = Conversation(C, Nobody(), Tally(), timed=False)
    slow.asked = Asked("m1", "hi", 100.0)
    take(slow, message(), token(2), token(3), done(4, 4))
    assert slow.tally.counts.ends == {"stop": 1}
    assert slow.tally.watches.flush() == {}


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        ([message(), token(2), token(5)], {GAP: 2}),
        ([message(), token(5, "abcd", first_seq=3)], {GAP: 1}),
        ([message(), token(2), token(2)], {DUPLICATE: 1}),
        ([message(), token(2), token(3, first_seq=2)], {DUPLICATE: 1}),
        ([message(), message()], {DUPLICATE: 1}),
        ([message(), token(3), token(2), token(4)], {ORDER: 1}),
        ([message(), token(3), token(2), token(2)], {ORDER: 1, DUPLICATE: 1}),
        ([message(), token(2, epoch=7), token(3, epoch=6)], {EPOCH: 1}),
        ([message(), token(2), done(3, 3)], {TEXT: 1}),
        ([message(), token(2, turn_id="t9")], {STRAY: 1}),
        ([message(), token(2), done(3, 2), token(4)], {STRAY: 1}),
        ([message(message_id="m9")], {STRAY: 1}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_what_is_wrong(talk: Conversation, frames: list[Entry], found: dict[str, int]) -> None:
    take(talk, *frames)
    assert wrong(talk) == found
    assert len(talk.tally.counts.examples) >= 1
    assert all(C in words for words in talk.tally.counts.examples)


def test_a_message_that_is_in_the_log_twice(talk: Conversation) -> None:
    take(talk, message())
    again = Message(**at(2, "t2"), content="hi", message_id="m1")
    take(talk, again)
    assert wrong(talk) == {TWICE: 1}


def test_a_duplicate_answer_stands_outside_of_the_order(talk: Conversation) -> None:
    take(talk, message(), token(2), message(duplicate=True), token(3), done(4, 4))
    assert wrong(talk) == {}
    assert talk.tally.counts.acknowledged == 1


@pytest.mark.parametrize(
    ("before", "kept"), [([token(2)], 0), ([token(2), call(3)], 2), ([token(2), call(3, "gateway")], 2)]
)
def test_a_restart_drops_the_text_of_the_unfinished_round(talk: Conversation, before: list[Entry], kept: int) -> None:
    take(talk, message(), *before)
    seq = talk.seq
    take(talk, token(seq + 1, "gone"), Restart(**at(seq + 2, epoch=9), attempt=1, keep_seq=1))
    take(talk, token(seq + 3, "xyz", epoch=9))
    ended = Done(**at(seq + 4, epoch=9), finish_reason="stop", usage=None, text_length=kept + 3)
    assert take(talk, ended) is Outcome.FREE
    assert wrong(talk) == {}
    assert talk.tally.counts.restarts == 1


def test_a_call_for_the_client_wants_an_answer(talk: Conversation) -> None:
    assert take(talk, message(), call(2, "client")) is Outcome.CALL
    assert take(talk, call(3, "approval")) is Outcome.CALL
    assert take(talk, call(4, "gateway")) is None
    assert talk.tally.counts.calls == 2


def test_a_failed_turn(talk: Conversation) -> None:
    body = ErrorBody("STREAM_ERROR", "broke", retryable=True)
    take(talk, message())
    assert take(talk, Error(error=body, **at(2))) is Outcome.REFUSED
    assert (talk.tally.counts.failed, talk.tally.counts.errors) == (1, {"STREAM_ERROR": 1})
    assert wrong(talk) == {}


# ---------------------------------------------------------------- cuts


def subscribed(after: int, head: int) -> Subscribed:
    return Subscribed(conversation_id=C, after=after, head=head, epoch=0)


def test_after_a_cut_it_is_level_when_it_has_what_was_the_head(talk: Conversation) -> None:
    take(talk, message(), token(2), now=100.0)
    talk.cut(101.0)
    talk.opening = True
    talk.subscribed(subscribed(2, 4), 102.0)
    assert "resume" not in talk.tally.watches.flush()
    take(talk, token(4, "abcd", first_seq=3), now=103.0)
    told = talk.tally.watches.flush()
    assert "resume" in told
    assert "between_tokens" not in told, "the cut isn't the gateway's delay"
    assert wrong(talk) == {}


def test_an_entry_before_the_answer_to_subscribe(talk: Conversation) -> None:
    take(talk, message())
    talk.cut(101.0)
    talk.opening = True
    take(talk, token(2))
    talk.subscribed(subscribed(1, 2), 102.0)
    take(talk, token(2))
    assert wrong(talk) == {EARLY: 1}


def test_a_refused_subscription_begins_anew_with_the_next_message(talk: Conversation) -> None:
    take(talk, message(), token(2), done(3, 2))
    talk.cut(101.0)
    talk.opening = True
    talk.not_subscribed()
    talk.asked = Asked("m2", "hi", 101.0)
    take(talk, Message(**at(9, "t2"), content="hi", message_id="m2"), token(10, "ab", turn_id="t2"))
    assert take(talk, Done(**at(11, "t2"), finish_reason="stop", usage=None, text_length=2)) is Outcome.FREE
    assert wrong(talk) == {}


def test_what_never_ends_is_named(talk: Conversation) -> None:
    take(talk, message(), token(2))
    talk.unended()
    assert talk.tally.counts.examples == ["unended: conversation c1: message m1 (turn t1), the last entry was 2"]
    assert (talk.tally.counts.unended, talk.asked) == (1, None)


def test_another_place_than_asked_for(talk: Conversation) -> None:
    take(talk, message(), token(2))
    talk.subscribed(subscribed(1, 2), 102.0)
    assert wrong(talk) == {ORDER: 1}


# ---------------------------------------------------------------- snapshots


def folded(status: Any = "running", content: str = "abc", **fields: Any) -> list[FoldedMessage]:
    question = FoldedMessage(
        role="user", content="hi", turn_id="t1", status=status, timestamp=1, message_id=fields.pop("message_id", "m1")
    )
    answer = FoldedMessage(role="assistant", content=content, turn_id="t1", status=status, timestamp=1, **fields)
    return [question, answer]


def snapshot(seq: int, messages: list[FoldedMessage]) -> Snapshot:
    return Snapshot(conversation_id=C, seq=seq, epoch=7, messages=messages, turn=None)


def test_a_snapshot_replaces_everything(talk: Conversation) -> None:
    take(talk, message(), token(2), token(3), token(4))
    assert talk.snapshot(snapshot(3, folded()), 101.0) is None
    take(talk, token(4, "de", epoch=7))
    assert take(talk, Done(**at(5, epoch=7), finish_reason="stop", usage=None, text_length=5)) is Outcome.FREE
    assert wrong(talk) == {}
    assert talk.tally.counts.snapshots == 1


def test_a_snapshot_acknowledges(talk: Conversation) -> None:
    assert talk.snapshot(snapshot(3, folded()), 101.0) is None
    assert talk.asked is not None
    assert (talk.asked.acknowledged, talk.asked.turn_id) == (True, "t1")


@pytest.mark.parametrize(
    ("messages", "outcome"),
    [
        (folded("completed", finish_reason="stop"), Outcome.FREE),
        (folded("cancelled", finish_reason="cancelled"), Outcome.FREE),
        (folded("failed", error=ErrorBody("STREAM_ERROR", "broke", retryable=True)), Outcome.REFUSED),
        (folded("completed", message_id="m0"), Outcome.LOST),
        ([], Outcome.LOST),
    ],
)
def test_a_snapshot_can_end_or_lose_a_turn(talk: Conversation, messages: list[FoldedMessage], outcome: Outcome) -> None:
    take(talk, message())
    assert talk.snapshot(snapshot(9, messages), 101.0) is outcome
    assert talk.tally.counts.lost == (outcome is Outcome.LOST)
    assert (talk.asked is None) == (outcome is not Outcome.LOST)


def test_a_message_on_its_way_isnt_lost(talk: Conversation) -> None:
    assert talk.snapshot(snapshot(9, []), 101.0) is None
    assert talk.tally.counts.lost == 0


def test_a_lost_message_is_acknowledged_again(talk: Conversation) -> None:
    take(talk, message(), token(2))
    talk.snapshot(snapshot(0, []), 101.0)
    take(talk, Message(**at(1, "t2", epoch=8), content="hi", message_id="m1"), token(2, "xy", turn_id="t2", epoch=8))
    ended = Done(**at(3, "t2", epoch=8), finish_reason="stop", usage=None, text_length=2)
    assert take(talk, ended) is Outcome.FREE
    assert wrong(talk) == {}
