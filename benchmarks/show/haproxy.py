"""HAProxy before several nodes: each connection to the next node that is ready, no stickiness of any kind."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import aiohttp

from benchmarks.processes import free_port
from benchmarks.show.gateway_process import START_TIMEOUT_S

# What its package doesn't put on everybody's path.
_PLACES = ("haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy")

CONFIGURATION = """
global
    maxconn 4000
defaults
    mode http
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    timeout check 1s
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response
frontend clients
    bind 127.0.0.1:{port}
    default_backend nodes
backend nodes
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 500ms fastinter 200ms fall 2 rise 1 on-marked-down shutdown-sessions
"""


def _binary() -> str:
    for name in _PLACES:
        if found := shutil.which(name):
            return found
    raise RuntimeError("this show needs HAProxy (Debian, Ubuntu: apt-get install haproxy)")


@asynccontextmanager
async def running_haproxy(nodes: Sequence[str]) -> AsyncIterator[str]:
    """The address in front of `nodes` (URLs). A node that isn't ready for a second gets nothing, and its connections
    are cut. Raises `RuntimeError`."""
    port = free_port()
    servers = [f"    server node{number} {urlsplit(url).netloc}\n" for number, url in enumerate(nodes, 1)]
    with TemporaryDirectory(prefix="convobase-show-") as folder:
        configuration = Path(folder) / "haproxy.cfg"
        configuration.write_text(CONFIGURATION.format(port=port) + "".join(servers))
        log = Path(folder) / "haproxy.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                _binary(), "-db", "-f", str(configuration), stdout=output, stderr=output
            )
        try:
            if not await _answers(f"http://127.0.0.1:{port}", process):
                raise RuntimeError(f"HAProxy, or every node behind it, isn't ready: {_end_of(log)}")
            yield f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:]


async def _answers(url: str, process: asyncio.subprocess.Process) -> bool:
    async with aiohttp.ClientSession() as session:
        for _ in range(int(START_TIMEOUT_S / 0.1)):
            if process.returncode is not None:
                return False
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return True
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)
    return False
