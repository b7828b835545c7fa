"""Reads the hash `meta` of a conversation; `redis_scripts` says what is in it."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.logs.log import Claim, Head, OpenTurn

_TURN = b"t:"


def head_of(fields: Sequence[bytes]) -> Head:
    """From what HGETALL says: names and values in turn."""
    return _read(fields)[0]


def claim_of(fields: Sequence[bytes], node_id: str) -> Claim:
    head, owner, flags = _read(fields)
    if owner == node_id:
        return Claim(head, None, lost="?" in flags)
    return Claim(head, owner)


def _read(fields: Sequence[bytes]) -> tuple[Head, str, str]:
    fence, turns = "0-0 ", []
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == b"f":
            fence = value.decode()
        elif name.startswith(_TURN):
            turns.append(OpenTurn(name[len(_TURN) :].decode(), int(value)))
    at, _, rest = fence.partition(" ")
    epoch, _, seq = at.partition("-")
    owner = rest.rstrip("+!?")
    flags = rest[len(owner) :]
    turns.sort(key=lambda turn: turn.seq)
    return Head(int(seq), int(epoch), "!" in flags, tuple(turns)), owner, flags


def epoch_at(fence: bytes | None, epochs: bytes | None, seq: int) -> int | None:
    """The epoch of entry `seq`, from the fields `f` and `e`."""
    if fence is None or epochs is None or not 0 < seq <= int(fence.partition(b" ")[0].partition(b"-")[2]):
        return None
    found = None
    for item in epochs.split():
        epoch, _, first = item.partition(b":")
        if int(first) > seq:
            break
        found = int(epoch)
    return found
