"""The owner of 50 streams is stopped past its lease, another node goes on with them, and then it wakes up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from benchmarks.show.audit import audit, report_findings
from benchmarks.show.follow import Follow, report_readers
from benchmarks.show.gateway_process import UpstreamProcess, running_gateway, running_upstream
from benchmarks.show.redis_view import EntryIds, entry_ids, written_since
from benchmarks.show.report import Report
from benchmarks.show.valkey_process import running_valkey
from benchmarks.show.waiting import until

TITLE = "a node stopped past its lease (SIGSTOP), and woken: it can't write an entry"
STREAMS = 50
SCRIPT = "tokens=200 rate=10 size=8 script=unicode"
STOPPED_S = 8.0
"""The lease is 3 s; the upstream goes on sending to the stopped node all the while."""
END_WITHIN_S = 60.0


async def show(report: Report, _: str | None) -> None:
    names = {f"zombie-{number}" for number in range(STREAMS)}
    questions = {name: f"key={name} {SCRIPT}" for name in names}
    async with AsyncExitStack() as parts:
        valkey = await parts.enter_async_context(running_valkey())
        upstream = await parts.enter_async_context(running_upstream())
        settings = {"upstream": upstream.url, "LOG_URL": valkey.url}
        owner = await parts.enter_async_context(running_gateway(**settings))
        other = await parts.enter_async_context(running_gateway(**settings))
        askers = await parts.enter_async_context(Follow(owner.url, names, questions))
        await askers.until_streaming(10)
        readers = await parts.enter_async_context(Follow(other.url, names))
        await readers.until_streaming(10)
        owner.pause()
        try:
            now = asyncio.get_running_loop().time
            started = now()
            taken_over = await until(lambda: all(ledger.restarts for ledger in readers.ledgers.values()), STOPPED_S)
            report.check(taken_over, "the other node takes every stream over while its owner is stopped")
            report.figure("all taken over after", f"{now() - started:.1f} s")
            await asyncio.sleep(max(0.0, started + STOPPED_S - now()))
            before = await entry_ids(valkey, names)
        finally:
            owner.resume()
        await asyncio.gather(readers.wait(END_WITHIN_S), askers.wait(END_WITHIN_S))
        written = written_since(before, await entry_ids(valkey, names))
        report.figure("streams", STREAMS)
        report.figure("tokens that it could have written then", f"{await _sent_in_vain(upstream, before):,}")
        report.figure("appends after it woke", f"{written['by the owner']:,} by the new owner")
        report.check(
            written["by the owner"] > 0 and written["by another"] == 0,
            f"appends of the woken node in the log: {written['by another']}",
        )
        report.check(written["rewritten"] == 0, "what was in the log when it woke is still there, unchanged")
        found = await audit(other.url, upstream, names)
        report_findings(report, found)
        report_readers(report, "the woken node", askers, found)
        report_readers(report, "the other node", readers, found)
        report.none((*owner.complaints(), *other.complaints()), "no traceback in the nodes' logs")


async def _sent_in_vain(upstream: UpstreamProcess, logged: EntryIds) -> int:
    """What the first generations sent, less what the log had of them: what the woken node had at hand to write."""
    sent: dict[str, int] = {}
    for record in await upstream.record():
        sent.setdefault(record["key"], record["tokens"])
    # The first entry is the question.
    kept = {name: max(seq for epoch, seq in ids if epoch == ids[0][0]) - 1 for name, ids in logged.items()}
    return sum(sent.values()) - sum(kept.values())
