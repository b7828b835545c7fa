"""The client's pure core: order, text, proof, snapshots, what is sent again, and the waits between attempts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.client.errors import OrderError, ProofError
from protocol.client.state import START, Backoff, Position, Reader, Sending, lost
from protocol.fold import Fold
from protocol.frames import (
    ChatMessage,
    Compacted,
    Context,
    Done,
    Entry,
    Error,
    ErrorBody,
    FoldedMessage,
    FunctionCall,
    FunctionResult,
    Message,
    Metadata,
    Restart,
    Snapshot,
    Token,
    Usage,
)
from protocol.merge import merge

AT = Metadata(timestamp=1)


def message(seq: int, turn: str = "t1", message_id: str = "m1", epoch: int = 0) -> Message:
    return Message(
        conversation_id="c", turn_id=turn, seq=seq, epoch=epoch, metadata=AT, content="?", message_id=message_id
    )


def token(seq: int, content: str, turn: str = "t1", first_seq: int | None = None, epoch: int = 0) -> Token:
    return Token(
        conversation_id="c", turn_id=turn, seq=seq, epoch=epoch, metadata=AT, content=content, first_seq=first_seq
    )


def restart(seq: int, keep_seq: int, turn: str = "t1", epoch: int = 0) -> Restart:
    return Restart(conversation_id="c", turn_id=turn, seq=seq, epoch=epoch, metadata=AT, attempt=2, keep_seq=keep_seq)


def done(seq: int, text_length: int, turn: str = "t1", epoch: int = 0) -> Done:
    return Done(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        epoch=epoch,
        metadata=AT,
        finish_reason="stop",
        usage=Usage(1, 2),
        text_length=text_length,
    )


def call(seq: int, call_id: str, round_: int, turn: str = "t1", epoch: int = 0) -> FunctionCall:
    return FunctionCall(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        epoch=epoch,
        metadata=AT,
        call_id=call_id,
        name="f",
        args={},
        runs="client",
        round=round_,
    )


def result(seq: int, call_id: str, turn: str = "t1", epoch: int = 0) -> FunctionResult:
    return FunctionResult(
        conversation_id="c", turn_id=turn, seq=seq, epoch=epoch, metadata=AT, call_id=call_id, name="f", result=1
    )


def snapshot_of(fold: Fold) -> Snapshot:
    return Snapshot(conversation_id="c", seq=fold.seq, epoch=fold.epoch, messages=fold.messages(), turn=fold.running())


# ---------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("cursor", "entry", "named"),
    [
        (Position(5, 0), token(7, "x"), ("7", "5")),
        (Position(5, 0), token(5, "x"), ("5", "5")),
        (Position(5, 0), token(9, "x", first_seq=7), ("7", "5")),
        (Position(5, 0), token(9, "x", first_seq=5), ("5", "5")),
        (Position(5, 0), token(4, "x", first_seq=6), ("6", "5")),
        (Position(5, 9), token(6, "x", epoch=8), ("8", "9")),
        (Position(5, 9), token(6, "x"), ("0", "9")),
        (START, message(2), ("2", "0")),
        (None, message(1), ("1",)),
    ],
)
def test_what_is_out_of_order_is_refused_and_named(
    cursor: Position | None, entry: Entry, named: tuple[str, ...]
) -> None:
    reader = Reader("c", cursor)
    with pytest.raises(OrderError) as problem:
        reader.accept(entry)
    for number in named:
        assert number in str(problem.value)
    assert reader.cursor == cursor


@pytest.mark.parametrize(
    ("cursor", "entry", "after"),
    [
        (START, message(1), Position(1, 0)),
        (START, message(1, epoch=1_700_000_000), Position(1, 1_700_000_000)),
        (Position(5, 0), token(6, "x"), Position(6, 0)),
        (Position(5, 0), token(9, "x", first_seq=6), Position(9, 0)),
        (Position(5, 3), token(6, "x", epoch=4), Position(6, 4)),
    ],
)
def test_what_is_in_order_moves_the_cursor(cursor: Position, entry: Entry, after: Position) -> None:
    reader = Reader("c", cursor)
    reader.accept(entry)
    assert reader.cursor == after
    resume = reader.resume()
    assert (resume.after, resume.epoch) == after


# ---------------------------------------------------------------------------------------------------- text


def test_a_turn_counts_code_points_and_forgets_itself_at_its_end() -> None:
    reader = Reader("c", START)
    for entry in (message(1), token(2, "Grüße "), token(4, "🙂👩‍🔬", first_seq=3)):
        state = reader.accept(entry)
    assert state.text == "Grüße 🙂👩‍🔬"
    state = reader.accept(done(5, len("Grüße 🙂👩‍🔬")))
    assert (state.finish_reason, state.usage, state.ended, reader.turns) == ("stop", Usage(1, 2), True, {})


def test_a_wrong_length_is_refused() -> None:
    reader = Reader("c", START)
    reader.accept(message(1))
    reader.accept(token(2, "🙂"))
    with pytest.raises(ProofError, match=r"t1 has 1 code points .* counts 2"):
        reader.accept(done(3, 2))


def test_a_turn_that_was_joined_late_proves_nothing_and_keeps_no_text() -> None:
    reader = Reader("c", Position(7, 0))
    state = reader.accept(token(8, "the rest"))
    assert (state.whole, state.text) == (False, "")
    assert reader.accept(done(9, 100)).finish_reason == "stop"


@pytest.mark.parametrize(
    ("before", "keep_seq", "stands"),
    [
        ([token(2, "a"), token(3, "b")], 1, ""),
        ([token(3, "ab", first_seq=2)], 1, ""),
        ([token(2, "a"), call(3, "k", 1), result(4, "k"), token(5, "b")], 4, "a"),
        ([token(2, "a"), call(3, "k", 1), result(4, "k"), token(6, "bc", first_seq=5)], 4, "a"),
        ([token(2, "a"), call(3, "k", 1)], 3, "a"),
        ([token(2, "a")], 2, "a"),
        ([], 1, ""),
    ],
)
def test_a_restart_drops_the_text_after_what_is_kept(before: list[Entry], keep_seq: int, stands: str) -> None:
    reader = Reader("c", START)
    for entry in [message(1), *before]:
        reader.accept(entry)
    seq = before[-1].seq + 1 if before else 2
    state = reader.accept(restart(seq, keep_seq, epoch=1))
    assert state.text == stands
    reader.accept(token(seq + 1, "!", epoch=1))
    assert reader.accept(done(seq + 2, len(stands) + 1, epoch=1)).text == stands + "!"


def test_an_error_ends_a_turn_without_a_proof() -> None:
    reader = Reader("c", START)
    reader.accept(message(1))
    reader.accept(token(2, "half"))
    body = ErrorBody("NODE_LOST", "The node is gone.", True)
    state = reader.accept(Error(conversation_id="c", turn_id="t1", seq=3, metadata=AT, error=body))
    assert (state.error, state.text, reader.turns) == (body, "half", {})


# ---------------------------------------------------------------------------------------------------- snapshots


def folded(*entries: Entry) -> Snapshot:
    fold = Fold()
    fold.apply_all(entries)
    return snapshot_of(fold)


def test_a_snapshot_replaces_cursor_and_text_and_keeps_the_same_state_alive() -> None:
    reader = Reader("c", START)
    reader.accept(message(1))
    held = reader.accept(token(2, "lost words"))
    states = reader.replace(folded(message(1), token(2, "other", epoch=9)))
    assert states["t1"] is held
    assert (held.text, reader.cursor) == ("other", Position(2, 9))
    reader.accept(token(3, " text", epoch=9))
    assert reader.accept(done(4, 10, epoch=9)).text == "other text"


def test_a_snapshot_tells_the_end_of_a_turn() -> None:
    reader = Reader("c", START)
    reader.accept(message(1))
    body = ErrorBody("STREAM_ERROR", "It broke.", True)
    states = reader.replace(
        folded(
            message(1),
            token(2, "whole"),
            done(3, 5),
            message(4, "t2", "m2"),
            Error(conversation_id="c", turn_id="t2", seq=5, metadata=AT, error=body),
            message(6, "t3", "m3"),
            message(7, "t4", "m4"),
        )
    )
    assert (states["t1"].text, states["t1"].finish_reason, states["t1"].usage) == ("whole", "stop", Usage(1, 2))
    assert (states["t2"].error, states["t2"].finish_reason) == (body, None)
    assert set(reader.turns) == {"t3", "t4"}
    assert [states[turn].whole for turn in ("t3", "t4")] == [True, True]


def test_a_restart_after_a_snapshot_keeps_the_text_of_finished_rounds() -> None:
    reader = Reader("c")
    reader.replace(folded(message(1), token(2, "kept"), call(3, "k", 1), result(4, "k"), token(5, " lost")))
    assert reader.turns["t1"].text == "kept lost"
    assert reader.accept(restart(6, 4, epoch=1)).text == "kept"


# ---------------------------------------------------------------------------------------------------- sending again


def test_only_what_the_snapshot_misses_of_the_acknowledged_is_lost() -> None:
    def sending(message_id: str, turn_id: str | None) -> Sending:
        return Sending(ChatMessage(message="?", conversation_id="c", message_id=message_id), turn_id)

    known, missing, unsent = sending("m1", "t1"), sending("m2", "t2"), sending("m3", None)
    line = FoldedMessage(role="user", content="?", turn_id="t1", status="running", timestamp=1, message_id="m1")
    snapshot = Snapshot(conversation_id="c", seq=1, epoch=0, messages=[line], turn=None)
    assert lost([known, missing, unsent], snapshot) == [missing]


# ---------------------------------------------------------------------------------------------------- waiting


def test_waits_grow_to_the_cap_with_full_jitter() -> None:
    backoff = Backoff(lambda: 1.0, base_s=0.25, cap_s=5)
    assert [backoff.delay_s(0) for _ in range(7)] == [0.25, 0.5, 1, 2, 4, 5, 5]
    assert Backoff(lambda: 0.0).delay_s(0) == 0
    assert Backoff(lambda: 0.5, base_s=1).delay_s(0) == 0.5
    never_overflows = Backoff(lambda: 1.0)
    never_overflows.attempt = 5000
    assert never_overflows.delay_s(0) == 30


@pytest.mark.parametrize(
    ("lasted_s", "progress", "next_s"), [(1, False, 1.0), (1, True, 0.25), (30, False, 0.25), (29.9, False, 1.0)]
)
def test_the_count_starts_again_after_a_connection_that_was_of_use(
    lasted_s: float, progress: bool, next_s: float
) -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.delay_s(0)
    backoff.delay_s(0)
    backoff.connected(100)
    if progress:
        backoff.progress()
    assert backoff.delay_s(100 + lasted_s) == next_s


def test_the_gateway_may_say_when_to_come_back() -> None:
    backoff = Backoff(lambda: 1.0)
    assert backoff.delay_s(0, asked_ms=1500) == 1.5
    assert backoff.delay_s(0) == 0.5
    assert backoff.delay_s(0, asked_ms=-1) == 0
    assert Backoff(lambda: 1.0).delay_s(0, crowded=True) == 4


# ---------------------------------------------------------------------------------------------------- any history


@dataclass
class World:
    """Writes a log the way a gateway does, and knows the text of each turn independently of `Reader`."""

    log: list[Entry] = field(default_factory=list)
    standing: dict[str, list[str]] = field(default_factory=dict)
    epoch: int = 0

    @property
    def seq(self) -> int:
        return len(self.log) + 1

    def run_turn(self, number: int, steps: list[tuple[str, str]]) -> None:
        turn = f"t{number}"
        finished: list[str] = []
        fresh: list[str] = []
        keep_seq = self.seq
        self.log.append(message(self.seq, turn, f"m{number}", self.epoch))
        for round_, (step, text) in enumerate(steps):
            match step:
                case "say":
                    for letter in text:
                        self.log.append(token(self.seq, letter, turn, epoch=self.epoch))
                    fresh.append(text)
                case "call":
                    self.log.append(call(self.seq, f"k{number}-{round_}", round_ + 1, turn, self.epoch))
                    self.log.append(result(self.seq, f"k{number}-{round_}", turn, self.epoch))
                    keep_seq = self.seq - 1
                    finished, fresh = finished + fresh, []
                case "crash":
                    self.epoch += 1
                    self.log.append(restart(self.seq, keep_seq, turn, self.epoch))
                    fresh = []
                case _:
                    compacted = Compacted(4, 2, 40, 20)
                    self.log.append(
                        Context(
                            conversation_id="c",
                            turn_id=turn,
                            seq=self.seq,
                            epoch=self.epoch,
                            metadata=AT,
                            compacted=compacted,
                        )
                    )
        self.standing[turn] = finished + fresh
        self.log.append(done(self.seq, len("".join(finished + fresh)), turn, self.epoch))

    def fold(self, upto: int) -> Fold:
        fold = Fold()
        fold.apply_all(self.log[:upto])
        return fold


steps = st.lists(
    st.tuples(
        st.sampled_from(["say", "say", "say", "call", "crash", "context"]), st.text("aé🙂", min_size=1, max_size=8)
    ),
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(turns=st.lists(steps, min_size=1, max_size=3), data=st.data())
def test_text_is_the_models_whatever_is_cut_merged_restarted_or_replaced(
    turns: list[list[tuple[str, str]]], data: st.DataObject
) -> None:
    world = World()
    for number, one in enumerate(turns):
        world.run_turn(number, one)
    reader = Reader("c", START)
    texts: dict[str, str] = {}
    while reader.cursor is not None and reader.cursor.seq < len(world.log):
        at = reader.cursor.seq
        if data.draw(st.integers(0, 9), label="snapshot?") == 9:
            upto = len(world.log) - data.draw(st.integers(0, len(world.log) - at), label="not in it")
            states = reader.replace(snapshot_of(world.fold(upto)))
            texts |= {turn: state.text for turn, state in states.items() if state.ended}
            continue
        # A connection is a resume at the cursor and then frames, merged at will, until it is cut.
        resume = reader.resume()
        assert resume.after == at
        upto = len(world.log) - data.draw(st.integers(0, len(world.log) - at - 1), label="cut off")
        entries = world.log[at:upto]
        frames = merge(entries, 1 << 20) if data.draw(st.booleans(), label="merged") else entries
        for frame in frames:
            state = reader.accept(frame)
            if state.ended:
                texts[state.turn_id] = state.text
    assert texts == {turn: "".join(parts) for turn, parts in world.standing.items()}
    assert reader.turns == {}


@settings(max_examples=100, deadline=None)
@given(turns=st.lists(steps, min_size=1, max_size=2), data=st.data())
def test_a_missing_or_repeated_frame_never_passes(turns: list[list[tuple[str, str]]], data: st.DataObject) -> None:
    world = World()
    for number, one in enumerate(turns):
        world.run_turn(number, one)
    entries = list(world.log)
    at = data.draw(st.integers(0, len(entries) - 2))
    if data.draw(st.booleans(), label="repeat"):
        entries.insert(at, entries[at])
    else:
        del entries[at]

    def read() -> None:
        reader = Reader("c", START)
        for entry in entries:
            reader.accept(entry)

    with pytest.raises(OrderError):
        read()
