"""What has to be asked of the socket beneath a transport, where the platform has it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Final

NOTSENT_LOWAT_BYTES: Final = 131072


def tune(transport: asyncio.BaseTransport) -> None:
    """Sets `TCP_NODELAY` and `TCP_NOTSENT_LOWAT`.

    No delay: frames are joined by us, once a turn of the loop; Nagle's algorithm would hold a token back until
    the one before is acknowledged. Low-water mark: the kernel grows a send buffer to 4 MB, and what is in there
    is beyond reach. It can neither be merged into a larger slice nor be counted as backlog, so a slow reader
    would look like a fast one until megabytes later.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The peer's `host:port`; "" when it has none (a Unix socket)."""
    name = transport.get_extra_info("peername")
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""


if sys.platform == "linux":
    import fcntl
    import termios

    def unsent_bytes(transport: asyncio.BaseTransport) -> int:
        """What the kernel holds for the peer and the peer hasn't acknowledged (SIOCOUTQ); 0 when unknown."""
        sock = transport.get_extra_info("socket")
        if sock is None:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0
else:

    def unsent_bytes(transport: asyncio.BaseTransport) -> int:  # noqa: ARG001 # the same signature everywhere
        """Unknown here: progress is then seen only when the transport's own buffer shrinks."""
        return 0
