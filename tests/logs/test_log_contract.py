"""What every log engine does alike. An engine joins by one entry in `ENGINES`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from gateway.logs.log import Append, Claim, Head, Key, Log, LogUnavailable, OpenTurn, Position
from gateway.logs.memory import MemoryLog
from gateway.logs.redis_log import RedisLog
from gateway.logs.sqlite import SqliteLog
from protocol.frames import Done, Entry, Error, ErrorBody, FunctionResult, Message, Metadata, Options, Token
from tests.support.valkey import cluster_url

NewLog = Callable[[], Log]
"""Makes a log that is empty and isn't open yet."""
_numbers = itertools.count()


def _sqlite(request: pytest.FixtureRequest) -> NewLog:
    folders: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    return lambda: SqliteLog(folders.mktemp("log") / "log.db")


def _redis(request: pytest.FixtureRequest) -> NewLog:
    url = request.getfixturevalue("redis_server").url
    return lambda: RedisLog(f"{url}?prefix=contract-{next(_numbers)}")


def _redis_cluster(request: pytest.FixtureRequest) -> NewLog:
    url = cluster_url(request.getfixturevalue("redis_cluster"))
    return lambda: RedisLog(f"{url}?prefix=contract-{next(_numbers)}")


ENGINES: dict[str, Callable[[pytest.FixtureRequest], NewLog]] = {
    "memory": lambda _: MemoryLog,
    "sqlite": _sqlite,
    "redis": _redis,
    "redis-cluster": _redis_cluster,
}

A = Key("alice", "c")
B = Key("bob", "c")
START = Position(0, 0)
NOW = 1_764_000_000_000
ALL_BYTES = 1 << 30


@pytest.fixture(scope="session", params=list(ENGINES))
def new_log(request: pytest.FixtureRequest) -> NewLog:
    return ENGINES[request.param](request)


@pytest.fixture
async def log(new_log: NewLog) -> AsyncIterator[Log]:
    log = new_log()
    await log.open()
    yield log
    await log.close()


def message(seq: int, turn: str = "t1", epoch: int = 0, at: int = NOW) -> Entry:
    return Message(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        epoch=epoch,
        metadata=Metadata(at),
        content="question",
        message_id=f"m-{turn}",
    )


def token(seq: int, text: str = "word", turn: str = "t1", epoch: int = 0, at: int = NOW) -> Entry:
    return Token(conversation_id="c", turn_id=turn, seq=seq, epoch=epoch, metadata=Metadata(at), content=text)


def done(seq: int, turn: str = "t1", epoch: int = 0, at: int = NOW) -> Entry:
    return Done(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        epoch=epoch,
        metadata=Metadata(at),
        finish_reason="stop",
        usage=None,
        text_length=0,
    )


def failed(seq: int, turn: str = "t1") -> Entry:
    body = ErrorBody("NODE_LOST", "It's gone.", True)
    return Error(error=body, conversation_id="c", turn_id=turn, seq=seq, metadata=Metadata(NOW))


def tokens(first: int, last: int, epoch: int = 0) -> list[Entry]:
    return [token(seq, f"w{seq} ", epoch=epoch) for seq in range(first, last + 1)]


async def write(log: Log, after: Position, *entries: Entry, key: Key = A) -> bool:
    [verdict] = await log.commit([Append(key, after, entries)])
    return verdict


async def everything(log: Log, key: Key = A) -> list[Entry]:
    return await log.read(key, 0, ALL_BYTES)


# ---------------------------------------------------------------- reading


async def test_what_was_appended_is_read_back(log: Log) -> None:
    first = [message(1), *tokens(2, 5)]
    assert await write(log, START, *first)
    assert await write(log, Position(5, 0), done(6))
    assert await everything(log) == [*first, done(6)]
    assert await log.read(A, 3, ALL_BYTES) == [token(4, "w4 "), token(5, "w5 "), done(6)]
    assert await log.read(A, 6, ALL_BYTES) == await log.read(A, 99, ALL_BYTES) == []


async def test_there_is_nothing_of_an_unknown_conversation(log: Log) -> None:
    assert not log.unclean
    assert await log.head(A) == Head()
    assert await everything(log) == []
    assert await log.unfinished() == await log.expire(NOW) == []
    assert await log.epoch_at(A, 0) is await log.epoch_at(A, 1) is None
    await log.erase(A)
    assert await log.head(A) == Head()
    assert await log.commit([]) == []
    await log.ping()


