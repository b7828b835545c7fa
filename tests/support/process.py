"""A gateway as its operator runs it: a process with settings in its environment, stopped by a signal, or killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
POLL_S = 0.02


class GatewayProcess:
    """`settings` are those of the contract, in lower case and without the prefix. `folder` takes its log lines, and is
    its working directory. The port is found in its "ready" line."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.port = 0
        self.settings: dict[str, object] = {"log_url": "memory:", "drain_s": 0.2, **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def chat(self) -> str:
        return f"ws://127.0.0.1:{self.port}/chat"

    @property
    def log_lines(self) -> str:
        """What the latest run has written to its standard streams."""
        return self._log_path.read_text(errors="replace")

    @property
    def _log_path(self) -> Path:
        return self.folder / f"gateway-{self._starts}.log"

    def start(self) -> Self:
        """Returns when it says that it is ready for traffic. Starting again keeps folder and settings."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("CONVOBASE_", "OPENAI_"))}
        env |= {f"CONVOBASE_{name.upper()}": str(value) for name, value in self.settings.items()}
        env |= {"CONVOBASE_LOG_FORMAT": "json", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        self._starts += 1
        with self._log_path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve", "--port", "0"],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.port = self._wait(self._announced_port)
        self._wait(self._ready)
        return self

    def kill(self) -> None:
        """`kill -9`: no goodbye, no flush."""
        self._signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ends it as an operator does, unless it has ended already, and checks that it went in peace."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.terminate()
        self.check_end()

    def check_end(self) -> None:
        """Waits for the end after SIGTERM: exit code 0, no traceback, nothing that a bug or a warning would print."""
        code = self.wait()
        self.process = None
        lines = self.log_lines
        assert code == 0, f"exit code {code}:\n{lines}"
        for line in lines.splitlines():
            assert line.startswith("{"), f"not a line of the log: {line}\n{lines}"
            assert "exception" not in json.loads(line), lines
        assert "Traceback" not in lines, lines

    def wait(self) -> int:
        """Its exit code; a process that doesn't end in time is killed, and the test fails."""
        assert self.process is not None
        try:
            return self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the gateway didn't stop:\n{self.log_lines}") from None

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def _announced_port(self) -> int:
        for line in self.log_lines.splitlines():
            if line.startswith("{") and line.endswith("}") and (told := json.loads(line)).get("event") == "ready":
                return int(told["address"].rpartition(":")[2])
        return 0

    def _ready(self) -> int:
        try:
            with urllib.request.urlopen(f"{self.base}/readyz", timeout=5) as answer:
                return int(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return 0

    def _wait(self, look: object) -> int:
        assert callable(look)
        until = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < until:
            if found := look():
                return int(found)
            assert self.process is not None
            if self.process.poll() is not None:
                break
            time.sleep(POLL_S)
        raise AssertionError(f"the gateway did not get ready:\n{self.log_lines}")


@asynccontextmanager
async def gateway_process(folder: Path, **settings: object) -> AsyncIterator[GatewayProcess]:
    """A gateway of one test. The loop of the test goes on while it starts and stops."""
    gateway = GatewayProcess(folder, **settings)
    try:
        await asyncio.to_thread(gateway.start)
        yield gateway
    except BaseException:
        if gateway.process is not None and gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait()
        raise
    await asyncio.to_thread(gateway.stop)
