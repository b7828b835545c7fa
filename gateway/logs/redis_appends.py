"""Turns a batch of appends into calls of scripts, and their replies into verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from gateway.logs import fencing, redis_published
from gateway.logs.log import Append, Key
from gateway.logs.redis_keys import Names, member, partition, slot_of
from gateway.logs.redis_lane import Part, Reply, Script
from gateway.logs.redis_link import Call
from gateway.logs.redis_scripts import APPEND, TOKENS
from protocol.frames import Done, Entry, Error, Message, Token

CALL_APPENDS = 256
CALL_BYTES = 1 << 20
"""Bounds of one call, during which the server does nothing else: some 2 ms."""
PLACES = 16384
"""Conversations whose names are remembered; for others they are made again."""


class Verdict(IntEnum):
    """As `append.lua` returns them."""

    REFUSED = 0
    WRITTEN = 1
    COMPARE = 2
    """Refused, but it may be there already: its entries have to be compared."""


_VERDICTS = list(Verdict)


class Place(NamedTuple):
    """Where a conversation is."""

    partition: int
    slot: int
    member: bytes
    log: bytes
    meta: bytes


class Group:
    """What goes into one call."""

    __slots__ = ("args", "keys", "numbers", "script", "size_bytes", "slot")

    def __init__(self, slot: int, script: Script, args: list[Part]) -> None:
        self.slot = slot
        self.script = script
        self.keys: list[bytes] = []
        self.args = args
        self.numbers: list[int] = []
        """Of the appends in their batch."""
        self.size_bytes = 0

    def takes(self, number: int, size_bytes: int) -> bool:
        """Makes room for an append of that size, if there is any."""
        if self.numbers and (self.size_bytes + size_bytes > CALL_BYTES or len(self.numbers) == CALL_APPENDS):
            return False
        self.numbers.append(number)
        self.size_bytes += size_bytes
        return True

    @property
    def call(self) -> Call:
        return Call(self.slot, self.script, self.keys, self.args)


class Stager:
    """Knows the names of keys, and what a call has to hold."""

    def __init__(self, names: Names, node_id: str, *, clustered: bool) -> None:
        self._names = names
        self._node_id = node_id
        self._clustered = clustered
        self.place = lru_cache(maxsize=PLACES)(self._place)

    def _place(self, key: Key) -> Place:
        name = member(key)
        number = partition(name)
        names = self._names
        return Place(
            number,
            slot_of(number),
            name,
            names.log(number, name),
            names.meta(number, name),
        )

    def keys(self, place: Place) -> tuple[bytes, bytes, bytes, bytes, bytes]:
        """All that belongs to a conversation, in the order of the scripts that want all."""
        number, names = place.partition, self._names
        return place.log, place.meta, names.open(number), names.owners(number), names.aged(number)

    def groups(self, batch: Sequence[Append], numbers: Iterable[int], *, whole: bool) -> list[Group]:
        """The calls to make for these appends of the batch. `whole`: by the script that knows all rules, also for
        tokens; then they are in the order of `numbers`, for each slot."""
        groups: list[Group] = []
        hot: dict[int, Group] = {}
        others: dict[int, Group] = {}
        for number in numbers:
            append = batch[number]
            place = self.place(append.key)
            payload = redis_published.encode(append)
            slot = place.slot if self._clustered else 0  # on one server the slots don't matter
            goes_on = not whole and _goes_on(append)
            filling = hot if goes_on else others
            group = filling.get(slot)
            if group is None or not group.takes(number, len(payload)):
                group = filling[slot] = self._group(place.slot, TOKENS if goes_on else APPEND)
                group.takes(number, len(payload))
                groups.append(group)
            if goes_on:
                seq, epoch = append.after
                group.keys += (place.log, place.meta)
                group.args += (f"{epoch}-{seq}", f"{epoch}-{append.entries[-1].seq}", payload)
            else:
                self._add(group, append, place, payload)
        return groups

    def _group(self, slot: int, script: Script) -> Group:
        return Group(slot, script, [f" {self._node_id}+"] if script is TOKENS else [self._node_id])

    def _add(self, group: Group, append: Append, place: Place, payload: bytes) -> None:
        seq, epoch = append.after
        last = append.entries[-1]
        opened, ended = turns_of(append.entries)
        group.keys += self.keys(place)
        group.args += (f"{epoch if seq else 0}-{seq}", f"{last.epoch}-{last.seq}", payload, place.member)
        group.args += (0 if last.metadata is None else last.metadata.timestamp, len(opened), len(ended))
        for turn in opened.items():
            group.args += turn
        group.args += ended


def settle(groups: Sequence[Group], replies: Sequence[Reply], verdicts: list[Verdict | None]) -> None:
    """Puts what the scripts said into `verdicts`, by number in the batch. It stays None where `APPEND` has to look."""
    for group, reply in zip(groups, replies, strict=True):
        if group.script is TOKENS:
            others = set(reply)
            for at, number in enumerate(group.numbers):
                if at not in others:
                    verdicts[number] = Verdict.WRITTEN
        else:
            for number, verdict in zip(group.numbers, reply, strict=True):
                verdicts[number] = _VERDICTS[verdict]


def _goes_on(append: Append) -> bool:
    """Whether it is only tokens in the epoch that there was: what `TOKENS` may append."""
    after, entries = append.after, append.entries
    return after.seq > 0 and after.epoch == entries[0].epoch and fencing.only_tokens(entries)


def turns_of(entries: Sequence[Entry]) -> tuple[dict[str, int], list[str]]:
    """The turns that `entries` leave open, with the `seq` of their `message`; and those of others that they end."""
    opened: dict[str, int] = {}
    ended: list[str] = []
    for entry in entries:
        if type(entry) is Token:
            continue
        match entry:
            case Message():
                opened[entry.turn_id] = entry.seq
            case Done() | Error():
                if opened.pop(entry.turn_id, None) is None and entry.turn_id is not None:
                    ended.append(entry.turn_id)
            case _:
                pass
    return opened, ended
