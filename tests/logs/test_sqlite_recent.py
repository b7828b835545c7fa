"""What stands in the SQLite log's table `recent`, and what a commit of tokens costs there, counted and never timed."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.logs import segment, sqlite_file
from gateway.logs.log import Append, Key, LogUnavailable, Position
from gateway.logs.recent import Recent
from gateway.logs.sqlite_store import RECENT_BYTES, Store
from protocol.frames import Done, Entry, Message, Metadata, Token

NOW = 1_764_000_000_000
NewStore = Callable[[], Store]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "log.db", "auto", Recent())
    yield store
    store.close()


def key(number: int) -> Key:
    return Key("tenant/user", f"conversation-{number}")


def message(number: int, seq: int, epoch: int = 0) -> Entry:
    return Message(
        conversation_id=f"conversation-{number}",
        turn_id=f"t_{seq:016d}",
        seq=seq,
        epoch=epoch,
        metadata=Metadata(NOW + seq),
        content="Why?",
        message_id=f"m{seq}",
    )


def token(number: int, seq: int, epoch: int = 0, text: str = " word") -> Entry:
    metadata = Metadata(NOW + 18 * seq)
    return Token(
        conversation_id=f"conversation-{number}",
        turn_id=f"t_{number:016d}",
        seq=seq,
        epoch=epoch,
        metadata=metadata,
        content=text,
    )


def done(number: int, seq: int, turn_seq: int, epoch: int = 0) -> Entry:
    return Done(
        conversation_id=f"conversation-{number}",
        turn_id=f"t_{turn_seq:016d}",
        seq=seq,
        epoch=epoch,
        metadata=Metadata(NOW + seq),
        finish_reason="stop",
        usage=None,
        text_length=0,
    )


def append(number: int, *entries: Entry) -> Append:
    after = entries[0].seq - 1
    return Append(key(number), Position(after, entries[0].epoch if after else 0), entries)


def begin(store: Store, count: int) -> None:
    for start in range(0, count, 100):
        assert all(store.commit([append(number, message(number, 1)) for number in range(start, start + 100)]))


def stored(store: Store, number: int) -> list[Entry]:
    """All entries of a conversation, from both places."""
    name = f"conversation-{number}"
    rows = store.db.execute(
        "SELECT first_seq, segments.epoch, entries FROM segments JOIN conversations ON id = conversation "
        "WHERE conversation_id = ? ORDER BY last_seq",
        (name,),
    )
    moved = [entry for first_seq, epoch, some in rows for entry in segment.decode(some, name, first_seq, epoch)]
    return moved + store._recent.after(key(number), 0, 1 << 30)


def crashed(store: Store, folder: Path) -> Store:
    """On a copy of the files as they are now, which is what `kill -9` at this moment would leave."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in store._path.parent.glob("log.db*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, folder / path.name)
    return Store(folder / "log.db", "auto", Recent())


# ---------------------------------------------------------------- what a commit costs


