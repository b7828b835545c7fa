"""The seam to the other nodes: who is alive, what they append to conversations that readers here follow, and requests
to them.

A node is one gateway process. `Alone` stands in this file, for the engines that only one process can use; those of
Redis stand beside it. Safety doesn't hang on anything here: that only a conversation's owner can append is the log's
own rule. What is seen here decides only when somebody else may become the owner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from gateway.logs.log import Key, Position
from protocol.frames import Entry

Handler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""Serves a request of another node: its payload in, the reply's payload out. An exception becomes an error reply.

One request is served once, but who gave up waiting may ask again: what a handler does should be idempotent."""


class NodeGone(Exception):
    """Nobody serves that node's requests. Unless the node died over it, this one wasn't executed, and won't be."""


class RequestFailed(Exception):
    """The other node's handler raised; it knows why (its log says), and nothing of that is told here."""


class Follower(Protocol):
    """One conversation's view on this node, told what other nodes write. All calls come on the event loop, must not
    raise and must not await: there is no queue between the connection and a follower."""

    def received(self, after: Position, entries: list[Entry]) -> None:
        """`entries`, in order and all of one epoch, are in the log; `after` is the place of the one before them.
        The same may come twice, and after `missed` also something that the log showed already."""
        ...

    def erased(self) -> None:
        """The conversation was deleted or has expired."""
        ...

    def missed(self) -> None:
        """The subscription was cut and stands again: something may have been missed, so read the log."""
        ...


class Nodes(Protocol):
    """The other nodes, as this one sees them."""

    node_id: str
    """Of this process; made new at every start, so a node that stopped never comes back."""
    on_lost: Callable[[str], None] | None
    """Called on the event loop, once for each node that is found lost. Must not raise."""
    on_away: Callable[[], None] | None
    """Called on the event loop when this node is back after it was silent for so long that others may have found it
    lost. Must not raise."""

    async def open(self, handler: Handler) -> None:
        """Joins: from here on others see this node. Raises `LogUnavailable`. If it is cancelled, `close`."""
        ...

    async def close(self) -> None:
        """Leaves in an orderly way: requests of others are no longer served, and others know at once that this node
        is gone. Idempotent; doesn't raise when the engine can't be reached (others then find this node lost)."""
        ...

    async def follow(self, key: Key, follower: Follower) -> None:
        """On return, every later commit of `key` by another node is delivered to `follower`, in order; read the log
        after it, not before. A node's own commits may be delivered, too. One follower a key: a second one replaces
        the first. Raises `LogUnavailable`. Safe to cancel: then nothing is followed."""
        ...

    def unfollow(self, key: Key) -> None:
        """Nothing more is delivered for `key`. What has to be told to the engine is told in the background."""
        ...

    async def followed(self, keys: Sequence[Key]) -> list[bool]:
        """For each conversation whether another node follows it now, as far as the engine knows (Redis: `PUBSUB
        SHARDNUMSUB` of its channel). Raises `LogUnavailable`. Safe to cancel."""
        ...

    def is_lost(self, node_id: str) -> bool | None:
        """Whether that node ended, with or without a word. None: not known yet, so ask again."""
        ...

    def others(self) -> list[str]:
        """The nodes that are alive, without this one."""
        ...

    async def request(self, node_id: str, payload: bytes, timeout_s: float) -> bytes:
        """The reply of that node's handler. The request is executed at most once.

        Raises `NodeGone` (within about a second; `is_lost` may not know yet), `RequestFailed`, `TimeoutError` and
        `LogUnavailable` (then it may have been executed); `ValueError` for a payload that is too large to send. Safe
        to cancel; the other node isn't told.
        """
        ...


class Alone:
    """No other nodes: the engine belongs to one process."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.on_lost: Callable[[str], None] | None = None
        self.on_away: Callable[[], None] | None = None

    async def open(self, handler: Handler) -> None:
        """Nobody will ask."""

    async def close(self) -> None:
        """Nobody has to be told."""

    async def follow(self, key: Key, follower: Follower) -> None:
        """Nobody else appends."""

    def unfollow(self, key: Key) -> None:
        """Nothing was followed."""

    async def followed(self, keys: Sequence[Key]) -> list[bool]:
        return [False] * len(keys)

    def is_lost(self, node_id: str) -> bool | None:
        return node_id != self.node_id

    def others(self) -> list[str]:
        return []

    async def request(self, node_id: str, payload: bytes, timeout_s: float) -> bytes:
        raise NodeGone(node_id)
