"""What a pool does now and then: idle sessions leave it, unread turns end, old conversations are erased."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from gateway.logs.log import LogUnavailable
from gateway.sessions.allocator import Trimmer
from gateway.sessions.deletion import Deletion
from gateway.settings import LogAndSessions

log_lines = structlog.get_logger(__name__)


class Pool(Protocol):
    """What is swept."""

    deletion: Deletion

    def evict(self, before: float) -> int: ...

    async def end_orphans(self, now: float, grace_s: float) -> None: ...


async def sweep(pool: Pool, settings: LogAndSessions, orphan_grace_s: float) -> None:
    """Runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    idle_s = settings.session_idle_s
    tick_s = max(0.05, min(5.0, idle_s / 4, orphan_grace_s / 4 if orphan_grace_s >= 0 else 5.0))
    expire_at = loop.time()
    trimmer = Trimmer()
    while True:
        await asyncio.sleep(tick_s)
        now = loop.time()
        try:
            trimmer.evicted(pool.evict(now - idle_s), now)
            await trimmer.trim_if_due(now)
            if orphan_grace_s >= 0:
                await pool.end_orphans(now, orphan_grace_s)
            if settings.retention_s and now >= expire_at:
                expire_at = now + min(60.0, settings.retention_s / 4)
                await pool.deletion.expire(settings.retention_s)
        except LogUnavailable as problem:
            log_lines.error("the pool's sweep couldn't ask the log", problem=str(problem))
        except Exception:
            log_lines.exception("the pool's sweep failed by a bug")
