"""What the whole gateway does for a token, counted: calls of Python functions and of C functions, reads and writes.

Time depends on the machine and on who else uses it; calls don't. Upstream, client and gateway go in step
(`support/lockstep.py`), and the least of several windows counts, since a timer or the log's commit can only add to it.
A bound that trips says where the calls are. When the gateway gets cheaper, lower the bounds to what is measured plus a
tenth, so that they stay worth something.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
import uvloop

from gateway.edge.websocket import WebSocketShell
from gateway.server import Ask, serve
from gateway.settings import Settings, load_settings
from gateway.telemetry.metrics import Metrics
from tests.support.lockstep import Client, EventClient, Upstream, WebSocketClient, at_once, one_by_one, streaming

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = 8
Drive = Callable[[Client, Upstream, int], None]


class Work:
    """Counts what the thread does that made it, while it is switched on."""

    def __init__(self) -> None:
        self.on = False
        self.calls: Counter[str] = Counter()
        self._io = Path(f"/proc/self/task/{threading.get_native_id()}/io")

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.on:
            return
        if event == "call":
            code = frame.f_code
            self.calls[f"{code.co_filename.removeprefix(f'{ROOT}/')}:{code.co_qualname}"] += 1
        elif event == "c_call":
            self.calls[f"C {argument.__qualname__}"] += 1

    def system_calls(self) -> int:
        """Reads and writes of that thread so far, as the kernel counts them; 0 where it doesn't."""
        if not self._io.exists():
            return 0
        counted = dict(line.split(": ") for line in self._io.read_text().splitlines())
        return int(counted["syscr"]) + int(counted["syscw"])


class Keeper:
    """Keeps a gateway inside of a test."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.stop: Ask = lambda: None

    @contextmanager
    def orders(self, drain: Ask, stop: Ask) -> Iterator[None]:
        self.stop = stop
        yield

    def ready(self, settings: Settings, address: str) -> None:
        self.started.set()

    @asynccontextmanager
    async def scraping(self, metrics: Metrics) -> AsyncIterator[Any]:
        yield None


async def counted(log_url: str, way: type[Client], drive: Drive, each: int) -> tuple[Counter[str], float]:
    """The calls of the best window of `each` tokens, and reads and writes a token in the best of its own."""
    upstream = Upstream()
    settings = load_settings(
        log_url=log_url,
        batch_chars=0,
        model="m",
        openai_base_url=upstream.url,
        openai_api_key="none",
        log_level="warning",
    )
    keeper, work = Keeper(), Work()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        serving = asyncio.create_task(serve(settings, listener, keeper))
        await keeper.started.wait()
        windows: list[Counter[str]] = []
        system_calls: list[int] = []

        def run() -> None:
            client = way(port)
            with streaming(client, upstream):
                drive(client, upstream, each)
                for _ in range(WINDOWS):
                    work.calls, before = Counter(), work.system_calls()
                    work.on = True
                    drive(client, upstream, each)
                    work.on = False
                    windows.append(work.calls)
                    system_calls.append(work.system_calls() - before)

        sys.setprofile(work)
        try:
            await asyncio.to_thread(run)
        finally:
            sys.setprofile(None)
            keeper.stop()
            await serving
    return min(windows, key=Counter.total), min(system_calls) / each


class Case(NamedTuple):
    way: type[Client]
    log_url: str
    drive: Drive
    each: int
    """Tokens in a window."""
    most_calls: float
    most_system_calls: float

    def measure(self, folder: Path) -> tuple[float, float, str]:
        """Calls a token, system calls a token, and where the calls are."""
        url = self.log_url + (str(folder / "log.db") if self.log_url == "sqlite:" else "")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            calls, system_calls = runner.run(counted(url, self.way, self.drive, self.each))
        table = "\n".join(f"{count / self.each:7.2f}  {name}" for name, count in calls.most_common(80))
        return calls.total() / self.each, system_calls, f"calls a token:\n{table}"


CASES = {
    "websocket": Case(WebSocketClient, "memory:", one_by_one, 50, 60.5, 2.1),
    "websocket-sqlite": Case(WebSocketClient, "sqlite:", one_by_one, 50, 60.5, 2.1),
    "sse": Case(EventClient, "memory:", one_by_one, 50, 55, 2.1),
    "websocket-flooded": Case(WebSocketClient, "memory:", at_once, 200, 13.6, 0.05),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_token_costs_no_more_calls_than_it_did(case: Case, tmp_path: Path) -> None:
    calls, system_calls, where = case.measure(tmp_path)
    assert calls <= case.most_calls, where
    assert system_calls <= case.most_system_calls, where


def _decode_again(payload: bytes) -> None:
    """As if every frame were looked at once more on its way out."""
    json.dumps(json.loads(payload))


def _write_apart(payload: bytes) -> None:
    """As if something were written beside each frame."""
    with Path(os.devnull).open("wb", buffering=0) as out:
        out.write(payload)


@pytest.mark.parametrize(("more", "trips"), [(_decode_again, "calls"), (_write_apart, "system calls")])
def test_a_slower_path_is_noticed(
    more: Callable[[bytes], None], trips: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the bounds are for: a mistake of this size has to trip one of them."""
    if trips == "system calls" and not Path("/proc/self/io").exists():
        pytest.skip("this system doesn't count reads and writes")
    write = WebSocketShell.write

    def slower(self: WebSocketShell, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            more(payload)
        write(self, payloads)

    monkeypatch.setattr(WebSocketShell, "write", slower)
    case = CASES["websocket"]
    calls, system_calls, _ = case.measure(tmp_path)
    assert (calls > case.most_calls) if trips == "calls" else (system_calls > case.most_system_calls)
