"""What the WebSocket shell costs: CPU time per text frame written, and memory per idle connection.

`python -m benchmarks.shell [--loop uvloop|asyncio] [--connections 1000]`

Frames: the shell writes frames of `FRAME_BYTES` to a loopback TCP connection, one or several per write; another
process reads them away. CPU time is the server process's own, user and system: the best round and the median.
Memory: another process opens connections to a real server with a browser's headers, and the resident set before and
after is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import socket
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import uvicorn
import uvloop

from gateway.edge.handshake import Accept
from gateway.edge.http_guard import guarded_http
from gateway.edge.keepalive import Keepalive
from gateway.edge.websocket import ShellLimits, WebSocketShell, shell_factory

FRAME_BYTES = 120
FRAMES, ROUNDS = 40_000, 7
HANDSHAKE = (
    b"GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/130.0.0.0 Safari/537.36\r\nOrigin: http://localhost\r\nSec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n"
    b"Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\nSec-WebSocket-Protocol: convobase.v1+json\r\n\r\n"
)
DRAIN = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[1]))\nwhile s.recv(1 << 20): pass"
IDLE = """
import socket, sys, time
port, count, handshake = int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer.read()
kept = []
for _ in range(count):
    s = socket.create_connection(("127.0.0.1", port))
    s.sendall(handshake)
    s.recv(4096)
    kept.append(s)
print("open", flush=True)
time.sleep(3600)
"""


class Quiet:
    """A handler that does nothing."""

    __slots__ = ("drained", "shell")

    def __init__(self, shell: WebSocketShell) -> None:
        self.shell = shell
        self.drained: asyncio.Event | None = None

    def opened(self) -> None: ...

    def received(self, data: bytes, binary: bool) -> None: ...

    def writable(self) -> None:
        if self.drained is not None:
            self.drained.set()

    def closed(self) -> None: ...


def factory(handlers: list[Quiet]) -> Callable[..., asyncio.Protocol]:
    def made(shell: WebSocketShell) -> Quiet:
        handlers.append(Quiet(shell))
        return handlers[-1]

    return shell_factory(accept=lambda *_: Accept(made), limits=ShellLimits(), keepalive=Keepalive())


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def frame_us(per_write: int) -> tuple[float, float]:
    """The least and the median CPU time of one frame, in microseconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRAIN, str(theirs.fileno()), pass_fds=[theirs.fileno()]
    )
    theirs.close()
    handlers: list[Quiet] = []
    shell = factory(handlers)(server_state=SimpleNamespace(connections=set()))
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: shell, ours)
    shell.data_received(HANDSHAKE)
    (handler,) = handlers
    payloads = [b"x" * FRAME_BYTES] * per_write
    rounds = []
    for _ in range(ROUNDS):
        started = cpu_s()
        for _ in range(FRAMES // per_write):
            handler.shell.write(payloads)
            if handler.shell.paused:
                handler.drained = asyncio.Event()
                await handler.drained.wait()
        rounds.append((cpu_s() - started) / FRAMES * 1e6)
    transport.abort()
    await asyncio.sleep(0)
    reader.kill()
    await reader.wait()
    return min(rounds), statistics.median(rounds)


def resident_kib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


async def no_app(scope: object, receive: object, send: object) -> None: ...


async def idle_kib(connections: int) -> float:
    """Resident memory of one idle connection, in KiB."""
    handlers: list[Quiet] = []
    config = uvicorn.Config(
        no_app, http=guarded_http(10.0), ws=factory(handlers), lifespan="off", log_config=None, port=0
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        sizes = []
        for count in (100, connections):  # the first ones bring in what is needed once
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", IDLE, str(listener.getsockname()[1]), str(count),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(HANDSHAKE)
            client.stdin.close()
            before = resident_kib()
            await client.stdout.readline()
            gc.collect()
            sizes.append((resident_kib() - before) / count)
            client.kill()
            await client.wait()
        server.should_exit = True
        await serving
    return sizes[-1]


async def measure(connections: int) -> None:
    for per_write in (1, 4, 16):
        least, median = await frame_us(per_write)
        print(f"{per_write:3} frames a write: {least:5.2f} µs a frame (median {median:.2f})")
    print(f"{connections} idle connections: {await idle_kib(connections):.1f} KiB each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--connections", type=int, default=1000)
    chosen = parser.parse_args()
    loops = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    with asyncio.Runner(loop_factory=loops[chosen.loop]) as runner:
        runner.run(measure(chosen.connections))


if __name__ == "__main__":
    main()
