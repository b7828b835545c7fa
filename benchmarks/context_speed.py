"""What preparing a long conversation costs others, and how its own cost grows.

    python -m benchmarks.context_speed [--seconds S] [--rounds N] [--png FILE]

*Delay*: 100 conversations stream 20 tokens a second each, through sessions, log (`memory:`) and readers, while in the
same process a conversation of 100,000 tokens is prepared over and over, never from the cache. The delay of a token is
the time from when the model was due to say it until its reader has it. Rounds with and without preparation take turns.

*Growth*: one conversation of up to 1,000 turns; the time that `ContextManager.prepare` takes for one more turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gateway.context.counting import TokenCounter
from gateway.context.manager import ContextManager
from gateway.context.selection import ToolSelector
from gateway.context.summary import INSTRUCTIONS, Summarizer
from gateway.edge.reader import Reader
from gateway.logs.journal import Journal
from gateway.logs.log import Key, Position
from gateway.logs.memory import MemoryLog
from gateway.models.model import Event, Finish, ModelRequest, Sink, pour
from gateway.server import GC_GENERATION_0
from gateway.sessions.pool import SessionPool
from gateway.sessions.turn import Engine
from gateway.settings import Limits, LogAndSessions, Upstream
from gateway.settings.tools import Tools
from gateway.telemetry.metrics import Metrics
from gateway.tools.toolbox import Toolbox
from protocol.fold import Fold, TurnFold
from protocol.frames import ChatMessage, Context, Done, FunctionSpec, Message, Metadata, Token, Tool

STREAMS = 100
TOKENS_PER_S = 20
LONG_TOKENS = 100_000
TURNS = (10, 100, 300, 1000)
AROUND = 10
"""Turns on either side that a point of the curve stands for."""
WORDS = (
    "The committee decided yesterday to move the delivery to the 14th of March because checking the contracts takes "
    "longer than expected; Maria talks to the supplier in Cologne, and the budget of 48,500 euros stays as it is. "
)
STAMP = Metadata(timestamp=0)


class Paced:
    """Says when each token was due, at a steady pace and not in step with the others; writes summaries at once."""

    def __init__(self, seconds: float) -> None:
        self._tokens = int(seconds * TOKENS_PER_S)
        self._streams = itertools.count()

    async def answer(self, request: ModelRequest, sink: Sink) -> None:
        await pour(self.stream(request), sink)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        if request.messages[0]["content"] == INSTRUCTIONS:
            yield [WORDS, Finish("stop")]
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + 0.5 + next(self._streams) % STREAMS / STREAMS / TOKENS_PER_S
        for _ in range(self._tokens):
            await asyncio.sleep(max(0.0, due - loop.time()))
            yield [f"{due!r} "]
            due += 1 / TOKENS_PER_S
        yield [Finish("stop")]

    async def close(self) -> None:
        pass


class Streams:
    """A gateway's inside, in which conversations stream."""

    def __init__(self, seconds: float) -> None:
        model = Paced(seconds)
        settings = LogAndSessions(batch_chars=0)
        self._log = MemoryLog()
        self._journal = Journal(self._log)
        context = ContextManager(Upstream(), Summarizer(model, "demo"))
        engine = Engine(model, context, Toolbox(Tools()), Upstream(), settings, Metrics())
        self._pool = SessionPool(self._journal, engine, Limits())

    async def delays(self) -> list[float]:
        """Seconds, of every token of all streams."""
        await self._log.open()
        self._journal.start()
        await self._pool.start()
        read = await asyncio.gather(*(self._read(f"c{n}") for n in range(STREAMS)))
        await self._pool.close()
        await self._journal.close()
        await self._log.close()
        return [delay for delays in read for delay in delays]

    async def _read(self, name: str) -> list[float]:
        session, made = await self._pool.submit(Key("0:/anonymous", name), ChatMessage(message="go"))
        now = asyncio.get_running_loop().time
        delays: list[float] = []
        with Reader(session.feed, Position(made.seq, 0)) as reader:
            async for part in reader.slices(60):
                for frame in part.frames:
                    if isinstance(frame, Token):
                        delays += [now() - float(due) for due in frame.content.split()]
                    elif isinstance(frame, Done):
                        return delays
        raise AssertionError("a stream ended without its end")


