"""What all connections of a process share."""

from __future__ import annotations

import random
from enum import Enum
from typing import NamedTuple

import aiohttp

from benchmarks.load.dispatch import Dispatcher
from benchmarks.load.plan import Plan
from benchmarks.load.tally import Tally
from benchmarks.load.target import Target

NOT_ANSWERED = "This is a load test; nobody is here to answer the call."
DELETES_AT_ONCE = 16


class State(Enum):
    """Of a connection. WAITING connects again by itself; IDLE is for SSE, where a connection lives with an answer."""

    WAITING = "waiting to connect again"
    CONNECTING = "connecting"
    OPEN = "open"
    IDLE = "idle"
    STOPPED = "stopped"


class Scene(NamedTuple):
    plan: Plan
    target: Target
    tally: Tally
    dispatcher: Dispatcher
    chance: random.Random
    rest: Rest


class Rest:
    """The few plain requests that a run makes besides."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._session: aiohttp.ClientSession | None = None

    async def answer_call(self, number: int, conversation_id: str, call_id: str) -> None:
        """Ends a function call with an error, as connection `number`. Raises `aiohttp.ClientError`."""
        body = {"call_id": call_id, "error": NOT_ANSWERED}
        await self._request("POST", number, f"/api/conversations/{conversation_id}/function_results", body)

    async def delete(self, number: int, conversation_id: str) -> int:
        """Erases a conversation; returns the HTTP status. Raises `aiohttp.ClientError`."""
        return await self._request("DELETE", number, f"/api/conversations/{conversation_id}", None)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _request(self, method: str, number: int, path: str, body: object) -> int:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._target.tls or True, limit=DELETES_AT_ONCE)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30))
        token = self._target.token(number)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._session.request(method, self._target.base + path, json=body, headers=headers) as answer:
            await answer.read()
            return answer.status
