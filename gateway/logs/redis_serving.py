"""Serves the requests of other nodes, each once (`gateway.logs.redis_post` says how they travel)."""

from __future__ import annotations

import asyncio

import structlog
from msgspec import Struct

from gateway.logs.log import LogUnavailable
from gateway.logs.nodes import Handler
from gateway.logs.redis_post import PAYLOAD_BYTES, Outcome, Post, ReplyMessage, RequestMessage, encode
from gateway.logs.redis_wire import Reply

KEEP_S = 60.0
"""So long a reply is remembered, if nothing tells that it arrived."""
MOST_SERVED = 20_000
"""Requests that are being served or whose replies are remembered; more are refused."""
KEPT_BYTES = 16 << 20
"""Of remembered replies. Beyond it the oldest are forgotten, but not that they were given."""
SERVED_UP_S = 1.0
"""What is being served when this node leaves may take so long."""

log_lines = structlog.get_logger(__name__)


class _Served:
    __slots__ = ("at_s", "reply")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.reply: bytes | None = None
        """None: still being served."""


class _Sender(Struct):
    settled: int
    seen_s: float
    served: dict[int, _Served]
    look_at: int = 64
    """How many served are worth a look for settled ones."""


class Serving:
    """The requests that others make of this node. `tick` is to be called about twice a second."""

    def __init__(self, post: Post, handler: Handler) -> None:
        self._post = post
        self._handler = handler
        self._senders: dict[str, _Sender] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._served = 0
        self._kept_bytes = 0
        self._next_look_s = 0.0
        self._leaving = False

    def requested(self, request: RequestMessage) -> None:
        now_s = asyncio.get_running_loop().time()
        sender = self._senders.get(request.sender)
        if sender is None:
            sender = self._senders[request.sender] = _Sender(0, now_s, {})
        sender.seen_s = now_s
        self._settle(sender, request.settled)
        served = sender.served.get(request.id)
        if request.id < sender.settled:
            return  # a late copy
        if served is not None:
            if served.reply is not None:
                self._reply(request.sender, served.reply)
        elif self._leaving:
            self._reply(request.sender, encode(ReplyMessage(request.id, Outcome.GONE, b"")))
        elif self._served >= MOST_SERVED:
            log_lines.error("too many requests of other nodes at once", most=MOST_SERVED)
            self._reply(request.sender, encode(ReplyMessage(request.id, Outcome.FAILED, b"")))
        else:
            served = sender.served[request.id] = _Served(now_s)
            self._served += 1
            task = asyncio.create_task(self._serve(request, served), name="request of a node")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: RequestMessage, served: _Served) -> None:
        outcome, payload = Outcome.DONE, b""
        try:
            payload = await self._handler(request.payload)
            if len(payload) > PAYLOAD_BYTES:
                raise ValueError(f"a reply of {len(payload)} bytes; {PAYLOAD_BYTES} are possible")
        except Exception:
            log_lines.exception("a request of another node failed", node=request.sender)
            outcome, payload = Outcome.FAILED, b""
        served.reply = encode(ReplyMessage(request.id, outcome, payload))
        served.at_s = asyncio.get_running_loop().time()
        self._kept_bytes += len(served.reply)
        if self._kept_bytes > KEPT_BYTES:
            self._forget_replies()
        self._reply(request.sender, served.reply)

    def _reply(self, node_id: str, message: bytes) -> None:
        try:
            self._post.post(node_id, message, _ignored)
        except LogUnavailable:
            pass  # it will be asked for again

    # ------------------------------------------------------------ what is remembered

    def _settle(self, sender: _Sender, settled: int) -> None:
        if settled > sender.settled:
            sender.settled = settled
            if len(sender.served) >= sender.look_at:
                self._drop(sender, [id_ for id_, served in sender.served.items() if served.reply and id_ < settled])
                sender.look_at = max(64, 2 * len(sender.served))

    def _drop(self, sender: _Sender, ids: list[int]) -> None:
        for id_ in ids:
            self._kept_bytes -= len(sender.served.pop(id_).reply or b"")
        self._served -= len(ids)

    def _forget_replies(self) -> None:
        """Half of them, the oldest. Whoever asks again hears that the request failed, and not that it wasn't made."""
        kept = [
            (served.at_s, id_, served)
            for sender in self._senders.values()
            for id_, served in sender.served.items()
            if served.reply
        ]
        for _, id_, served in sorted(kept, key=lambda one: one[0]):
            if self._kept_bytes <= KEPT_BYTES // 2:
                return
            assert served.reply is not None
            self._kept_bytes -= len(served.reply)
            served.reply = encode(ReplyMessage(id_, Outcome.FAILED, b""))
            self._kept_bytes += len(served.reply)

    def tick(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + KEEP_S / 6
        for node_id, sender in list(self._senders.items()):
            old = now_s - KEEP_S
            self._drop(sender, [id_ for id_, one in sender.served.items() if one.reply and one.at_s < old])
            if not sender.served and sender.seen_s < old:
                del self._senders[node_id]

    async def close(self) -> None:
        """Takes nothing more, and gives what is being served `SERVED_UP_S`. Idempotent."""
        self._leaving = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=SERVED_UP_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


def _ignored(reply: Reply) -> None:
    """Whoever waits for what was posted asks again if it is lost."""
