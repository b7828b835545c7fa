"""`redis:`, the log that several nodes share: on Redis or Valkey 7 or later, one server or a cluster of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gateway.logs import fencing, redis_published, segment
from gateway.logs.log import Append, Claim, Head, Key, LogUnavailable, new_node_id
from gateway.logs.redis_appends import Group, Stager, Verdict, settle
from gateway.logs.redis_errors import Refused
from gateway.logs.redis_keys import PARTITIONS, key_of, slot_of
from gateway.logs.redis_lane import Part
from gateway.logs.redis_link import Call, RedisLink, Server
from gateway.logs.redis_meta import claim_of, epoch_at, head_of
from gateway.logs.redis_scripts import CLAIM, ERASE, PROBE, READ, RELEASE, SINCE
from protocol.frames import Entry

TOMBSTONE_S = 30 * 86400.0
CLAIM_S = 3600.0
"""How long a claim of a conversation is kept that nothing is written to."""
MARK_S = 0.5
"""In which a node that starts for the first time marks all partitions."""
READ_SEGMENTS = 512
"""Bound of one read, for which the server takes some 0.4 ms."""
EXPIRE_AT_ONCE = 64
"""Conversations of a partition that one step of `expire` erases."""
_ANOTHERS = 2
"""What `erase.lua` says of another node's."""


