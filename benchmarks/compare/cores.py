"""Which cores do what."""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple


class Cores(NamedTuple):
    """The server has one for itself; the load client and the upstream share the other, where there are only two."""

    server: int
    load: int
    upstream: int

    @classmethod
    @cache
    def found(cls) -> Cores:
        """As this process may use them when it asks first: later it keeps itself to one of them."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[min(1, len(usable) - 1)], usable[min(2, len(usable) - 1)])
