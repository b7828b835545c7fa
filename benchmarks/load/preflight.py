"""One look at the deployment before the load, so that what can't work is said in words, and not in ten thousand
errors."""

from __future__ import annotations

import asyncio
import time

from benchmarks.load.advice import about
from benchmarks.load.http_stream import HttpStream
from benchmarks.load.plan import Plan
from benchmarks.load.target import Target
from benchmarks.load.unreachable import Unwelcome, error_code, refusal_reason, unreachable_reason
from benchmarks.load.websocket import Answer, WebSocket
from protocol.codec import BadFrame
from protocol.frames import Auth, Welcome


class Unusable(Exception):
    """The run makes no sense; the message says why, and what to do."""


async def look(plan: Plan) -> str:
    """Connects once, as the run will. Returns what was found, in words. Raises `Unusable`."""
    try:
        target = Target(plan)
        addresses = await target.resolve()
        async with asyncio.timeout(plan.connect_within_s):
            found = await (_ask if plan.transport == "sse" else _greet)(plan, target)
    except (OSError, TimeoutError) as problem:
        reason = unreachable_reason(problem)
        raise Unusable(f"can't reach {plan.url}: {reason}. {about(reason)}".rstrip()) from None
    spread = f", {len(addresses)} addresses" if len(addresses) > 1 else ""
    return f"{found}{spread}"


async def _greet(plan: Plan, target: Target) -> str:
    request, key = target.upgrade(0)
    greeting = _Greeting(plan, target)
    socket = greeting.socket = WebSocket(greeting, request, key, binary=target.codec.binary)
    began = time.monotonic()
    try:
        await target.connect(lambda: socket)
        welcome = await greeting.welcome
    finally:
        socket.close()
    took_ms = (time.monotonic() - began) * 1e3
    allowed = welcome.limits.get("max_conversations_per_connection", plan.conversations)
    if plan.conversations > allowed:
        raise Unusable(
            f"this gateway lets a connection follow {allowed:,} conversations, not {plan.conversations:,}: fewer "
            "--conversations and more --connections, or raise its MAX_CONVERSATIONS_PER_CONNECTION"
        )
    return f"a gateway that speaks {welcome.protocol}, welcome after {took_ms:.1f} ms"


class _Greeting:
    """A handler that waits for `welcome`."""

    def __init__(self, plan: Plan, target: Target) -> None:
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.socket: WebSocket | None = None
        self._plan = plan
        self._target = target

    def opened(self) -> None:
        token = self._target.token(0)
        if token and self._plan.token_frame and self.socket is not None:
            self.socket.send([self._target.codec.encode(Auth(token=token))])

    def received(self, payload: bytes, now: float) -> None:
        try:
            frame = self._target.codec.decode_server(payload)
        except BadFrame as problem:
            self._fail(Unwelcome(f"it doesn't speak this protocol ({problem.message})"))
            return
        if isinstance(frame, Welcome) and not self.welcome.done():
            self.welcome.set_result(frame)

    def read(self, size_bytes: int, now: float) -> None: ...

    def closed(self, code: int, reason: str, refusal: Answer | None) -> None:
        self._fail(Unwelcome(f"closed with {code}" if refusal is None else refusal_reason(refusal)))

    def _fail(self, problem: Unwelcome) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(problem)


async def _ask(plan: Plan, target: Target) -> str:
    """Asks for a conversation that can't be there: a gateway says so in its own words."""
    question = _Question()
    stream = HttpStream(question)
    began = time.monotonic()
    try:
        await target.connect(lambda: stream)
        stream.request(target.attach(0, f"load-{plan.run_id}-look", 0, 0))
        status, body = await question.answer
    finally:
        stream.abandon()
    if error_code(body) != "NOT_FOUND":
        raise Unwelcome(f"HTTP {status} {error_code(body)}".rstrip())
    return f"a gateway, which answered after {(time.monotonic() - began) * 1e3:.1f} ms"


class _Question:
    """A handler that waits for one plain answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def event(self, cursor: bytes, data: bytes, now: float) -> None: ...

    def read(self, size_bytes: int, now: float) -> None: ...

    def answered(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result((status, body))

    def closed(self, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(Unwelcome("not HTTP"))