async def test_a_read_is_limited_but_gives_at_least_one(log: Log) -> None:
    big = [token(seq, "x" * 1000) for seq in range(1, 11)]
    await write(log, START, *big)
    assert await log.read(A, 0, 3500) == big[:3]
    assert await log.read(A, 8, 3500) == big[8:]
    assert await log.read(A, 2, 1) == big[2:3]


@pytest.mark.parametrize("limit_bytes", [1, 40, 1000])
async def test_reading_on_in_small_steps_gives_just_the_same(log: Log, limit_bytes: int) -> None:
    entries = [message(1), *tokens(2, 80), done(81)]
    for start in range(0, 81, 7):
        await write(log, Position(start, 0), *entries[start : start + 7])
    read: list[Entry] = []
    while step := await log.read(A, len(read), limit_bytes):
        read += step
    assert read == entries


@pytest.mark.parametrize("text", ["", "\0", "e\u0301 👩‍👩‍👧 \u202e", "\ufeff\uffff\U0010ffff", "x" * 3_000_000])
async def test_any_text_is_kept(log: Log, text: str) -> None:
    odd = [
        structs.replace(message(1), content=text, options=Options(system=text)),
        token(2, text),
        FunctionResult(
            conversation_id="c",
            turn_id="t1",
            seq=3,
            metadata=Metadata(NOW),
            call_id="k",
            name="f",
            result={text: [text]},
        ),
    ]
    assert await write(log, START, *odd)
    assert await everything(log) == odd


async def test_an_id_belongs_to_its_owner(log: Log) -> None:
    assert await log.commit([Append(A, START, [message(1)]), Append(B, START, tokens(1, 3))]) == [True, True]
    assert await everything(log, A) == [message(1)]
    assert await everything(log, B) == tokens(1, 3)
    await log.erase(B)
    assert await everything(log, A) == [message(1)]
    assert (await log.head(B)).seq == 0


async def test_epoch_at(log: Log) -> None:
    await write(log, START, *tokens(1, 3))
    await write(log, Position(3, 0), *tokens(4, 5, epoch=7))
    assert [await log.epoch_at(A, seq) for seq in range(-1, 7)] == [None, None, 0, 0, 0, 7, 7, None]


# ---------------------------------------------------------------- fencing


@pytest.mark.parametrize(
    ("after", "entries", "taken"),
    [
        pytest.param(Position(3, 5), tokens(4, 4, 5), True, id="follows"),
        pytest.param(Position(3, 5), tokens(4, 4, 9), True, id="follows in a new epoch"),
        pytest.param(Position(3, 5), tokens(4, 4, 4), False, id="of an old epoch"),
        pytest.param(Position(3, 0), tokens(4, 4, 5), False, id="after an entry of another epoch"),
        pytest.param(Position(3, 9), tokens(4, 4, 9), False, id="after an entry that was lost"),
        pytest.param(Position(4, 5), tokens(5, 5, 5), False, id="leaves a gap"),
        pytest.param(START, tokens(1, 1, 9), False, id="begins again"),
        pytest.param(START, tokens(1, 3, 5), True, id="is there already"),
        pytest.param(Position(1, 5), tokens(2, 3, 5), True, id="its last part is there already"),
        pytest.param(Position(1, 5), tokens(2, 2, 5), True, id="a middle part is there already"),
        pytest.param(Position(1, 5), tokens(2, 4, 5), False, id="is there only in part"),
        pytest.param(
            Position(1, 5), [token(2, "w2 ", epoch=5), token(3, "other", epoch=5)], False, id="differs in text"
        ),
        pytest.param(Position(1, 5), tokens(2, 3, 6), False, id="differs in epoch"),
    ],
)
async def test_what_the_log_takes(log: Log, after: Position, entries: list[Entry], taken: bool) -> None:
    there = tokens(1, 3, epoch=5)
    await write(log, START, *there)
    assert await write(log, after, *entries) is taken
    longer = [*there, *entries] if taken and entries[-1].seq > 3 else there
    assert await everything(log) == longer
    assert await log.head(A) == Head(longer[-1].seq, longer[-1].epoch)


