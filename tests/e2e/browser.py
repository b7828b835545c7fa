"""What the browser tests share: a gateway of their own as a process, and the page as its reader sees it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import ConsoleMessage, Locator, Page, WebSocket, expect

READY_WITHIN_S = 20.0
STOP_WITHIN_S = 10.0
POLL_S = 0.05
# For an answer of the demo model to end, on a machine that does other things too.
ANSWER_WITHIN_MS = 40_000.0
# The network flags keep Chromium from looking its maker up at each start; the sandbox can't be had as root.
CHROMIUM_FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
)


@contextmanager
def running_gateway(log_path: Path, config: Path | None = None) -> Iterator[str]:
    """`convobase serve` with the demo model and an empty `memory:` log on a free port; yields its base URL.

    `config` is a `convobase.toml`.

    What it prints goes to `log_path`, and into the failure when it doesn't get ready.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "CONVOBASE_LOG_URL": "memory:", "CONVOBASE_DRAIN_S": "1", "NO_COLOR": "1"}
    if config is not None:
        env["CONVOBASE_CONFIG"] = str(config)
    command = [sys.executable, "-m", "gateway.cli", "serve", "--port", str(port)]
    with log_path.open("w+b") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            if not _ready(url, process):
                raise AssertionError(f"the gateway did not get ready:\n{log_path.read_text()}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(POLL_S)
    return False


class Playground:
    """The page at `/` in one tab. `problems` collects what a reader would find in the browser's console."""

    def __init__(self, page: Page, base_url: str) -> None:
        self.page = page
        self.base_url = base_url
        self.problems: list[str] = []
        self.sockets: list[WebSocket] = []
        self.sent: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("websocket", self._on_websocket)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def _on_websocket(self, opened: WebSocket) -> None:
        self.sockets.append(opened)
        opened.on("framesent", lambda data: self.sent.append(json.loads(data)))
        opened.on("framereceived", lambda data: self.received.append(json.loads(data)))

    async def open(self, conversation_id: str | None = None) -> Playground:
        await self.page.goto(f"{self.base_url}/{f'#{conversation_id}' if conversation_id else ''}")
        await self.connected()
        return self

    async def connected(self) -> None:
        await expect(self.page.locator("#status")).to_have_attribute("data-state", "connected", timeout=20_000)

    async def say(self, text: str) -> None:
        await self.page.fill("#message", text)
        await self.page.press("#message", "Enter")

    async def new_conversation(self) -> None:
        await self.page.click("#new-conversation")
        await expect(self.page.locator(".turn")).to_have_count(0)

    async def conversation_id(self) -> str:
        return str(await self.page.evaluate("location.hash.slice(1)"))

    def row(self, conversation_id: str) -> Locator:
        return self.page.locator(f".conversation[data-id='{conversation_id}']")

    def turn(self, index: int = -1) -> Locator:
        return self.page.locator(".turn[data-turn]").nth(index)

    async def first_text(self) -> None:
        """Waits until the newest turn shows some text of its answer."""
        await expect(self.turn().locator(".answer-parts .md")).not_to_be_empty(timeout=ANSWER_WITHIN_MS)

    async def ended(self, status: str = "completed", index: int = -1) -> Locator:
        """Waits for a turn's end; its text must then be proved whole. Returns the turn."""
        turn = self.turn(index)
        await expect(turn).to_have_attribute("data-status", status, timeout=ANSWER_WITHIN_MS)
        if status != "failed":
            await expect(turn.locator(".proof")).to_have_attribute("data-proof", "ok")
        return turn

    async def text(self, index: int = -1) -> str:
        """The answer's text as it can be read, without the small print under it."""
        return await self.turn(index).locator(".answer-parts").inner_text()
