"""Does every peer do the whole work? All tokens of several conversations at once, in order, unchanged.

The scripted upstream remembers what it sent. A WebSocket peer is asked for all conversations on one connection, which
must interleave; the others for each on its own. What arrives must be the upstream's text, in as many pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
from rich.console import Console

from benchmarks.peers.catalog import Dialect
from benchmarks.peers.clients import (
    WrongAnswer,
    followed,
    pieces_of,
    stream_answer,
    websocket_answers,
    websocket_url,
)
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.process import RunningPeer, running_peer
from benchmarks.show.gateway_process import UpstreamProcess, running_upstream

CONVERSATIONS = 8
TOKENS = 100
RATE = 100
TIMEOUT_S = 60.0
OVER_WEBSOCKET = {Dialect.WEBSOCKET, Dialect.SOCKETIO}
RESUMED_AFTER = 30
"""Pieces, of the first reader."""


class Subject:
    """A peer under check, with all that a check needs."""

    def __init__(self, running: RunningPeer, upstream: UpstreamProcess, session: aiohttp.ClientSession) -> None:
        self.running = running
        self.session = session
        self._upstream = upstream

    async def compare(self, key: str, pieces: Sequence[str]) -> None:
        """Raises `WrongAnswer` unless they are what the upstream sent to the only request with this key."""
        (record,) = await self._upstream.record(key)
        if "".join(pieces) != record["text"]:
            raise WrongAnswer(f"{key}: another text than the upstream's")
        if len(pieces) != record["tokens"]:
            raise WrongAnswer(f"{key}: {len(pieces)} pieces, the upstream sent {record['tokens']}")


async def check(names: Sequence[str], console: Console) -> bool:
    """Prints a line for each. False if one of them is wrong; one that this machine can't run is said, and is not."""
    right = True
    for name in names:
        try:
            done = await _check(name)
            console.print(f"[green]right[/]    {name}: {', '.join(done)}", soft_wrap=True)
        except Unavailable as missing:
            console.print(f"[yellow]skipped[/]  {name}: {missing}", soft_wrap=True)
        except (WrongAnswer, RuntimeError, TimeoutError, aiohttp.ClientError) as problem:
            right = False
            console.print(f"[red]wrong[/]    {name}: {problem!r}", soft_wrap=True)
    return right


async def _check(name: str) -> list[str]:
    """What was checked. Raises `WrongAnswer`."""
    async with (
        running_upstream() as upstream,
        running_peer(name, upstream.url) as running,
        asyncio.timeout(TIMEOUT_S),
        aiohttp.ClientSession() as session,
    ):
        subject = Subject(running, upstream, session)
        done = []
        for dialect in running.peer.dialects:
            over = websocket if dialect in OVER_WEBSOCKET else streams
            await over(subject, dialect)
            done.append(dialect.value)
        if running.peer.fans_out:
            await fan_out(subject)
            done.append("fan-out")
        if Dialect.AI_SDK in running.peer.dialects:
            await resume(subject)
            done.append("resume")
        return done


def question(key: str) -> str:
    return f"key={key} tokens={TOKENS} rate={RATE} script=unicode"


async def websocket(subject: Subject, dialect: Dialect) -> None:
    questions = {f"{dialect.value}-{number}": question(f"{dialect.value}-{number}") for number in range(CONVERSATIONS)}
    pieces: dict[str, list[str]] = {conversation_id: [] for conversation_id in questions}
    async with subject.session.ws_connect(websocket_url(subject.running, dialect)) as socket:
        async for conversation_id, piece in websocket_answers(socket, dialect, questions):
            if piece is not None:
                pieces[conversation_id].append(piece)
            elif not all(pieces.values()):
                raise WrongAnswer("an answer ended before another one began: they don't interleave")
    for conversation_id, got in pieces.items():
        await subject.compare(conversation_id, got)


async def streams(subject: Subject, dialect: Dialect) -> None:
    async def one(key: str) -> None:
        answer = stream_answer(subject.session, subject.running, dialect, key, question(key))
        await subject.compare(key, [piece async for piece in answer])

    await asyncio.gather(*(one(f"{dialect.value}-{number}") for number in range(CONVERSATIONS)))


async def fan_out(subject: Subject) -> None:
    """A socket that only subscribed gets what the asking one gets."""
    key, url = "fan-out", websocket_url(subject.running, Dialect.WEBSOCKET)
    async with subject.session.ws_connect(url) as reader, subject.session.ws_connect(url) as asker:
        await reader.send_json({"type": "subscribe", "conversation_id": key})
        if (await reader.receive_json())["type"] != "subscribed":
            raise WrongAnswer("the subscription isn't answered")
        async for _ in websocket_answers(asker, Dialect.WEBSOCKET, {key: question(key)}):
            pass
        followed_all = followed(reader, Dialect.WEBSOCKET, {key})
        await subject.compare(key, [piece async for _, piece in followed_all if piece is not None])


async def resume(subject: Subject) -> None:
    """A reader that left in the middle gets the whole answer again, and so does one that came to listen only."""
    key = "resume"
    answer = stream_answer(subject.session, subject.running, Dialect.AI_SDK, key, question(key))
    for _ in range(RESUMED_AFTER):
        await anext(answer)
    await answer.aclose()
    url = f"http://127.0.0.1:{subject.running.port}/api/chat/{key}/stream"

    async def one() -> None:
        async with subject.session.get(url) as response:
            await subject.compare(key, [piece async for piece in pieces_of(response, Dialect.AI_SDK)])

    await asyncio.gather(one(), one())
