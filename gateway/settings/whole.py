"""The tree as a whole."""

from __future__ import annotations

from typing import NamedTuple

from gateway.settings.tools import Tools
from gateway.settings.tree import Limits, LogAndSessions, Serving, Upstream, Who


class Settings(NamedTuple):
    """The whole tree. Hand on slices, not this."""

    serving: Serving = Serving()
    log: LogAndSessions = LogAndSessions()
    model: Upstream = Upstream()
    tools: Tools = Tools()
    who: Who = Who()
    limits: Limits = Limits()