@pytest.mark.parametrize(
    ("after", "entries"),
    [
        (START, []),
        (START, [token(2)]),
        (START, [token(1), token(3)]),
        (START, [token(1), token(2, epoch=1)]),
        (START, [structs.replace(token(1), conversation_id="d")]),
    ],
)
async def test_an_append_that_no_log_could_take_is_the_callers_fault(
    log: Log, after: Position, entries: list[Entry]
) -> None:
    with pytest.raises(ValueError, match="entr"):
        await log.commit([Append(B, START, [token(1)]), Append(A, after, entries)])
    assert await everything(log, B) == []


async def test_in_one_batch_each_append_stands_for_itself(log: Log) -> None:
    keys = [Key("o", f"c{number}") for number in range(4)]

    def append(key: Key, after: int, *seqs: int) -> Append:
        own = [structs.replace(token(seq), conversation_id=key.conversation_id) for seq in seqs]
        return Append(key, Position(after, 0), own)

    batch = [
        append(keys[0], 0, 1, 2),
        append(keys[1], 5, 6),  # fenced
        append(keys[0], 2, 3),  # follows the first
        append(keys[2], 0, 1),
        append(keys[0], 1, 2, 3),  # there already, by this very batch
        append(keys[2], 0, 1, 2),  # in part
        append(keys[3], 0, 1),
    ]
    assert await log.commit(batch) == [True, False, True, True, True, False, True]
    assert [len(await everything(log, key)) for key in keys] == [3, 0, 1, 1]


async def test_a_commit_whose_answer_was_lost_can_be_repeated(log: Log) -> None:
    batch = [Append(A, START, [message(1), *tokens(2, 9)]), Append(B, START, [message(1)])]
    assert await log.commit(batch) == await log.commit(batch) == [True, True]
    assert await everything(log) == list(batch[0].entries)


async def test_a_commit_lets_others_run(log: Log) -> None:
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    task = asyncio.create_task(other())
    await write(log, START, token(1))
    assert ran
    await task


async def test_commits_at_once_are_written_in_order(log: Log) -> None:
    async def conversation(number: int) -> None:
        key = Key("o", "c") if number == 0 else Key(f"o{number}", "c")
        appends = [Append(key, Position(seq - 1, 0), [token(seq, str(number))]) for seq in range(1, 41)]
        assert await asyncio.gather(*(log.commit([append]) for append in appends)) == [[True]] * 40
        assert [entry.seq for entry in await everything(log, key)] == list(range(1, 41))

    await asyncio.gather(*(conversation(number) for number in range(5)))


