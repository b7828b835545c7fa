"""What only the SQLite log does: restarts, crashes, full disks, durability, and one gateway a file."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.logs import sqlite_file
from gateway.logs.log import Append, Head, Key, LogUnavailable, OpenTurn, Position
from gateway.logs.opening import open_log
from gateway.logs.sqlite import SqliteLog
from gateway.logs.sqlite_store import Store
from protocol.frames import Done, Entry, Message, Metadata, Token

A = Key("alice", "c")
B = Key("bob", "c")
START = Position(0, 0)
NOW = 1_764_000_000_000
ALL_BYTES = 1 << 30


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    yield log
    await log.close()


def token(seq: int, text: str = "word", epoch: int = 0) -> Entry:
    return Token(conversation_id="c", turn_id="t", seq=seq, epoch=epoch, metadata=Metadata(NOW), content=text)


def message(seq: int, epoch: int = 0, content: str = "question") -> Entry:
    metadata = Metadata(NOW)
    return Message(
        conversation_id="c", turn_id="t", seq=seq, epoch=epoch, metadata=metadata, content=content, message_id="m"
    )


def done(seq: int, epoch: int = 0) -> Entry:
    metadata = Metadata(NOW)
    return Done(
        conversation_id="c",
        turn_id="t",
        seq=seq,
        epoch=epoch,
        metadata=metadata,
        finish_reason="stop",
        usage=None,
        text_length=0,
    )


async def write(log: SqliteLog, after: Position, *entries: Entry, key: Key = A) -> bool:
    [verdict] = await log.commit([Append(key, after, entries)])
    return verdict


def store_of(log: SqliteLog) -> Store:
    assert log._store is not None
    return log._store


async def move_all(log: SqliteLog) -> None:
    """To segments."""
    store = store_of(log)

    def move() -> None:
        moving = store._recent.oldest(1 << 30)
        with store._transaction("NORMAL"):
            store._move(moving)
        store._recent.drop(moving)

    await log._on_writer(move)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def modes_in(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


def contents_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def as_after_a_crash(source: Path, folder: Path) -> SqliteLog:
    """A log on a copy of the files as they are now, which is what `kill -9` at this moment would leave."""
    folder.mkdir()
    for path in source.parent.glob(f"{source.name}*"):
        if not path.name.endswith((".lock", "-shm")):
            shutil.copy(path, folder / path.name)
    return SqliteLog(folder / source.name)


# ---------------------------------------------------------------- restarts


@pytest.mark.parametrize("recent_bytes", [1, 1 << 20])
async def test_a_clean_restart_changes_nothing(
    tmp_path: Path, recent_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", recent_bytes)
    log = SqliteLog(tmp_path / "log.db")
    entries: list[Entry] = []
    for run in range(3):
        await log.open()
        assert not log.unclean
        assert (await log.head(A)).stale is False
        new = [message(len(entries) + 1), token(len(entries) + 2), token(len(entries) + 3)]
        assert await write(log, Position(len(entries), 0), *new)
        entries += new
        await log.close()
        assert files_in(tmp_path) == ["log.db", "log.db.lock"], f"run {run}"
    await log.open()
    assert await log.read(A, 0, ALL_BYTES) == entries
    assert await log.head(A) == Head(9, 0, open_turns=(OpenTurn("t", 7),))
    await log.close()


async def test_after_a_crash_the_next_append_needs_a_new_epoch(log: SqliteLog, tmp_path: Path) -> None:
    await write(log, START, message(1))
    await write(log, Position(1, 0), token(2))
    await write(log, START, message(1), done(2), key=B)
    crashed = as_after_a_crash(tmp_path / "log.db", tmp_path / "copy")
    await crashed.open()
    assert crashed.unclean
    assert await crashed.unfinished() == [A]
    assert await crashed.read(A, 0, ALL_BYTES) == [message(1), token(2)]
    assert await crashed.head(A) == Head(2, 0, stale=True, open_turns=(OpenTurn("t", 1),))
    assert not await write(crashed, Position(2, 0), token(3)), "the old owner is fenced"
    assert await write(crashed, START, message(1), token(2)), "what is there is there"
    assert await write(crashed, Position(2, 0), token(3, epoch=50))
    assert await crashed.head(A) == Head(3, 50, stale=False, open_turns=(OpenTurn("t", 1),))
    assert await write(crashed, Position(3, 50), token(4, epoch=50))
    await crashed.close()
    # Clean now, but nobody has written to B since the crash.
    again = SqliteLog(tmp_path / "copy" / "log.db")
    await again.open()
    assert not again.unclean
    assert [(await again.head(key)).stale for key in (A, B)] == [False, True]
    assert await again.epoch_at(A, 2) == 0
    assert await again.epoch_at(A, 3) == 50
    await again.close()


async def test_a_second_crash_makes_stale_again(log: SqliteLog, tmp_path: Path) -> None:
    await write(log, START, message(1))
    once = as_after_a_crash(tmp_path / "log.db", tmp_path / "once")
    await once.open()
    assert await write(once, Position(1, 0), token(2, epoch=50))
    twice = as_after_a_crash(tmp_path / "once" / "log.db", tmp_path / "twice")
    await once.close()
    await twice.open()
    assert await twice.head(A) == Head(2, 50, stale=True, open_turns=(OpenTurn("t", 1),))
    assert not await write(twice, Position(2, 50), token(3, epoch=50))
    await twice.close()


async def test_an_erasure_outlives_a_crash(log: SqliteLog, tmp_path: Path) -> None:
    await write(log, START, message(1))
    await write(log, Position(1, 0), token(2, epoch=70))
    await log.erase(A)
    crashed = as_after_a_crash(tmp_path / "log.db", tmp_path / "copy")
    await crashed.open()
    assert await crashed.head(A) == Head(0, 70, stale=True)
    await crashed.close()


WRITER = """
import asyncio, sys
from gateway.logs.log import Append, Key, Position
from gateway.logs.sqlite import SqliteLog
from protocol.frames import Message, Metadata, Token

