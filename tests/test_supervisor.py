"""The supervisor: the lives of its workers, told by fakes that cost nothing."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.orders import Order, failed, why
from gateway.server import listen, reserve
from gateway.settings import Settings, Upstream
from gateway.supervisor import StartFailed, Supervisor, worker_command

FAKE = Path(__file__).parent / "support" / "fake_worker.py"


class Crew:
    """A supervisor of one worker for each of `behaviours`, and what became of them."""

    def __init__(self, folder: Path, *behaviours: str, grace_s: float = 5, first_backoff_s: float = 0.05) -> None:
        self.journal = folder / "journal"
        self.ready = asyncio.Event()

        def command(index: int, fd: int) -> list[str]:
            fake = [sys.executable, "-I", "-S", str(FAKE), str(self.journal), behaviours[index - 1]]
            return [*fake, str(index), str(fd)]

        self.supervisor = Supervisor(
            len(behaviours),
            command,
            lambda index: b"order",
            on_ready=self.ready.set,
            drain_s=0.1,
            grace_s=grace_s,
            first_backoff_s=first_backoff_s,
        )
        self.running = asyncio.create_task(self.supervisor.run())

    def lines(self, number: int) -> list[str]:
        """What worker `number` noted, without its process ids."""
        text = self.journal.read_text() if self.journal.exists() else ""
        return [line.split()[1] for line in text.splitlines() if line.startswith(f"{number} ")]

    def pids(self) -> list[int]:
        return [int(line.split()[-1]) for line in self.journal.read_text().splitlines() if "lives" in line]

    async def until(self, seen: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not seen():
                await asyncio.sleep(0.01)

    async def serving(self) -> None:
        """Waits until it is ready; then those die that are waiting for that."""
        async with asyncio.timeout(20):
            await self.ready.wait()
        self.journal.with_name("go").touch()

    async def end(self) -> bool:
        """Waits until all is over. Whether it ended in peace; no process is left."""
        async with asyncio.timeout(20):
            clean = await self.running
        for pid in self.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        return clean


async def test_one_signal_drains_each_worker_once(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "good", "good", "good")
    await crew.serving()
    crew.supervisor.stop()
    assert await crew.end()
    assert [crew.lines(number) for number in (1, 2, 3)] == [["lives", "drain"]] * 3


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "busy", "good")
    await crew.serving()
    crew.supervisor.stop()
    await crew.until(lambda: "drain" in crew.lines(1))
    crew.supervisor.stop()
    crew.supervisor.stop()
    assert await crew.end()
    assert crew.lines(1) == ["lives", "drain", "stop"]
    assert crew.lines(2) == ["lives", "drain"]


async def test_it_is_ready_when_all_are(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "good", "never-ready")
    await crew.until(lambda: bool(crew.lines(1) and crew.lines(2)))
    await asyncio.sleep(0.1)
    assert not crew.ready.is_set()
    crew.supervisor.stop()
    assert await crew.end()
    assert crew.lines(2) == ["lives", "drain"], "who starts is asked to stop too"


@pytest.mark.parametrize(
    ("behaviour", "line"),
    [
        ("fails", "The log can't be reached."),
        ("dies-at-start", "worker 2 ended with exit code 3 before it was ready."),
    ],
)
async def test_a_start_that_fails(behaviour: str, line: str, tmp_path: Path) -> None:
    crew = Crew(tmp_path, "good", behaviour)
    with pytest.raises(StartFailed) as caught:
        await crew.end()
    assert str(caught.value) == line
    assert crew.lines(2) == ["lives"], "it isn't tried again"
    assert not crew.ready.is_set()


async def test_a_program_that_is_not_there() -> None:
    supervisor = Supervisor(
        1, lambda *_: ["/nonexistent/convobase"], lambda _: b"", on_ready=lambda: None, drain_s=0, grace_s=1
    )
    with pytest.raises(StartFailed, match="worker 1 can't be started"):
        await supervisor.run()


async def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "good", "dies-later,dies-at-start,fails,good")
    await crew.serving()
    await crew.until(lambda: crew.lines(2).count("lives") == 4)
    await asyncio.sleep(0.05)
    crew.supervisor.stop()
    assert await crew.end()
    assert crew.lines(1) == ["lives", "drain"], "its sibling is left alone"
    assert crew.lines(2) == ["lives"] * 4 + ["drain"]


async def test_pauses_grow(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "good", "dies-later,dies-at-start")
    await crew.serving()
    await crew.until(lambda: crew.lines(2).count("lives") == 3)
    began = asyncio.get_running_loop().time()
    await crew.until(lambda: crew.lines(2).count("lives") == 5)
    assert asyncio.get_running_loop().time() - began >= 0.2 + 0.4, "0.05 s, 0.1 s, 0.2 s, 0.4 s"
    crew.supervisor.stop()
    await crew.end()


async def test_no_pause_delays_the_stop(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "good", "dies-later", first_backoff_s=60)
    await crew.serving()
    await crew.until(lambda: 2 not in crew.supervisor._workers)
    crew.supervisor.stop()
    assert await crew.end()
    assert crew.lines(2) == ["lives"]


async def test_who_doesnt_stop_is_killed(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "stubborn", "good", grace_s=0.2)
    await crew.serving()
    crew.supervisor.stop()
    assert not await crew.end()
    assert crew.lines(1) == ["lives", "drain"]


async def test_an_end_that_went_wrong_is_told(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "ends-badly", "good")
    await crew.serving()
    crew.supervisor.stop()
    assert not await crew.end()


async def test_workers_notice_that_the_supervisor_is_gone(tmp_path: Path) -> None:
    """Whatever ends it: the end of the socket pair is the word."""
    crew = Crew(tmp_path, "good")
    await crew.serving()
    for worker in crew.supervisor._workers.values():
        worker._writer.close()
    await crew.until(lambda: crew.lines(1) == ["lives", "orphaned"])
    crew.supervisor.stop()
    await crew.end()


async def test_a_bug_leaves_no_process(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "stubborn", "good")
    await crew.serving()
    crew.running.cancel()
    with suppress(asyncio.CancelledError):
        await crew.end()
    for pid in crew.pids():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_order_keeps_its_settings_and_secrets() -> None:
    settings = Settings(model=Upstream(model="m", openai_api_key=SecretStr("sk-hush")))
    order = Order(settings, 2, Path("/tmp/x"))
    again = pickle.loads(pickle.dumps(order))
    assert again == order
    assert again.settings.model.openai_api_key.get_secret_value() == "sk-hush"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (failed("no\nRedis  there"), "no Redis there"),
        (b"ready\n", None),
        (b"", None),
    ],
)
def test_reasons_are_one_line(said: bytes, reason: str | None) -> None:
    assert said.count(b"\n") <= 1
    assert why(said) == reason


def test_the_command_is_this_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_command(1, 7) == [sys.executable, "-m", "gateway.worker", "1", "7"]
    monkeypatch.chdir(tmp_path)
    assert worker_command(1, 7)[1] == "-P", "or a folder `gateway` here would be taken for it"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_is_reserved(host: str) -> None:
    with reserve(host, 0) as reserved:
        port = reserved.getsockname()[1]
        with listen(host, port, shared=True), listen(host, port, shared=True):
            with pytest.raises(OSError, match="Address already in use"):
                listen(host, port)
            with pytest.raises(OSError, match="Address already in use"):
                reserve(host, port)


def test_a_reserved_port_takes_no_connections() -> None:
    with reserve("127.0.0.1", 0) as reserved, pytest.raises(ConnectionRefusedError):
        socket.create_connection(reserved.getsockname())