class RedisLog:
    """See `Log`. A conversation is a stream, and every append one entry of it: a segment with the id `epoch-seq`.

    What is lost, of what `commit` has said is in the log:

    - when a gateway is killed: nothing;
    - when the server is killed or its machine loses power: what it hadn't yet written to its append-only file. With
      `appendfsync always` that is nothing, with `everysec` about a second, and without `appendonly yes` all since
      its last snapshot, or all;
    - at a failover to a replica: what the replica didn't have yet, mostly some milliseconds.

    What is lost is the end of a conversation. Its owner's next append doesn't follow the head then, is refused, and
    a new epoch begins, so that readers notice. After a loss of everything, also of conversations that nobody owned,
    new ones begin in a new epoch, too.

    Only the node that claimed a conversation can append, or any when it is nobody's. The server checks that together
    with the append, so a node that was taken for lost and wakes up can't write anything.

    An erased conversation leaves a tombstone with its last epoch, for 30 days or for the retention if that is
    longer: any cursor that is around has to be older than that to be taken for one of a new conversation.

    Several appends are one call of a script, all calls of a commit one round trip. All methods are safe to cancel.
    A server that holds other data too keeps it apart by the prefix.
    """

    def __init__(self, url: str, *, retention_s: float = 0, node_id: str | None = None) -> None:
        """Raises `ValueError` for a wrong URL."""
        self.unclean = False
        self.node_id = node_id or new_node_id()
        self.link = RedisLink(url)
        self._tombstone_ms = int(max(TOMBSTONE_S, retention_s) * 1000)
        self._stager: Stager | None = None

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        await self.link.open()
        try:
            await self._note_loss()
        except BaseException:
            await self.link.close()
            raise
        self._stager = Stager(self.link.names, self.node_id, clustered=self.link.clustered)

    async def _note_loss(self) -> None:
        """Each partition holds a mark from the first start on. Where it is missing, though others have theirs or a
        node is running, all has been lost, and new conversations begin in a new epoch for a time: some may have been
        there before (SPEC.md section 2.2)."""
        names = self.link.names
        missing = await self._unmarked()
        if 0 < len(missing) < PARTITIONS:
            await asyncio.sleep(MARK_S)  # another node that starts for the first time may be just at it
            missing = await self._unmarked()
        value = "0" if len(missing) == PARTITIONS else ""
        together = [[number] for number in missing] if self.link.clustered else [missing] * bool(missing)
        await self.link.call_all(
            [Call(slot_of(some[0]), SINCE, [names.since(number) for number in some], [value]) for some in together]
        )

    async def _unmarked(self) -> list[int]:
        marks = await self._of_partitions(range(PARTITIONS), "GET", self.link.names.since)
        return [number for number, mark in enumerate(marks) if mark is None]

    async def close(self) -> None:
        """Conversations that are still this node's stay so: `release` them before."""
        self._stager = None
        await self.link.close()

    async def ping(self) -> None:
        self._opened()
        partitions: dict[Server, int] = {}
        for number in range(PARTITIONS):
            partitions.setdefault(self.link.server(slot_of(number)), number)
        await self.link.call_all(
            [Call(slot_of(number), PROBE, [self.link.names.open(number)], []) for number in partitions.values()]
        )

    def domain(self, key: Key) -> str:
        """The server."""
        if not self.link.clustered:
            return ""
        try:
            return self.link.server(self._opened().place(key).slot).name
        except LogUnavailable:
            return ""

    # ------------------------------------------------------------ whose it is

    async def head(self, key: Key) -> Head:
        place = self._opened().place(key)
        return head_of(await self.link.call(Call(place.slot, None, [], ["HGETALL", place.meta]), read=True))

    async def claim(self, key: Key, *, instead_of: str | None = None) -> Claim:
        stager = self._opened()
        place = stager.place(key)
        keys = [*stager.keys(place)[1:4], self.link.names.since(place.partition)]
        args: list[Part] = [self.node_id, instead_of or "", place.member, int(CLAIM_S * 1000), self._tombstone_ms]
        return claim_of(await self.link.call(Call(place.slot, CLAIM, keys, args)), self.node_id)

    async def release(self, key: Key) -> None:
        stager = self._opened()
        place = stager.place(key)
        await self.link.call(Call(place.slot, RELEASE, stager.keys(place)[1:4], [self.node_id, place.member]))

    async def unfinished(self, owner: str | None = None) -> list[Key]:
        self._opened()
        names, wanted = self.link.names, None if owner is None else owner.encode()
        partitions: Sequence[int] = range(PARTITIONS)
        if wanted is not None:
            has = await self._of_partitions(partitions, "HEXISTS", names.owners, wanted)
            partitions = [number for number in partitions if has[number]]
        return [
            key_of(member)
            for fields in await self._of_partitions(partitions, "HGETALL", names.open)
            for member, whose in zip(fields[::2], fields[1::2], strict=True)
            if wanted is None or whose == wanted
        ]

    async def owners(self) -> set[str]:
        self._opened()
        found = await self._of_partitions(range(PARTITIONS), "HKEYS", self.link.names.owners)
        return {owner.decode() for owners in found for owner in owners} - {""}

    async def _of_partitions(
        self, partitions: Sequence[int], command: str, name: Callable[[int], bytes], *args: Part
    ) -> list[Any]:
        """What a command that reads says of each partition's key."""
        calls = [Call(slot_of(number), None, [], [command, name(number), *args]) for number in partitions]
        return await self.link.call_all(calls, read=True)

    # ------------------------------------------------------------ appending

    async def commit(self, batch: Sequence[Append]) -> list[bool]:
        for append in batch:
            fencing.check(append)
        stager = self._opened()
        if not batch:
            return []
        verdicts = await self._append(stager, batch)
        if verdicts.count(Verdict.WRITTEN) == len(batch):
            return [True] * len(batch)
        return [await self._is_in_log(*each) for each in zip(batch, verdicts, strict=True)]

    async def _append(self, stager: Stager, batch: Sequence[Append]) -> list[Verdict | None]:
        verdicts: list[Verdict | None] = [None] * len(batch)
        # Appends to one conversation have to be made in order, and calls of two scripts are not.
        whole = len({append.key for append in batch}) < len(batch)
        await self._call(stager.groups(batch, range(len(batch)), whole=whole), verdicts)
        if None in verdicts:
            others = [number for number, verdict in enumerate(verdicts) if verdict is None]
            await self._call(stager.groups(batch, others, whole=True), verdicts)
        return verdicts

    async def _call(self, groups: Sequence[Group], verdicts: list[Verdict | None]) -> None:
        try:
            settle(groups, await self.link.call_all([group.call for group in groups]), verdicts)
        except Refused as problem:
            # Trying again won't help. The caller finds out which append it is.
            raise RuntimeError(str(problem)) from None

    async def _is_in_log(self, append: Append, verdict: Verdict | None) -> bool:
        if verdict is not Verdict.COMPARE:
            return verdict is Verdict.WRITTEN
        entries, at = append.entries, 0
        limit_bytes = sum(map(segment.content_bytes, entries))
        while at < len(entries):
            found = (await self.read(append.key, append.after.seq + at, limit_bytes))[: len(entries) - at]
            if not found or found != list(entries[at : at + len(found)]):
                return False
            at += len(found)
        return True

    # ------------------------------------------------------------ reading

    async def read(self, key: Key, after: int, limit_bytes: int) -> list[Entry]:
        place = self._opened().place(key)
        call = Call(place.slot, READ, [place.log, place.meta], [after, limit_bytes, READ_SEGMENTS])
        entries: list[Entry] = []
        for packed in await self.link.call(call, read=True):
            entries += redis_published.decode(packed, key.conversation_id, after)[1]
        return segment.cut(entries, limit_bytes)

    async def epoch_at(self, key: Key, seq: int) -> int | None:
        place = self._opened().place(key)
        fence, epochs = await self.link.call(Call(place.slot, None, [], ["HMGET", place.meta, "f", "e"]), read=True)
        return epoch_at(fence, epochs, seq)

    # ------------------------------------------------------------ erasing

    async def erase(self, key: Key) -> bool:
        return await self._erase([key], "") != [_ANOTHERS]

    async def expire(self, before_ms: int, *, leave_to: Sequence[str] = ()) -> list[Key]:
        """In steps, with other commands in between. Cancelled, it leaves the rest for the next time."""
        self._opened()
        erased: list[Key] = []
        left = dict.fromkeys(range(PARTITIONS), 0)
        """Of the partitions that aren't done: how many of their aged ones stay."""
        while left:
            found = await self.link.call_all([self._aged(*place, before_ms) for place in left.items()], read=True)
            aged = {number: [key_of(name) for name in names] for number, names in zip(left, found, strict=True)}
            due = [key for keys in aged.values() for key in keys]
            gone = [key for key, how in zip(due, await self._erase(due, before_ms, leave_to), strict=True) if how]
            erased += gone
            left = {
                number: left[number] + len(set(keys).difference(gone))
                for number, keys in aged.items()
                if len(keys) == EXPIRE_AT_ONCE
            }
        return erased

    def _aged(self, number: int, skip: int, before_ms: int) -> Call:
        name = self.link.names.aged(number)
        command: list[Part] = ["ZRANGE", name, "-inf", f"({before_ms}", "BYSCORE", "LIMIT", skip, EXPIRE_AT_ONCE]
        return Call(slot_of(number), None, [], command)

    async def _erase(self, keys: Sequence[Key], before_ms: int | str, leave_to: Sequence[str] = ()) -> list[int]:
        """Erases those that aged before the time, or, if that is "", all that aren't another node's. Returns what
        `erase.lua` says of each."""
        others = "".join(f"{node_id} " for node_id in leave_to)
        stager = self._opened()
        places = [stager.place(key) for key in keys]
        calls = [
            Call(
                place.slot,
                ERASE,
                stager.keys(place),
                [before_ms, self._tombstone_ms, redis_published.ERASED, others, self.node_id, place.member],
            )
            for place in places
        ]
        replies = await self.link.call_all(calls)
        return [how for [how] in replies]

    def _opened(self) -> Stager:
        if self._stager is None:
            raise LogUnavailable(f"the log on Redis at {self.link} isn't open")
        return self._stager