async def main():
    log = SqliteLog(sys.argv[1])
    await log.open()
    keys = [Key("o", f"c{n}") for n in range(20)]
    seq = 0
    while True:
        seq += 1
        fields = dict(turn_id=f"t{seq // 50}", seq=seq, metadata=Metadata(seq))
        make = Message if seq % 50 == 1 else Token
        extra = {"message_id": f"m{seq}"} if make is Message else {}
        batch = [Append(key, Position(seq - 1, 0),
            [make(conversation_id=key.conversation_id, content=f"{key.conversation_id}:{seq} ", **extra, **fields)])
            for key in keys]
        assert all(await log.commit(batch))
        print(seq, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [3, 170, 700])
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "log.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = 0
        while last < acknowledged:
            last = int(process.stdout.readline())
        process.kill()
        for line in process.stdout:
            last = int(line) if line.endswith("\n") else last

    async def check() -> None:
        log = SqliteLog(path)
        await log.open()
        assert log.unclean
        for number in range(20):
            entries = await log.read(Key("o", f"c{number}"), 0, ALL_BYTES)
            assert len(entries) in (last, last + 1)
            for seq, entry in enumerate(entries, 1):
                assert isinstance(entry, Token | Message)
                assert (entry.seq, entry.content) == (seq, f"c{number}:{seq} ")
        await log.close()

    asyncio.run(check())


# ---------------------------------------------------------------- reading beside writing


