"""Real processes for the shows: a gateway as `convobase serve` runs it, and the scripted upstream."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from benchmarks.processes import ROOT, clean_environment, cpu_s, free_port, kill, pinned, rss_bytes

START_TIMEOUT_S = 30.0


class GatewayProcess:
    """`convobase serve` on a free port. `start` again after `kill` is the same gateway, on the same log."""

    def __init__(
        self,
        folder: Path,
        *,
        upstream: str | None = None,
        core: int | None = None,
        prefix: tuple[str, ...] = (),
        **settings: object,
    ) -> None:
        """`upstream` is an `OPENAI_BASE_URL`; None: the demo model. `settings` as in the environment.

        `core`: the only one that it runs on. `prefix` stands before the command, to start it elsewhere
        (`ip netns exec …`).
        """
        self.port = free_port()
        self.url = f"http://{settings.get('HOST', '127.0.0.1')}:{self.port}"
        self._folder = folder
        self._prefix = (*prefix, *pinned(core))
        self._environment = clean_environment(**{"LOG_LEVEL": "warning", "DRAIN_S": 2, **settings})
        if upstream is not None:
            self._environment |= {"OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "none"}
        self._process: asyncio.subprocess.Process | None = None
        self.log = folder / "gateway.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when `/readyz` says so. Raises `RuntimeError` with the gateway's own words when it doesn't."""
        with self.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix, sys.executable, "-m", "gateway.cli", "serve", "--port", str(self.port),
                cwd=self._folder, env=self._environment, stdout=out, stderr=out,
            )  # fmt: skip
        async with aiohttp.ClientSession() as session:
            for _ in range(int(START_TIMEOUT_S / 0.05)):
                if self._process.returncode is not None:
                    break
                try:
                    async with session.get(f"{self.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)
        raise RuntimeError(f"the gateway didn't start: {self.log.read_text()[-2000:]}")

    async def kill(self) -> None:
        """`kill -9`."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    def pause(self) -> None:
        """It lives, but does nothing: as under a debugger, or on a machine that swaps."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def readiness(self) -> int:
        """The status of `/readyz`; 0: no answer within a second."""
        timeout = aiohttp.ClientTimeout(1)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{self.url}/readyz") as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def _end(self, number: int) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):  # Ctrl-C ended it as well as us
            self._process.send_signal(number)
        try:
            async with asyncio.timeout(40):
                await self._process.wait()
        except TimeoutError:
            await kill(self._process)

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def rss_bytes(self) -> int:
        return rss_bytes(self.pid)

    def complaints(self) -> list[str]:
        """Tracebacks in the gateway's log, each by its last line: there should be none."""
        lines = self.log.read_text(errors="replace").splitlines()
        found = []
        for number, line in enumerate(lines):
            if "Traceback" in line:
                rest = (later for later in lines[number + 1 :] if later and not later.startswith(" "))
                found.append(next(rest, line))
        return found

    async def metric(self, name: str) -> float:
        """A sample of `/metrics` without labels. Raises `KeyError`."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        raise KeyError(name)


@asynccontextmanager
async def running_gateway(
    *, upstream: str | None = None, core: int | None = None, **settings: object
) -> AsyncIterator[GatewayProcess]:
    """A gateway in a new folder, which goes with it."""
    with TemporaryDirectory(prefix="convobase-show-") as folder:
        gateway = GatewayProcess(Path(folder), upstream=upstream, core=core, **settings)
        try:
            await gateway.start()
            yield gateway
        finally:
            await gateway.stop()


class UpstreamProcess:
    """The scripted upstream (`benchmarks.upstream`)."""

    def __init__(self, port: int, host: str) -> None:
        self._origin = f"http://{host}:{port}"
        self.url = f"{self._origin}/v1"

    async def record(self, key: str | None = None) -> list[dict[str, Any]]:
        """What it remembers, oldest first."""
        params = {} if key is None else {"key": key}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._origin}/record", params=params) as answer,
        ):
            told: list[dict[str, Any]] = await answer.json()
            return told

    async def forget(self) -> None:
        async with aiohttp.ClientSession() as session, session.delete(f"{self._origin}/record") as answer:
            await answer.read()


@asynccontextmanager
async def running_upstream(host: str = "127.0.0.1") -> AsyncIterator[UpstreamProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.upstream", "--host", host,
        cwd=ROOT, env=clean_environment(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            port = int(await process.stdout.readline())
        yield UpstreamProcess(port, host)
    finally:
        process.terminate()
        await process.wait()
