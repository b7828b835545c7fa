"""How many sockets a process of this machine may open."""

from __future__ import annotations

import resource

SPARE = 64
"""For everything that isn't a connection."""


class TooManyFiles(Exception):
    """The limit can't be raised as far as the run needs; the message says what to do."""


def raise_file_limit(sockets: int) -> str:
    """Raises the limit of open files for this process and those it starts, if one of them needs more.

    Returns what was done, in words; empty when nothing was. Raises `TooManyFiles`.
    """
    wanted = sockets + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ""
    try:
        ceiling = hard if hard == resource.RLIM_INFINITY or hard >= wanted else wanted  # root may
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, ceiling))
    except (ValueError, OSError):
        raise TooManyFiles(
            f"a process needs {wanted:,} open files for {sockets:,} connections, and this machine allows {hard:,}. "
            "Use more --processes (the limit is for each), fewer --connections, or raise the hard limit "
            "(`ulimit -Hn`, or /etc/security/limits.conf)."
        ) from None
    return f"The limit of open files was raised from {soft:,} to {wanted:,} for this run."