def test_a_commit_of_tokens_is_one_statement_that_writes_one_page(store: Store, tmp_path: Path) -> None:
    """Of 100 conversations. Once `recent` is full a commit now and then moves some of them, all of which is counted."""
    begin(store, 100)
    statements: list[str] = []
    pages: list[int] = []
    store.db.execute("PRAGMA wal_autocheckpoint = 0")
    store.db.set_trace_callback(statements.append)
    write_ahead_log = tmp_path / "log.db-wal"
    counts: list[int] = []
    for seq in range(2, 402):
        batch = [append(number, token(number, seq)) for number in range(100)]
        before, statements[:] = write_ahead_log.stat().st_size, []
        assert all(store.commit(batch))
        counts.append(len(statements))
        pages.append((write_ahead_log.stat().st_size - before) // 4096)
    store.db.set_trace_callback(None)
    counts, pages = counts[200:], pages[200:]
    assert sorted(counts)[150] == 1, "three of four commits"
    assert sorted(pages)[150] == 1
    assert sum(counts) / len(counts) < 2.5
    assert sum(pages) / len(pages) < 4
    assert max(counts) < 60, "no commit moves many"


def test_many_conversations_cost_little_more_than_few_and_no_commit_moves_many(store: Store) -> None:
    """10,000 conversations that take turns. A fixed bound would move half an append's worth a time."""
    begin(store, 10_000)
    segments: list[int] = []
    seqs = [1] * 10_000
    for commit in range(800):
        numbers = [(commit * 100 + at) % 10_000 for at in range(100)]
        batch = []
        for number in numbers:
            seqs[number] += 1
            batch.append(append(number, token(number, seqs[number])))
        before = store.db.total_changes
        assert all(store.commit(batch))
        segments.append(store.db.total_changes - before - 1)
    assert sum(segments[300:]) / 500 < 100 / 3, "a conversation has three appends or more when it moves"
    assert max(segments) < 100
    assert store._recent.bytes < 12 * RECENT_BYTES


@pytest.mark.parametrize("open_ended", [False, True])
def test_what_is_short_lived_does_not_make_it_grow(
    store: Store, open_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is gained by waiting for a conversation that is over. One append of each is the worst there is."""
    monkeypatch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", 2000)
    most = 0
    for number in range(2000):
        entries = [message(number, 1)] if open_ended else [message(number, 1), done(number, 2, 1)]
        assert store.commit([append(number, *entries)]) == [True]
        most = max(most, store._recent.bytes)
    assert most < (2000 * 34 if open_ended else 2000 * 1.2)
    [rows] = store.db.execute("SELECT count(*) FROM recent").fetchone()
    assert rows <= most // 50, "rows are used again"


def test_large_entries_move_sooner(store: Store) -> None:
    begin(store, 100)
    most = 0
    for seq in range(2, 22):
        for number in range(100):
            assert store.commit([append(number, token(number, seq, text="x" * 20_000))]) == [True]
            most = max(most, store._recent.bytes)
    assert most < 8 * RECENT_BYTES


# ---------------------------------------------------------------- what a crash leaves


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32), recent_bytes=st.sampled_from([1, 300, 3000, 100_000]))
def test_whatever_was_moved_a_crash_leaves_every_entry_once(
    seed: int, recent_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("log")
    store = Store(folder / "log.db", "auto", Recent())
    model: dict[int, list[Entry]] = {number: [] for number in range(12)}
    epochs = dict.fromkeys(model, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", recent_bytes)
        patch.setattr("gateway.logs.sqlite_store.RECENT_GROWTH", chance.choice([0.1, 4]))
        patch.setattr("gateway.logs.sqlite_store.MOVE_AT_ONCE", chance.choice([1, 3]))
        patch.setattr("gateway.logs.sqlite_store.KEPT_AT_ONCE", 2)
        for step in range(40):
            if chance.random() < 0.08:
                number = chance.choice(list(model))
                store.erase(key(number))
                if model[number]:
                    epochs[number] += 1  # never used twice
                model[number] = []
            else:
                batch = []
                for number in chance.sample(list(model), chance.randint(1, 6)):
                    entries = model[number]
                    new = [
                        token(number, len(entries) + 1 + at, epochs[number], chance.choice([" a", "x" * 40, "\ud800"]))
                        if entries or at
                        else message(number, 1, epochs[number])
                        for at in range(chance.choice([1, 1, 1, 3]))
                    ]
                    batch.append(append(number, *new))
                    entries += new
                assert all(store.commit(batch))
            if step % 5 == 4:
                after_crash = crashed(store, folder / "copy")
                for number, entries in model.items():
                    assert stored(after_crash, number) == entries
                    assert after_crash.head(key(number)).seq == len(entries)
                after_crash.close()
        for number, entries in model.items():
            assert stored(store, number) == entries
    store.close()


def test_a_transaction_that_can_not_even_be_rolled_back_takes_no_later_commit_with_it(
    store: Store, tmp_path: Path
) -> None:
    begin(store, 100)

    def neither(action: int, operation: str | None, *_: object) -> int:
        ends = action == sqlite3.SQLITE_TRANSACTION and operation in ("COMMIT", "ROLLBACK")
        return sqlite3.SQLITE_DENY if ends else sqlite3.SQLITE_OK

    store.db.set_authorizer(neither)
    with pytest.raises(LogUnavailable):
        store.commit([append(100, message(100, 1))])
    store.db.set_authorizer(None)
    assert store.commit([append(7, token(7, 2))]) == [True]
    after_crash = crashed(store, tmp_path / "copy")
    assert (stored(after_crash, 7), stored(after_crash, 100)) == ([message(7, 1), token(7, 2)], [])
    after_crash.close()


def test_an_erasure_keeps_the_others_that_have_not_moved(store: Store, tmp_path: Path) -> None:
    begin(store, 200)
    assert all(store.commit([append(number, token(number, 2)) for number in range(200)]))
    store.erase(key(7))
    assert all(store.commit([append(number, token(number, 3)) for number in range(200) if number != 7]))
    after_crash = crashed(store, tmp_path / "copy")
    for number in range(200):
        expected = [] if number == 7 else [message(number, 1), token(number, 2), token(number, 3)]
        assert stored(after_crash, number) == stored(store, number) == expected
    after_crash.close()


def test_what_was_written_to_lately_is_not_expired(store: Store) -> None:
    """The row of a conversation doesn't tell of tokens that haven't moved."""
    begin(store, 100)
    ended = [append(number, token(number, 2), done(number, 3, 1)) for number in range(100)]
    assert all(store.commit(ended))
    assert store.commit([append(5, token(5, 4))]) == [True]
    erased = store.expire(NOW + 18 * 4)
    assert set(erased) == {key(number) for number in range(100) if number != 5}
    assert store.expire(NOW + 18 * 4) == []
    assert stored(store, 5)[-1] == token(5, 4)


# ---------------------------------------------------------------- older files


def test_a_file_of_schema_1_is_read_and_goes_on_as_schema_2(tmp_path: Path) -> None:
    """As the first version left it when it was killed: every row of `recent` lists segments, and none has moved."""
    path = tmp_path / "log.db"
    store = Store(path, "auto", Recent())
    begin(store, 100)
    store.close()
    db = sqlite3.connect(path)
    row = db.execute("SELECT id FROM conversations WHERE conversation_id = 'conversation-3'").fetchone()[0]
    with db:
        db.execute("DELETE FROM recent")
        for slot, entries in ((1, [message(3, 1)]), (2, [token(3, 2)]), (3, [token(3, 3), token(3, 4)])):
            appends = msgspec.msgpack.encode([(row, entries[0].seq, 0, segment.encode(entries))])
            db.execute("INSERT INTO recent VALUES (?, ?)", (slot, appends))
        db.execute("PRAGMA user_version = 1")
    db.close()
    store = Store(path, "auto", Recent())
    assert sqlite_file.pragma(store.db, "user_version") == 2
    assert stored(store, 3) == [message(3, 1), token(3, 2), token(3, 3), token(3, 4)]
    assert store.commit([append(3, token(3, 5))]) == [True]
    store.close()
    store = Store(path, "auto", Recent())
    assert [entry.seq for entry in stored(store, 3)] == [1, 2, 3, 4, 5]
    store.close()