class Talk:
    """The fold of a conversation that grows."""

    def __init__(self) -> None:
        self.fold = Fold()
        self._numbers = itertools.count(1)

    def ask(self, question: str, tools: list[Tool] | None = None) -> TurnFold:
        n = next(self._numbers)
        self.fold.apply(
            Message(
                conversation_id="c",
                turn_id=f"t{n}",
                seq=self.fold.seq + 1,
                metadata=STAMP,
                content=question,
                message_id=f"m{n}",
            )
        )
        return self.fold.turns[f"t{n}"]

    def answer(self, turn: TurnFold, text: str) -> None:
        ids = {"conversation_id": "c", "turn_id": turn.turn_id, "metadata": STAMP}
        self.fold.apply(Token(**ids, seq=self.fold.seq + 1, content=text))
        self.fold.apply(Done(**ids, seq=self.fold.seq + 1, finish_reason="stop", usage=None, text_length=len(text)))

    def remember(self, turn: TurnFold, entry: Any) -> None:
        compacted, memory = entry
        self.fold.apply(
            Context(
                conversation_id="c",
                turn_id=turn.turn_id,
                seq=self.fold.seq + 1,
                metadata=STAMP,
                compacted=compacted,
                memory=memory,
            )
        )


def long_talk() -> tuple[Fold, TurnFold]:
    """About `LONG_TOKENS` in turns of some 400 tokens, and a last question."""
    talk, counter = Talk(), TokenCounter()
    tokens = n = 0
    while tokens < LONG_TOKENS:
        n += 1
        question, text = f"Question {n}: {WORDS * 2}", f"Answer {n}: {WORDS * 6}"
        tokens += counter.count(question) + counter.count(text)
        talk.answer(talk.ask(question), text)
    return talk.fold, talk.ask("And now?")


# ---------------------------------------------------------------- delay

Work = Callable[[], Awaitable[None]]


def preparing(settings: Upstream, fold: Fold, turn: TurnFold) -> Work:
    async def once() -> None:
        # A new manager, so that nothing is remembered.
        manager = ContextManager(settings, Summarizer(Paced(0), "demo"))
        await manager.prepare(fold, turn, {}, tools=True)

    return once


def selecting() -> Work:
    numbers = itertools.count()

    async def once() -> None:
        first = next(numbers)
        properties = {"path": {"type": "string", "description": WORDS}, "limit": {"type": "integer"}}
        tools = [
            Tool(FunctionSpec(f"tool_{first}_{n}", f"{n} {WORDS * 2}", {"type": "object", "properties": properties}))
            for n in range(300)
        ]
        await ToolSelector(16).select(tools, "move the delivery", [])

    return once


class Delay(NamedTuple):
    p50_ms: float
    p99_ms: float
    worst_ms: float
    times: int
    """How often the work was done meanwhile."""
    each_ms: float


async def measure(seconds: float, work: Work | None) -> Delay:
    taken: list[float] = []

    async def again_and_again() -> None:
        await asyncio.sleep(0.4)
        while work is not None:
            began = time.perf_counter()
            await work()
            taken.append(time.perf_counter() - began)
            # Something always yields in between; a gateway's sockets do.
            await asyncio.sleep(0)

    beside = asyncio.create_task(again_and_again())
    delays = await Streams(seconds).delays()
    beside.cancel()
    await asyncio.wait([beside])
    cuts = statistics.quantiles(delays, n=100)
    each = statistics.median(taken) if taken else 0.0
    return Delay(1000 * cuts[49], 1000 * cuts[98], 1000 * max(delays), len(taken), 1000 * each)


