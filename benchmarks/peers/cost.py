"""A first, rough figure of each peer: CPU microseconds of its processes per token, at 100 streams of 50 a second.

The comparison proper, in interleaved rounds on pinned cores, is `python -m benchmarks`; this one serves to see whether
a peer is written fairly. 4 conversations a connection where a connection can carry several. The streams begin spread
over one interval: a peer that is woken for all of them at once has less to do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.peers.catalog import Dialect
from benchmarks.peers.check import OVER_WEBSOCKET
from benchmarks.peers.clients import stream_answer, websocket_answers, websocket_url
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.process import RunningPeer, running_peer
from benchmarks.show.gateway_process import running_upstream

STREAMS = 100
PER_CONNECTION = 4
RATE = 50
TOKENS = 400


async def cost(names: Sequence[str], console: Console) -> None:
    table = Table(title=f"CPU per token, {STREAMS} streams of {RATE}/s, one round")
    for column in ("peer", "dialect", "µs a token", "seconds", "tokens"):
        table.add_column(column, justify="left" if column in {"peer", "dialect"} else "right")
    with console.status("measuring") as status:
        for name in names:
            status.update(f"measuring {name}")
            try:
                for dialect, tokens, cpu_s, took_s in await _measured(name):
                    us = f"{cpu_s / tokens * 1e6:.1f}"
                    table.add_row(name, dialect.value, us, f"{took_s:.1f}", str(tokens))
            except Unavailable as missing:
                console.print(f"[yellow]skipped[/] {name}: {missing}")
    console.print(table)


async def _measured(name: str) -> list[tuple[Dialect, int, float, float]]:
    """For each dialect: tokens, CPU seconds, and how long it took."""
    found = []
    loop = asyncio.get_running_loop()
    async with running_upstream() as upstream, running_peer(name, upstream.url) as running:
        for dialect in running.peer.dialects:
            over = _websocket if dialect in OVER_WEBSOCKET else _streams
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 18) as session:
                await over(session, running, dialect, 10)  # what is made once
                before, began = running.cpu_s(), loop.time()
                tokens = await over(session, running, dialect, TOKENS)
                found.append((dialect, tokens, running.cpu_s() - before, loop.time() - began))
    return found


def _question(tokens: int) -> str:
    return f"tokens={tokens} rate={RATE} delay={random.random() / RATE:.4f}"


async def _websocket(session: aiohttp.ClientSession, running: RunningPeer, dialect: Dialect, tokens: int) -> int:
    async def connection(number: int) -> int:
        questions = {f"{number}-{at}": _question(tokens) for at in range(PER_CONNECTION)}
        async with session.ws_connect(websocket_url(running, dialect)) as socket:
            answers = websocket_answers(socket, dialect, questions)
            return sum([1 async for _, piece in answers if piece is not None])

    return sum(await asyncio.gather(*map(connection, range(STREAMS // PER_CONNECTION))))


async def _streams(session: aiohttp.ClientSession, running: RunningPeer, dialect: Dialect, tokens: int) -> int:
    async def stream(number: int) -> int:
        answer = stream_answer(session, running, dialect, f"{number}-{tokens}", _question(tokens))
        return sum([1 async for _ in answer])

    return sum(await asyncio.gather(*map(stream, range(STREAMS))))
