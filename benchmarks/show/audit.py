"""Reads conversations from the log, from their first entry on, and compares them with what the upstream recorded.

This is no client of ours: raw frames, a ledger that forgives nothing. It is done when everything is over, so whatever
a reader may have seen in between, the log is what stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.show.gateway_process import UpstreamProcess
from benchmarks.show.ledger import Ledger
from benchmarks.show.raw import RawWebSocket
from benchmarks.show.report import Report

AT_ONCE = 500
READ_WITHIN_S = 60.0


class Audited(Ledger):
    """A ledger that also counts what ends and how the epochs go."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(conversation_id)
        self.second_ends = 0
        self.epochs_back = 0
        self.epochs: list[int] = []
        """Each once, in the order in which they came."""

    def take(self, frame: dict[str, Any]) -> bool:
        if frame["type"] in ("done", "error") and frame.get("turn_id") in self.ends:
            self.second_ends += 1
        taken = super().take(frame)
        if taken and self.seq:  # beside seq 0 an epoch has no meaning
            self.epochs_back += bool(self.epochs) and self.epoch < self.epochs[-1]
            if not self.epochs or self.epochs[-1] != self.epoch:
                self.epochs.append(self.epoch)
        return taken


@dataclass
class Findings:
    """Conversations, by what is the matter with them."""

    not_ended: list[str] = field(default_factory=list)
    ended_twice: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    """Gaps, duplicates, epochs that go back."""
    wrong_text: list[str] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    """Error code -> turns that ended with it."""
    completed: int = 0
    restarted: int = 0
    """Turns with at least one `restart`."""
    generations: int = 0
    """That the upstream was asked for."""
    ledgers: dict[str, Audited] = field(default_factory=dict)


async def read_all(url: str, names: Iterable[str]) -> dict[str, Audited]:
    """Each conversation up to the end of its turns, or as far as it comes within a time that is long enough."""
    ledgers: dict[str, Audited] = {}
    waiting = list(names)
    while waiting:
        some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        ledgers |= await _read(url, some)
    return ledgers


async def _read(url: str, names: list[str]) -> dict[str, Audited]:
    ledgers = {name: Audited(name) for name in names}
    left = set(names)
    done = asyncio.Event()

    def frame(told: dict[str, Any], _: int) -> None:
        name = told.get("conversation_id", "")
        if name in ledgers and ledgers[name].take(told) and ledgers[name].level:
            left.discard(name)
            if not left:
                done.set()

    socket = await RawWebSocket(frame).connect(url)
    try:
        for name in names:
            socket.send(type="subscribe", conversation_id=name, after=0)
        async with asyncio.timeout(READ_WITHIN_S):
            await done.wait()
    except TimeoutError:
        pass  # the ledgers say which
    finally:
        socket.close()
    return ledgers


async def audit(url: str, upstream: UpstreamProcess, names: Iterable[str]) -> Findings:
    """Of conversations with one question each, whose `key` is their name."""
    found = Findings(ledgers=await read_all(url, names))
    records: dict[str, list[dict[str, Any]]] = {}
    for record in await upstream.record():
        records.setdefault(record["key"], []).append(record)
    for name, ledger in found.ledgers.items():
        judge(found, name, ledger, records.get(name, []))
    return found


def judge(found: Findings, name: str, ledger: Audited, records: list[dict[str, Any]]) -> None:
    """Adds a conversation; `records` are the upstream's of it, oldest first."""
    found.generations += len(records)
    found.restarted += ledger.restarts > 0
    if ledger.gaps or ledger.duplicates or ledger.epochs_back or ledger.snapshots:
        found.disordered.append(
            f"{name}: {ledger.gaps} gaps, {ledger.duplicates} duplicates, {ledger.epochs_back} epochs back, "
            f"{ledger.snapshots} snapshots"
        )
    if ledger.second_ends:
        found.ended_twice.append(name)
    if not ledger.level:
        found.not_ended.append(f"{name} at seq {ledger.seq}")
        return
    for turn_id in ledger.messages:
        end = ledger.ends[turn_id]
        if end["type"] == "error":
            code = end["error"]["code"]
            found.failed[code] = found.failed.get(code, 0) + 1
            continue
        found.completed += 1
        if problem := wrong_text(ledger, turn_id, records):
            found.wrong_text.append(f"{name}: {problem}")


def wrong_text(ledger: Ledger, turn_id: str, records: list[dict[str, Any]]) -> str | None:
    """What is wrong with a text that should be the upstream's last answer; None: nothing."""
    text = ledger.text(turn_id)
    if not records:
        return "the upstream was never asked"
    if ledger.ends[turn_id]["text_length"] != len(text):
        return f"text_length {ledger.ends[turn_id]['text_length']} for {len(text)} characters"
    if text == records[-1]["text"]:
        return None
    others = [number for number, record in enumerate(records, 1) if record["text"] == text]
    which = f"it is that of generation {others[0]}" if others else "no generation has that text"
    return f"{len(text)} characters, the last of {len(records)} generations has {len(records[-1]['text'])}; {which}"


def report_findings(report: Report, found: Findings) -> None:
    """The figures and checks that every show of several nodes has."""
    report.figure("turns completed", f"{found.completed:,}")
    report.figure("  of all turns restarted on another node", f"{found.restarted:,}")
    report.figure("  generations asked for", f"{found.generations:,}")
    report.figure("turns that ended with an error", _counts(found.failed))
    report.none(found.not_ended, "turns not ended: 0")
    report.none(found.ended_twice, "turns ended twice: 0")
    report.none(found.disordered, "in the log no gap, no duplicate, no epoch that goes back: 0")
    report.none(found.wrong_text, "texts that aren't exactly the upstream's last generation: 0")
    others = {code: count for code, count in found.failed.items() if code != "NODE_LOST"}
    report.check(not others, f"no turn failed but by NODE_LOST{f': {others}' if others else ''}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{code} {count}" for code, count in sorted(counts.items())) or "none"
