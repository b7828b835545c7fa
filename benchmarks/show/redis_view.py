"""What the server itself holds of the conversations: who wrote which entry, past every gateway."""

from __future__ import annotations

from collections import Counter

from redis.asyncio import Redis

from benchmarks.show.valkey_process import ValkeyProcess

EntryIds = dict[str, list[tuple[int, int]]]
"""Conversation -> (epoch, last seq) of each append, in order."""


async def entry_ids(server: ValkeyProcess, names: set[str]) -> EntryIds:
    """Of the streams of these conversations. An append's id is `epoch-seq`; the server takes only ascending ones."""
    found: EntryIds = {}
    async with Redis(host=server.host, port=server.port, socket_timeout=5, protocol=2) as client:
        async for key in client.scan_iter(match="*:log:*", count=1000, _type="stream"):
            name = key.decode().rpartition(":")[2]
            if name in names:
                ids = [entry[0].decode().partition("-") for entry in await client.xrange(key)]
                found[name] = [(int(epoch), int(seq)) for epoch, _, seq in ids]
    return found


def written_since(before: EntryIds, after: EntryIds) -> Counter[str]:
    """What was appended between two looks: by the epoch that was the newest at the first look, or by another one.
    `rewritten`: conversations whose earlier appends aren't there any more."""
    counts: Counter[str] = Counter()
    for name, ids in after.items():
        known = before.get(name, [])
        counts["rewritten"] += ids[: len(known)] != known
        epoch = known[-1][0] if known else 0
        for entry in ids[len(known) :]:
            counts["by the owner" if entry[0] == epoch else "by another"] += 1
    return counts
