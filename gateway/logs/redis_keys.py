"""Names of keys and channels. Everything of one partition hashes to one slot of a cluster, by its `{tag}`.

A conversation belongs to one of `PARTITIONS` partitions. So a script may touch several conversations of a partition,
and its indexes, at once.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

from redis.crc import key_slot

from gateway.logs.log import Key

PARTITIONS = 256
"""Part of the stored layout: another number would look for conversations where they aren't."""


def member(key: Key) -> bytes:
    """Names a conversation within its partition. An id holds no colon, an owner may."""
    return f"{key.owner}:{key.conversation_id}".encode("utf-8", "surrogatepass")


def key_of(member: bytes) -> Key:
    owner, _, conversation_id = member.decode("utf-8", "surrogatepass").rpartition(":")
    return Key(owner, conversation_id)


def partition(member: bytes) -> int:
    return crc32(member) % PARTITIONS


@lru_cache(maxsize=PARTITIONS + 16)
def slot_of(tag: str | int) -> int:
    """The cluster's slot of all names with this tag: a partition's number, or another word."""
    slot: int = key_slot(str(tag).encode())
    return slot


class Names:
    """The names below one prefix."""

    def __init__(self, prefix: str) -> None:
        self._tagged = [f"{prefix}:{{{number}}}:".encode() for number in range(PARTITIONS)]
        self._prefix = prefix

    def log(self, partition: int, member: bytes) -> bytes:
        """The stream of a conversation's segments; and the sharded channel on which they are published."""
        return self._tagged[partition] + b"log:" + member

    def meta(self, partition: int, member: bytes) -> bytes:
        """The hash of what else is known of it."""
        return self._tagged[partition] + b"meta:" + member

    def open(self, partition: int) -> bytes:
        """The hash of the partition's conversations with open turns, and whose they are."""
        return self._tagged[partition] + b"open"

    def owners(self, partition: int) -> bytes:
        """The hash of how many of those each node has; "" stands for nobody."""
        return self._tagged[partition] + b"owners"

    def aged(self, partition: int) -> bytes:
        """The sorted set of the partition's conversations without open turns, by the time of their last entry."""
        return self._tagged[partition] + b"aged"

    def since(self, partition: int) -> bytes:
        """When the partition may have lost what it had (Unix seconds); 0: not that anybody knows."""
        return self._tagged[partition] + b"since"

    def tagged(self, tag: str, name: str) -> bytes:
        """A name of something else, for instance of the nodes."""
        return f"{self._prefix}:{{{tag}}}:{name}".encode()
