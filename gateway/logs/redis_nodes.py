"""The other nodes, over Redis: their beats in one hash, one channel for each node, and one for each conversation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from gateway.logs import redis_post, redis_published
from gateway.logs.log import Key, LogUnavailable
from gateway.logs.membership import BEAT_S, Membership
from gateway.logs.nodes import Follower, Handler
from gateway.logs.redis_asking import Asking
from gateway.logs.redis_errors import explained
from gateway.logs.redis_hub import Hub
from gateway.logs.redis_keys import member, partition, slot_of
from gateway.logs.redis_link import Call, RedisLink
from gateway.logs.redis_post import ReplyMessage
from gateway.logs.redis_serving import Serving
from gateway.logs.redis_wire import Answered
from gateway.logs.segment import SegmentError

NODES = "nodes"
"""The tag of all that concerns the nodes: in a cluster one server holds it."""
BEAT_ANSWER_S = 1.0
FORGET_S = 600
"""So long a silent node stays in the table."""

# A beat works when memory is full, too: it needs none, and a node that can't beat looks dead to one that can.
# Nothing follows upon having left, not even a beat that was under way.
_BEAT = b"""#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local sign = ARGV[2] == 'leave' and -1 or 1
local mine = redis.call('HGET', KEYS[1], ARGV[1])
if not mine or tonumber(mine) > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', sign * now))
end
local rows = redis.call('HGETALL', KEYS[1])
for i = 2, #rows, 2 do
  if math.abs(tonumber(rows[i])) < now - tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], rows[i - 1])
  end
end
return rows
"""

log_lines = structlog.get_logger(__name__)


class RedisNodes:
    """`Nodes` on a link that is open, and that somebody else closes after this."""

    def __init__(self, link: RedisLink, node_id: str) -> None:
        self.node_id = node_id
        self.on_lost: Callable[[str], None] | None = None
        self.on_away: Callable[[], None] | None = None
        self._link = link
        self._slot = slot_of(NODES)
        self._table = link.names.tagged(NODES, "beats")
        self._hub = Hub(link)
        self._members = Membership(node_id)
        self._asking = Asking(node_id, self, self.is_lost)
        self._serving: Serving | None = None
        self._beats: asyncio.Task[None] | None = None

    async def open(self, handler: Handler) -> None:
        self._serving = Serving(self, handler)
        self._hub.start()
        try:
            # First the channel: whoever sees this node in the table can ask it.
            await self._hub.subscribe(self._channel_of(self.node_id), self._slot, self)
            await self._beat()
        except BaseException:
            await self.close()
            raise
        self._beats = asyncio.create_task(self._keep_beating(), name="beats")

    async def close(self) -> None:
        beats, self._beats = self._beats, None
        if self._serving is not None:
            await self._serving.close()
        if beats is not None:
            beats.cancel()
            await asyncio.wait([beats])
            try:
                await self._tell(b"leave")
            except LogUnavailable as problem:
                log_lines.warning("others will find this node lost: it can't say that it left", problem=str(problem))
        await self._hub.close()

    # ------------------------------------------------------------ following

    async def follow(self, key: Key, follower: Follower) -> None:
        channel, slot = self._channel_of_conversation(key)
        await self._hub.subscribe(channel, slot, _Followed(key, follower))

    def unfollow(self, key: Key) -> None:
        self._hub.unsubscribe(self._channel_of_conversation(key)[0])

    async def followed(self, keys: Sequence[Key]) -> list[bool]:
        channels = [self._channel_of_conversation(key) for key in keys]
        calls = [Call(slot, None, [], ["PUBSUB", "SHARDNUMSUB", channel]) for channel, slot in channels]
        return [bool(count) for _, count in await self._link.call_all(calls, read=True)]

    def _channel_of_conversation(self, key: Key) -> tuple[bytes, int]:
        name = member(key)
        number = partition(name)
        return self._link.names.log(number, name), slot_of(number)

    # ------------------------------------------------------------ who is there

    def is_lost(self, node_id: str) -> bool | None:
        return self._members.is_lost(node_id, time.monotonic())

    def others(self) -> list[str]:
        return self._members.live(time.monotonic())

    async def _keep_beating(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            next_s = loop.time() + BEAT_S
            try:
                await self._beat()
            except LogUnavailable:
                pass  # the log says so, too; what matters here is that nobody is found lost meanwhile
            except Exception:
                log_lines.exception("a beat broke")
            self._asking.tick()
            if self._serving is not None:
                self._serving.tick()
            await asyncio.sleep(next_s - loop.time())

    async def _beat(self) -> None:
        asked_s = time.monotonic()
        try:
            table = await self._tell(b"beat")
        except LogUnavailable:
            self._members.failed()
            raise
        for node_id in self._members.beaten(table, asked_s=asked_s, now_s=time.monotonic()):
            log_lines.info("a node is gone", node=node_id)
            self._asking.gone(node_id)
            if self.on_lost is not None:
                self.on_lost(node_id)
        if self._members.was_away:
            log_lines.warning("this node was silent; others may have taken over what it was doing")
            if self.on_away is not None:
                self.on_away()

    async def _tell(self, what: bytes) -> dict[str, int]:
        """Writes our beat, or that we leave, and returns the table."""
        try:
            async with asyncio.timeout(BEAT_ANSWER_S):
                rows: Any = await self._hub.ask(
                    self._slot, b"EVAL", _BEAT, 1, self._table, self.node_id, what, FORGET_S * 1000
                )
        except TimeoutError as problem:
            raise explained(problem, str(self._link)) from None
        if isinstance(rows, Exception):
            raise explained(rows, str(self._link))
        return {rows[at].decode(): int(rows[at + 1]) for at in range(0, len(rows), 2)}

    # ------------------------------------------------------------ requests

    async def request(self, node_id: str, payload: bytes, timeout_s: float) -> bytes:
        return await self._asking.request(node_id, payload, timeout_s)

    def post(self, node_id: str, message: bytes, answered: Answered) -> None:
        self._hub.send(self._slot, answered, b"SPUBLISH", self._channel_of(node_id), message)

    def problem(self) -> LogUnavailable | None:
        return self._hub.problem(self._slot)

    def message(self, payload: bytes) -> None:
        """On this node's own channel."""
        try:
            message = redis_post.decode(payload)
        except msgspec.MsgspecError as problem:
            log_lines.warning("a message that isn't a node's", problem=str(problem))
            return
        if isinstance(message, ReplyMessage):
            self._asking.replied(message)
        elif self._serving is not None:
            self._serving.requested(message)

    def missed(self) -> None:
        self._asking.again()

    def _channel_of(self, node_id: str) -> bytes:
        return self._link.names.tagged(NODES, f"n:{node_id}")


class _Followed:
    """Turns the messages of one channel into what a follower is told."""

    __slots__ = ("_follower", "_key")

    def __init__(self, key: Key, follower: Follower) -> None:
        self._key = key
        self._follower = follower

    def message(self, payload: bytes) -> None:
        if payload == redis_published.ERASED:
            self._follower.erased()
            return
        try:
            after, entries = redis_published.decode(payload, self._key.conversation_id)
        except SegmentError as problem:
            log_lines.warning("a published append can't be read", problem=str(problem))
            self._follower.missed()
            return
        self._follower.received(after, entries)

    def missed(self) -> None:
        self._follower.missed()
