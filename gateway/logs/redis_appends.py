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


class Place(NamedTuple):
    """Where a conversation is."""

    partition: int
    slot: int
    member: bytes
    log: bytes
    meta: bytes
    channel: bytes


class Staged(NamedTuple):
    """One append of a batch, ready to be sent."""

    number: int
    """In the batch."""
    append: Append
    place: Place
    payload: bytes
    after: str
    id: str


class _Group:
    """What goes into one call."""

    def __init__(self, slot: int, script: Script, args: list[Part]) -> None:
        self.slot = slot
        self.script = script
        self.keys: list[bytes] = []
        self.args = args
        self.staged: list[Staged] = []
        self.size_bytes = 0

    def has_room_for(self, staged: Staged) -> bool:
        fits = self.size_bytes + len(staged.payload) <= CALL_BYTES and len(self.staged) < CALL_APPENDS
        return fits or not self.staged


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
            names.channel(number, name),
        )

    def keys(self, place: Place) -> tuple[bytes, bytes, bytes, bytes, bytes]:
        """All that belongs to a conversation, in the order of the scripts that want all."""
        number, names = place.partition, self._names
        return place.log, place.meta, names.open(number), names.owners(number), names.aged(number)

    def stage(self, batch: Sequence[Append]) -> list[Staged]:
        staged = []
        for number, append in enumerate(batch):
            seq, epoch = append.after
            last = append.entries[-1]
            after, place = f"{epoch if seq else 0}-{seq}", self.place(append.key)
            payload = redis_published.encode(append)
            staged.append(Staged(number, append, place, payload, after, f"{last.epoch}-{last.seq}"))
        return staged

    def groups(self, staged: Iterable[Staged], *, whole: bool) -> list[_Group]:
        """The calls to make, in order. `whole`: by the script that knows all rules, also for tokens."""
        groups: list[_Group] = []
        filling: dict[tuple[Script, int], _Group] = {}
        for one in staged:
            script = APPEND if whole or not _goes_on(one.append) else TOKENS
            # On one server the slots don't matter.
            at = script, one.place.slot if self._clustered else 0
            group = filling.get(at)
            if group is None or not group.has_room_for(one):
                group = filling[at] = _Group(one.place.slot, script, self._arguments(script))
                groups.append(group)
            if script is TOKENS:
                self._add_tokens(group, one)
            else:
                self._add(group, one)
        return groups

    def _arguments(self, script: Script) -> list[Part]:
        return [f" {self._node_id}+"] if script is TOKENS else [self._node_id]

    def _add_tokens(self, group: _Group, staged: Staged) -> None:
        place = staged.place
        group.keys += (place.log, place.meta)
        group.args += (staged.after, staged.id, staged.payload, place.channel)
        group.staged.append(staged)
        group.size_bytes += len(staged.payload)

    def _add(self, group: _Group, staged: Staged) -> None:
        place = staged.place
        opened, ended = turns_of(staged.append.entries)
        metadata = staged.append.entries[-1].metadata
        group.keys += self.keys(place)
        group.args += (staged.after, staged.id, staged.payload, place.channel, place.member)
        group.args += (0 if metadata is None else metadata.timestamp, len(opened), len(ended))
        for turn in opened.items():
            group.args += turn
        group.args += ended
        group.staged.append(staged)
        group.size_bytes += len(staged.payload)


def calls_of(groups: Iterable[_Group]) -> list[Call]:
    return [Call(group.slot, group.script, group.keys, group.args) for group in groups]


def verdicts_of(groups: Sequence[_Group], replies: Sequence[Reply]) -> dict[int, Verdict | None]:
    """By number in the batch. None: `APPEND` has to look at it."""
    verdicts: dict[int, Verdict | None] = {}
    for group, reply in zip(groups, replies, strict=True):
        if group.script is TOKENS:
            others = set(reply)
            for at, staged in enumerate(group.staged):
                verdicts[staged.number] = None if at in others else Verdict.WRITTEN
        else:
            for staged, verdict in zip(group.staged, reply, strict=True):
                verdicts[staged.number] = Verdict(verdict)
    return verdicts


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