async def test_a_cancelled_commit_is_whole_or_not_there(log: Log) -> None:
    task = asyncio.create_task(log.commit([Append(A, START, tokens(1, 50))]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    seq = (await log.head(A)).seq
    assert seq in (0, 50)
    assert len(await everything(log)) == seq
    assert await write(log, START, *tokens(1, 50))


# ---------------------------------------------------------------- open turns


async def test_open_turns_are_kept_in_log_order(log: Log) -> None:
    steps: list[tuple[list[Entry], list[tuple[str, int]]]] = [
        ([message(1, "t1"), token(2, turn="t1")], [("t1", 1)]),
        ([token(3, turn="t1")], [("t1", 1)]),
        ([message(4, "t2"), message(5, "t3")], [("t1", 1), ("t2", 4), ("t3", 5)]),
        ([done(6, "t1")], [("t2", 4), ("t3", 5)]),
        ([failed(7, "t3"), message(8, "t4"), done(9, "t4")], [("t2", 4)]),
        ([done(10, "t2")], []),
    ]
    for entries, open_after in steps:
        assert await write(log, Position(entries[0].seq - 1, 0), *entries)
        assert (await log.head(A)).open_turns == tuple(OpenTurn(*turn) for turn in open_after)
        assert await log.unfinished() == ([A] if open_after else [])


async def test_unfinished_names_each_conversation_once(log: Log) -> None:
    keys = [Key(owner, "c") for owner in "xyz"]
    await log.commit([Append(key, START, [message(1), message(2, "t2")]) for key in keys])
    await write(log, Position(2, 0), done(3), done(4, "t2"), key=keys[1])
    await log.erase(keys[2])
    assert await log.unfinished() == [keys[0]]


# ---------------------------------------------------------------- whose it is


async def test_a_conversation_that_is_nobodys_is_whoever_claims_it(log: Log) -> None:
    assert await log.claim(A) == Claim(Head())
    assert await log.head(A) == Head(), "a claim makes no conversation"
    assert await write(log, START, message(1), token(2))
    assert await log.claim(A) == Claim(Head(2, 0, open_turns=(OpenTurn("t1", 1),))), "what is ours is ours again"
    assert await log.unfinished(log.node_id) == [A]
    assert await log.unfinished("another node") == []
    assert await log.owners() <= {log.node_id}


async def test_a_released_conversation_goes_on_as_it_was(log: Log) -> None:
    await log.release(A)
    await log.claim(A)
    await write(log, START, message(1), token(2))
    await log.release(A)
    await log.release(A)
    assert await log.unfinished("") == [A]
    assert await log.claim(A) == Claim(Head(2, 0, open_turns=(OpenTurn("t1", 1),)))
    assert await write(log, Position(2, 0), done(3))
    assert await log.unfinished() == await log.unfinished(log.node_id) == await log.unfinished("") == []


async def test_claiming_instead_of_another_node_takes_what_is_nobodys(log: Log) -> None:
    await write(log, START, message(1))
    claim = await log.claim(A, instead_of="another node")
    assert (claim.owner, claim.lost) == (None, False)
    assert await write(log, Position(1, 0), done(2))


# ---------------------------------------------------------------- erasure and retention


async def test_an_erased_conversation_begins_anew_in_a_new_epoch(log: Log) -> None:
    await write(log, START, message(1), *tokens(2, 4))
    await write(log, Position(4, 0), token(5, epoch=100))
    await log.erase(A)
    await log.erase(A)
    assert await log.head(A) == Head(0, 100, stale=True)
    assert await everything(log) == []
    assert await log.epoch_at(A, 1) is None
    assert not await write(log, Position(5, 100), token(6, epoch=100)), "a late append is fenced"
    assert not await write(log, Position(5, 100), token(6, epoch=200))
    assert not await write(log, START, message(1)), "an epoch is never used twice"
    assert not await write(log, Position(0, 100), message(1, epoch=100))
    assert await write(log, START, message(1, epoch=101))
    assert await log.head(A) == Head(1, 101, open_turns=(OpenTurn("t1", 1),))
    assert await write(log, Position(1, 101), token(2, epoch=101))
    assert await everything(log) == [message(1, epoch=101), token(2, epoch=101)]


async def test_expiry_takes_what_is_old_and_over(log: Log) -> None:
    shapes: dict[str, list[Entry]] = {
        "old": [message(1), token(2), done(3)],
        "new": [message(1), token(2), done(3, at=NOW + 10)],
        "open": [message(1), token(2)],
        "other": [message(1), failed(2)],
    }
    for name, entries in shapes.items():
        own = [structs.replace(entry, conversation_id=name) for entry in entries]
        await write(log, START, *own, key=Key("o", name))
    assert await log.expire(NOW) == []
    assert sorted(await log.expire(NOW + 1)) == [Key("o", "old"), Key("o", "other")]
    assert await log.head(Key("o", "old")) == Head(0, 0, stale=True)
    assert await log.expire(NOW + 1) == []
    assert await log.expire(NOW + 11) == [Key("o", "new")]
    assert await log.unfinished() == [Key("o", "open")]


async def test_expiry_of_many(log: Log) -> None:
    keys = [Key("o", f"c{number}") for number in range(250)]
    batch = [Append(key, START, [structs.replace(token(1), conversation_id=key.conversation_id)]) for key in keys]
    assert all(await log.commit(batch))
    assert sorted(await log.expire(NOW + 1)) == sorted(keys)


# ---------------------------------------------------------------- life


async def test_a_log_that_is_not_open_is_unavailable(new_log: NewLog) -> None:
    log = new_log()

    async def all_refuse() -> None:
        for call in (
            log.ping(),
            log.head(A),
            log.claim(A),
            log.release(A),
            log.commit([]),
            log.read(A, 0, 1),
            log.epoch_at(A, 1),
            log.erase(A),
            log.unfinished(),
            log.expire(0),
        ):
            with pytest.raises(LogUnavailable, match="isn't open"):
                await call

    await all_refuse()
    await log.open()
    await write(log, START, token(1))
    await log.close()
    await log.close()
    await all_refuse()


# ---------------------------------------------------------------- against a model

KEYS = [A, B]
Operation = tuple[str, int, int, int]
operations = st.lists(
    st.tuples(
        st.sampled_from(["tokens", "tokens", "tokens", "turn", "end", "zombie", "repeat", "erase", "epoch", "reopen"]),
        st.integers(0, 1),
        st.integers(1, 9),
        st.integers(0, 60),
    ),
    max_size=40,
)


class Model:
    """A log as plain lists: what every engine has to agree with."""

    def __init__(self) -> None:
        self.entries: dict[Key, list[Entry]] = {key: [] for key in KEYS}
        self.last_epoch = dict.fromkeys(KEYS, 0)
        self.erased = dict.fromkeys(KEYS, False)

    def position(self, key: Key) -> Position:
        return Position(len(self.entries[key]), self.last_epoch[key])

    def open_turns(self, key: Key) -> tuple[OpenTurn, ...]:
        ended = {entry.turn_id for entry in self.entries[key] if isinstance(entry, Done)}
        started = [entry for entry in self.entries[key] if isinstance(entry, Message)]
        return tuple(OpenTurn(entry.turn_id, entry.seq) for entry in started if entry.turn_id not in ended)

    def head(self, key: Key) -> Head:
        return Head(*self.position(key), self.erased[key], self.open_turns(key))

    def next_entries(self, kind: str, key: Key, count: int) -> list[Entry]:
        seq, epoch = self.position(key)
        epoch += 1 if self.erased[key] or kind == "epoch" else 0
        turn = f"t{epoch}.{seq}"
        match kind:
            case "turn":
                return [
                    message(seq + 1, turn, epoch),
                    *(token(seq + n, turn=turn, epoch=epoch) for n in range(2, count)),
                ]
            case "end" if turns := self.open_turns(key):
                return [done(seq + 1, turns[0].turn_id, epoch)]
            case _:
                return [token(seq + n, "é" * count, epoch=epoch) for n in range(1, count + 1)]

    def written(self, key: Key, entries: Sequence[Entry]) -> None:
        self.entries[key] += entries
        self.last_epoch[key] = entries[-1].epoch
        self.erased[key] = False

    def erase(self, key: Key) -> None:
        if self.entries[key]:
            self.entries[key], self.erased[key] = [], True


async def compare(log: Log, history: list[Operation]) -> None:
    model = Model()
    for kind, which, count, number in history:
        key = KEYS[which]
        there = model.entries[key]
        match kind:
            case "erase":
                await log.erase(key)
                model.erase(key)
            case "reopen" if isinstance(log, (SqliteLog, RedisLog)):
                await log.close()
                await log.open()
            case "repeat" if there:
                start = min(number, len(there) - 1)
                again = [entry for entry in there[start : start + count] if entry.epoch == there[start].epoch]
                assert await write(log, Position(start, there[start - 1].epoch if start else 0), *again, key=key)
            case "zombie" if there:
                at = Position(len(there) - 1, model.last_epoch[key])
                assert not await write(log, at, token(at.seq + 1, "zombie", epoch=at.epoch), key=key)
            case _:
                entries = model.next_entries(kind, key, count)
                assert await write(log, model.position(key), *entries, key=key)
                model.written(key, entries)
        assert await log.head(key) == model.head(key)
        assert await log.read(key, min(number, len(there)), ALL_BYTES) == model.entries[key][number:]
        assert sorted(await log.unfinished()) == [key for key in KEYS if model.open_turns(key)]
    for key in KEYS:
        assert await everything(log, key) == model.entries[key]
        epochs = [await log.epoch_at(key, entry.seq) for entry in model.entries[key]]
        assert epochs == [entry.epoch for entry in model.entries[key]]


@pytest.mark.parametrize("recent_bytes", [1, 2000, 1 << 19])
@settings(max_examples=25, deadline=None)
@given(history=operations)
def test_any_history_is_as_the_model_says(new_log: NewLog, recent_bytes: int, history: list[Operation]) -> None:
    async def run() -> None:
        log = new_log()
        await log.open()
        try:
            await compare(log, history)
        finally:
            await log.close()

    with pytest.MonkeyPatch.context() as patch:
        # How much is held back before it becomes segments must make no difference.
        patch.setattr("gateway.logs.sqlite_store.RECENT_BYTES", recent_bytes)
        asyncio.run(run())