async def delays(console: Console, seconds: float, rounds: int) -> None:
    fold, turn = long_talk()
    kinds: dict[str, Work | None] = {
        "nothing else": None,
        "100,000 tokens counted (budget 128,000)": preparing(Upstream(max_context_tokens=128_000), fold, turn),
        "100,000 tokens compressed (budget 8,000)": preparing(Upstream(), fold, turn),
        "16 of 300 new tools chosen": selecting(),
    }
    await asyncio.to_thread(TokenCounter().count, "load the vocabulary")
    await selecting()()
    found: dict[str, list[Delay]] = {kind: [] for kind in kinds}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("delay", total=rounds * len(kinds))
        for _ in range(rounds):
            for kind, work in kinds.items():
                found[kind].append(await measure(seconds, work))
                progress.advance(task)
    table = Table(
        title=f"Delay of a token of {STREAMS} streams ({TOKENS_PER_S} tokens/s each), median of {rounds} rounds"
    )
    for column in ("meanwhile, without a pause", "p50 ms", "p99 ms", "added p99 ms", "worst ms", "times", "ms each"):
        table.add_column(column, justify="left" if column.startswith("mean") else "right")
    middle = {kind: Delay(*map(statistics.median, zip(*got, strict=True))) for kind, got in found.items()}
    alone = middle["nothing else"].p99_ms
    for kind, delay in middle.items():
        cells = (delay.p50_ms, delay.p99_ms, delay.p99_ms - alone, delay.worst_ms)
        each = f"{delay.each_ms:.0f}" if delay.times else ""
        table.add_row(kind, *(f"{cell:.1f}" for cell in cells), f"{delay.times:.0f}", each)
    console.print(table)


# ---------------------------------------------------------------- growth


async def growth(settings: Upstream) -> list[float]:
    """Milliseconds for each turn. Those that compress are in it; their summaries cost nothing here."""
    manager = ContextManager(settings, Summarizer(Paced(0), "demo"))
    talk, known = Talk(), dict[str, int]()
    times: list[float] = []
    for n in range(max(TURNS) + AROUND):
        turn = talk.ask(f"Question {n}: {WORDS}")
        began = time.perf_counter()
        prepared = await manager.prepare(talk.fold, turn, known, tools=True)
        times.append(1000 * (time.perf_counter() - began))
        if prepared.compaction is not None:
            talk.remember(turn, prepared.compaction)
        talk.answer(turn, f"Answer {n}: {WORDS * 3}")
    return times


def near(times: list[float], turn: int) -> list[float]:
    return times[max(0, turn - 1 - AROUND) : turn + AROUND]


async def curve(console: Console, png: Path | None) -> None:
    budgets = {"budget 8,000 (the default)": Upstream(), "budget 1,000,000": Upstream(max_context_tokens=1_000_000)}
    with console.status("growth"):
        found = {name: await growth(settings) for name, settings in budgets.items()}
    table = Table(title=f"Milliseconds to prepare a turn: median, and slowest, of {2 * AROUND + 1} turns")
    table.add_column("")
    for turn in TURNS:
        table.add_column(f"turn {turn:,}", justify="right")
    for name, times in found.items():
        cells = (near(times, turn) for turn in TURNS)
        table.add_row(name, *(f"{statistics.median(cell):.2f} ({max(cell):.1f})" for cell in cells))
    console.print(table)
    console.print(
        "With 1,000,000 all turns are sent each time, so their list is made each time; none is counted twice."
    )
    if png is not None:
        _draw(console, found, png)


def _draw(console: Console, found: dict[str, list[float]], png: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415  # optional
    except ImportError:
        console.print("No picture: matplotlib isn't installed.", style="yellow")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, times in found.items():
        points = list(_smooth(times))
        axes.plot([n for n, _ in points], [ms for _, ms in points], label=name)
    axes.set(xlabel="turn", ylabel="ms to prepare it (median of 21)", ylim=(0, None))
    axes.legend()
    figure.savefig(png, dpi=150)
    console.print(f"{png} is drawn.")


def _smooth(times: list[float]) -> Iterator[tuple[int, float]]:
    for turn in range(1, max(TURNS) + 1, 5):
        yield turn, statistics.median(near(times, turn))


async def run(given: argparse.Namespace) -> None:
    console = Console()
    await curve(console, given.png)
    # As a gateway does when it starts (`gateway.server.serve`).
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_GENERATION_0, 50, 50)
    await delays(console, given.seconds, given.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round (5)")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind (3)")
    parser.add_argument("--png", type=Path, help="draw the growth into this file; needs matplotlib")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
