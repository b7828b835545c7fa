"""Asks other nodes: this node's own requests (`gateway.logs.redis_post` says how they travel)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count

from gateway.logs.log import LogUnavailable
from gateway.logs.nodes import NodeGone, RequestFailed
from gateway.logs.redis_post import PAYLOAD_BYTES, Outcome, Post, ReplyMessage, RequestMessage, encode
from gateway.logs.redis_wire import Reply

AGAIN_S, AGAIN_MOST_S = 1.0, 8.0
"""Without a reply a request is sent again: after the first, then after twice as long each time, up to the second."""
UNREAD_AGAIN_S = 0.1
GONE_S = 1.0
"""A node whose channel nobody reads for so long is gone. A shorter while is a connection that is made anew."""


class Asked:
    """A request of ours that waits for its reply."""

    __slots__ = ("again_s", "answered", "id", "node_id", "payload", "sent_s", "unread_since_s")

    def __init__(self, id_: int, node_id: str, payload: bytes) -> None:
        self.id = id_
        self.node_id = node_id
        self.payload = payload
        self.sent_s: float | None = None
        """None: not since the connection stands."""
        self.again_s = AGAIN_S
        self.unread_since_s: float | None = None
        self.answered: asyncio.Future[ReplyMessage | Exception] = asyncio.get_running_loop().create_future()

    def answer(self, answer: ReplyMessage | Exception) -> None:
        if not self.answered.done():
            self.answered.set_result(answer)


class Asking:
    """The requests that this node makes. `tick` is to be called about twice a second."""

    def __init__(self, node_id: str, post: Post, is_lost: Callable[[str], bool | None]) -> None:
        self._node_id = node_id
        self._is_lost = is_lost
        self._post = post
        self._ids = count(1)
        self._waiting: dict[int, Asked] = {}
        self._of_node: dict[str, dict[int, Asked]] = {}
        """The same by node, in the order of ids."""

    async def request(self, node_id: str, payload: bytes, timeout_s: float) -> bytes:
        """As `Nodes.request`."""
        if len(payload) > PAYLOAD_BYTES:
            raise ValueError(f"a request of {len(payload)} bytes; {PAYLOAD_BYTES} are possible")
        asked = Asked(next(self._ids), node_id, payload)
        of_node = self._of_node.setdefault(node_id, {})
        self._waiting[asked.id] = of_node[asked.id] = asked
        try:
            self._send(asked)
            async with asyncio.timeout(timeout_s):
                answer = await asked.answered
        except TimeoutError:
            if asked.unread_since_s is not None:
                raise NodeGone(node_id) from None
            raise
        finally:
            del self._waiting[asked.id], of_node[asked.id]
            if not of_node:
                self._of_node.pop(node_id, None)
        if isinstance(answer, Exception):
            raise answer
        if answer.outcome == Outcome.GONE:
            raise NodeGone(node_id)
        if answer.outcome != Outcome.DONE:
            raise RequestFailed(node_id)
        return answer.payload

    def _send(self, asked: Asked) -> None:
        if asked.answered.done() or asked.id not in self._waiting:
            return
        if (problem := self._post.problem()) is not None:
            asked.answer(problem)
            return
        settled = next(iter(self._of_node[asked.node_id]))
        message = encode(RequestMessage(asked.id, self._node_id, settled, asked.payload))
        try:
            self._post.post(asked.node_id, message, partial(self._posted, asked))
        except LogUnavailable:
            asked.sent_s = None  # it is connecting: `tick` or `again` come when that is done or has failed
        else:
            asked.sent_s = asyncio.get_running_loop().time()

    def _posted(self, asked: Asked, readers: Reply) -> None:
        if isinstance(readers, Exception):
            asked.sent_s = None
        elif readers:
            asked.unread_since_s = None
        else:
            loop = asyncio.get_running_loop()
            asked.unread_since_s = asked.unread_since_s or loop.time()
            if self._is_lost(asked.node_id) or loop.time() - asked.unread_since_s >= GONE_S:
                asked.answer(NodeGone(asked.node_id))
            else:
                loop.call_later(UNREAD_AGAIN_S, self._send, asked)

    def replied(self, reply: ReplyMessage) -> None:
        if (asked := self._waiting.get(reply.id)) is not None:
            asked.answer(reply)

    def again(self) -> None:
        """Replies may have been missed: asks for all of them again."""
        for asked in self._waiting.values():
            self._send(asked)

    def tick(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for asked in self._waiting.values():
            if asked.sent_s is None:
                self._send(asked)
            elif now_s - asked.sent_s >= asked.again_s:
                asked.again_s = min(AGAIN_MOST_S, 2 * asked.again_s)
                self._send(asked)

    def gone(self, node_id: str) -> None:
        """That node won't reply any more."""
        for asked in self._of_node.get(node_id, {}).values():
            asked.answer(NodeGone(node_id))
