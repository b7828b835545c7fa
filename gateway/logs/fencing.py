"""Which appends a log takes: the rules that all engines share (SPEC.md section 2). Pure.

An entry's place is (`seq`, `epoch`), and a place is never given to two different entries. So an append has to follow
the head exactly, and its epoch may not be lower than the head's; a *stale* head, whose last entries may be gone or
were erased, is followed by a higher epoch only. This is the log-matching rule of Raft (section 5.3 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.logs.log import Append, Head, turns_left_open
from protocol.frames import Entry, Token


def check(append: Append) -> None:
    """Raises `ValueError` for an append that no log could take: a fault of the caller, not of the log's state."""
    if not append.entries:
        raise ValueError("an append needs at least one entry")
    seq, epoch = append.after.seq, append.entries[0].epoch
    for entry in append.entries:
        seq += 1
        if entry.seq != seq:
            raise ValueError(f"entry {entry.seq} can't follow entry {seq - 1}")
        if entry.epoch != epoch:
            raise ValueError(f"entries of epochs {epoch} and {entry.epoch} can't share an append")
        if entry.conversation_id != append.key.conversation_id:
            raise ValueError("an entry of another conversation")


def takes(head: Head, append: Append) -> bool:
    """Whether `append` continues a log that ends at `head`.

    Before the first entry (`after.seq` 0) the epoch of `after` says nothing: the entries' own epoch decides.
    """
    after, epoch = append.after, append.entries[0].epoch
    if after.seq != head.seq or (after.seq and after.epoch != head.epoch):
        return False
    return epoch > head.epoch if head.stale else epoch >= head.epoch


def simply_continues(seq: int, epoch: int, append: Append) -> int:
    """Where `append` ends if it is nothing but tokens that follow entry `seq` in its epoch: what `check`, `takes` and
    `only_tokens` say of a head that isn't stale, in one look, as nearly all appends are that. Else 0."""
    after_seq, after_epoch = append.after
    if after_seq != seq or after_epoch != epoch or not seq:
        return 0
    conversation_id = append.key.conversation_id
    for entry in append.entries:
        seq += 1
        if (
            type(entry) is not Token
            or entry.seq != seq
            or entry.epoch != epoch
            or entry.conversation_id != conversation_id
        ):
            return 0
    return seq if seq > after_seq else 0


def may_be_stored(head: Head, append: Append) -> bool:
    """Whether the log is long enough to hold `append` already; its entries have to be compared."""
    return append.after.seq + len(append.entries) <= head.seq


def advanced(head: Head, append: Append, *, plain: bool) -> Head:
    """The head after `append` was written. `plain`: that has only tokens."""
    entries = append.entries
    last = entries[-1]
    turns = head.open_turns if plain else turns_left_open(head.open_turns, entries)
    return Head(last.seq, last.epoch, False, turns)


def erased(head: Head) -> Head:
    """What is left of a log: the epoch that must not be used again."""
    return Head(0, head.epoch, True)


def only_tokens(entries: Sequence[Entry]) -> bool:
    for entry in entries:  # noqa: SIM110 - at one token an append, a generator costs more than the whole check
        if type(entry) is not Token:
            return False
    return True