async def test_readers_see_every_entry_once_while_segments_are_made(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", 500)
    monkeypatch.setattr("gateway.logs.sqlite_store.SEGMENT_BYTES", 100)

    async def follow(limit_bytes: int) -> list[int]:
        seqs: list[int] = []
        while len(seqs) < 300:
            seqs += [entry.seq for entry in await log.read(A, len(seqs), limit_bytes)]
            await asyncio.sleep(0)
        return seqs

    readers = [asyncio.create_task(follow(limit_bytes)) for limit_bytes in (1, 60, 500, ALL_BYTES)]
    for seq in range(0, 300, 3):
        assert await write(log, Position(seq, 0), token(seq + 1), token(seq + 2), token(seq + 3))
    for reader in readers:
        assert await reader == list(range(1, 301))


async def test_a_read_that_began_before_entries_moved_has_them_once(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(log, START, message(1), token(2))
    await move_all(log)
    await write(log, Position(2, 0), token(3), token(4))
    between = asyncio.Event()
    on_reader = log._on_reader

    async def later(*args: object) -> object:
        if not between.is_set():
            between.set()
            await move_all(log)  # entries 3 and 4
        return await on_reader(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(log, "_on_reader", later)
    assert await log.read(A, 0, ALL_BYTES) == [message(1), token(2), token(3), token(4)]


async def test_a_read_that_an_erasure_overtakes_mixes_nothing(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await write(log, START, message(1), token(2))
    await move_all(log)
    await write(log, Position(2, 0), token(3), token(4))
    anew = [message(1, epoch=9), token(2, epoch=9)]
    between = asyncio.Event()
    on_reader = log._on_reader

    async def later(*args: object) -> object:
        if not between.is_set():
            between.set()
            await log.erase(A)
            await write(log, START, *anew)
            await move_all(log)
        return await on_reader(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(log, "_on_reader", later)
    assert await log.read(A, 0, ALL_BYTES) == anew


async def test_many_conversations_fall_out_of_the_cache_of_heads(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.logs.sqlite_heads.HEADS", 3)
    keys = [Key(f"o{number}", "c") for number in range(10)]
    for seq in range(1, 6):
        assert all(await log.commit([Append(key, Position(seq - 1, 0), [token(seq)]) for key in keys]))
    assert not any(await log.commit([Append(key, Position(3, 0), [token(4, "other")]) for key in keys]))
    assert [(await log.head(key)).seq for key in keys] == [5] * 10


async def test_of_a_conversation_where_nothing_goes_on_memory_holds_nothing(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", 1)
    keys = [Key(f"o{number}", "c") for number in range(5)]
    assert all(await log.commit([Append(key, START, [message(1)]) for key in keys]))
    assert all(await log.commit([Append(key, Position(1, 0), [token(2)]) for key in keys]))
    assert list(store_of(log)._heads._known) == keys, "every token needs it"
    assert all(await log.commit([Append(key, Position(2, 0), [done(3)]) for key in keys]))
    await write(log, START, message(1), key=B)
    assert list(store_of(log)._heads._known) == [B]
    assert await log.commit([Append(keys[0], Position(3, 0), [message(4)])]) == [True]
    assert (await log.head(keys[1])).seq == 3


async def test_erased_content_is_in_no_file(log: SqliteLog, tmp_path: Path) -> None:
    secret = "a secret of some length"
    entries = [message(1, content=secret), *(token(seq, f"{secret}{seq}" * 50) for seq in range(2, 40))]
    for key in (A, B):
        for entry in entries:
            await write(log, Position(entry.seq - 1, 0), entry, key=key)
    await move_all(log)
    await write(log, Position(39, 0), token(40, secret))
    contents = contents_of(tmp_path)
    assert secret.encode() in contents
    await log.erase(B)
    assert len(await log.read(A, 0, ALL_BYTES)) == 40
    await log.erase(A)
    contents = contents_of(tmp_path)
    assert secret.encode() not in contents


# ---------------------------------------------------------------- durability


async def test_only_commits_of_nothing_but_tokens_wait_for_no_disk(log: SqliteLog) -> None:
    levels: list[int] = []
    db = store_of(log).db

    def note(statement: str) -> None:
        if statement.startswith("INSERT OR REPLACE INTO recent"):
            levels.append(int(sqlite_file.pragma(db, "synchronous")))

    db.set_trace_callback(note)
    await write(log, START, message(1))
    await write(log, Position(1, 0), token(2), token(3))
    await write(log, Position(3, 0), token(4), done(5))
    await write(log, Position(5, 0), token(6))
    await write(log, Position(6, 0), token(7, epoch=9))
    await write(log, START, token(1), key=B)
    db.set_trace_callback(None)
    full, normal = 2, 1
    assert levels == [full, normal, full, normal, full, full]


@pytest.mark.parametrize(("mode", "level"), [("full", 2), ("normal", 1), ("off", 0)])
async def test_the_other_modes_are_the_same_for_every_commit(tmp_path: Path, mode: str, level: int) -> None:
    log = open_log(f"sqlite:{tmp_path / 'log.db'}?synchronous={mode}")
    assert isinstance(log, SqliteLog)
    await log.open()
    for entry in (message(1), token(2), done(3)):
        assert await write(log, Position(entry.seq - 1, 0), entry)
        assert sqlite_file.pragma(store_of(log).db, "synchronous") == level
    await log.close()


# ---------------------------------------------------------------- faults


def limit_pages(log: SqliteLog, more: int) -> None:
    db = store_of(log).db
    db.execute(f"PRAGMA max_page_count = {int(sqlite_file.pragma(db, 'page_count')) + more}")


async def test_a_full_disk_refuses_whole_commits_and_is_got_over(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", 30_000)
    seq = 0
    limit_pages(log, 40)
    batch: list[Append] = []

    async def fill() -> None:
        nonlocal seq, batch
        while True:
            entries = [token(seq + 1, "x" * 4000), token(seq + 2, "y" * 4000)]
            batch = [Append(key, Position(seq, 0), entries) for key in (A, B)]
            assert await log.commit(batch) == [True, True]
            seq += 2

    with pytest.raises(LogUnavailable, match=r"log\.db: database or disk is full"):
        await fill()
    assert seq > 8
    for key in (A, B):
        assert (await log.head(key)).seq == seq
        assert [entry.seq for entry in await log.read(key, 0, ALL_BYTES)] == list(range(1, seq + 1))
    with pytest.raises(LogUnavailable, match="full"):
        await log.commit(batch)
    assert (await log.head(A)).seq == seq
    with pytest.raises(LogUnavailable, match="full"):
        await log.ping()
    with pytest.raises(LogUnavailable, match="full"):
        await log.ping()
    limit_pages(log, 1000)
    await log.ping()
    assert await log.commit(batch) == await log.commit(batch) == [True, True]
    assert [entry.seq for entry in await log.read(A, 0, ALL_BYTES)] == list(range(1, seq + 3))


async def test_a_writer_from_outside_is_waited_for_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_S", 0.01)
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailable, match="locked"):
        await write(log, START, message(1))
    with pytest.raises(LogUnavailable, match="locked"):
        await log.ping()
    other.execute("ROLLBACK")
    other.close()
    assert await write(log, START, message(1))
    await log.close()


async def test_ping_notices_that_the_file_was_taken_away(log: SqliteLog, tmp_path: Path) -> None:
    (tmp_path / "log.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(LogUnavailable, match="No such file"):
        await log.ping()
    shutil.copy(tmp_path / "elsewhere.db", tmp_path / "log.db")
    with pytest.raises(LogUnavailable, match="replaced"):
        await log.ping()


@pytest.mark.parametrize(
    ("table", "column"), [("segments", "entries"), ("recent", "appends"), ("conversations", "open_turns")]
)
async def test_damaged_rows_are_reported_in_one_line(log: SqliteLog, tmp_path: Path, table: str, column: str) -> None:
    await write(log, START, message(1), token(2))
    if table == "segments":
        await move_all(log)
    path = tmp_path / "log.db"
    crashed = as_after_a_crash(path, tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy" / "log.db") as db:
        assert db.execute(f"UPDATE {table} SET {column} = x'c1c1'").rowcount == 1
    db.close()

    async def use() -> None:
        await crashed.open()
        try:
            await crashed.head(A)
            await crashed.read(A, 0, ALL_BYTES)
        finally:
            await crashed.close()

    with pytest.raises(LogUnavailable, match=r"log\.db is damaged: "):
        await use()


# ---------------------------------------------------------------- opening


def not_a_database(path: Path) -> None:
    path.write_bytes(b"just a text file, and not a short one\n" * 100)


def another_programs(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE albums (title)")
    db.close()


def a_later_version(path: Path) -> None:
    sqlite_file.open_database(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 3")
    db.close()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (not_a_database, "file is not a database"),
        (another_programs, "another program"),
        (a_later_version, "later version"),
        (Path.mkdir, "[Dd]irectory"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "log.db"
    spoil(path)
    log = SqliteLog(path)
    for _ in range(2):
        with pytest.raises(LogUnavailable, match=says) as raised:
            await log.open()
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    await log.open()
    await log.close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match=r"folder .*nowhere doesn't exist"):
        await SqliteLog(tmp_path / "nowhere" / "log.db").open()


async def test_a_second_gateway_is_refused(log: SqliteLog, tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with pytest.raises(LogUnavailable, match=r"log\.db is in use by another gateway \(pid \d+\)"):
        await SqliteLog(path).open()
    await write(log, START, message(1))
    await log.close()
    second = SqliteLog(path)
    await second.open()
    assert not second.unclean
    assert (await second.head(A)).seq == 1
    await second.close()


async def test_conversations_are_private_on_a_shared_machine(log: SqliteLog, tmp_path: Path) -> None:
    await write(log, START, message(1))
    assert modes_in(tmp_path) == {0o600}


async def test_opening_twice_is_a_mistake(log: SqliteLog) -> None:
    with pytest.raises(RuntimeError, match="open already"):
        await log.open()


async def test_a_cancelled_open_leaves_the_file_to_the_next(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    task = asyncio.create_task(log.open())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await log.open()
    await log.close()


async def test_close_waits_for_what_was_begun(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    await log.open()
    commits = [asyncio.create_task(write(log, Position(seq, 0), token(seq + 1))) for seq in range(50)]
    await asyncio.sleep(0)
    await log.close()
    assert await asyncio.gather(*commits) == [True] * 50
    await log.open()
    assert not log.unclean
    assert (await log.head(A)).seq == 50
    await log.close()
