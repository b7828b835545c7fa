"""Several workers as one gateway: one address, one `/metrics`, one end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidMessage

from tests.support.process import GatewayProcess
from tests.support.valkey import Valkey, free_port
from tests.support.wire import is_end, is_logged, is_token, kinds, text, wire


class Workers(GatewayProcess):
    @property
    def pids(self) -> dict[int, int]:
        """Of the workers, as the operating system knows them: number to process id."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        arguments = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children}
        return {int(argv[-3]): pid for pid, argv in arguments.items() if b"gateway.worker" in argv}

    @property
    def socket_folder(self) -> Path:
        """Where its workers hear each other."""
        assert self.process is not None
        [folder] = Path(tempfile.gettempdir()).glob(f"convobase-{self.process.pid}-*")
        return folder

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log_lines.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


@pytest.fixture
async def workers(tmp_path: Path, redis_server: Valkey) -> AsyncIterator[Workers]:
    started = Workers(tmp_path, drain_s=20, workers=2, log_url=f"{redis_server.url}?prefix={tmp_path.name}")
    try:
        await asyncio.to_thread(started.start)
        yield started
    finally:
        if started.process is not None and started.process.poll() is None:
            started.process.kill()
            started.process.wait()


@pytest.fixture
async def http(workers: Workers) -> AsyncIterator[aiohttp.ClientSession]:
    # A connection each, so that the kernel chooses a worker each time.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(workers.base, connector=connector) as session:
        yield session


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not seen():
            await asyncio.sleep(0.05)


async def scrape(http: aiohttp.ClientSession) -> dict[tuple[str, str], float]:
    """Name and worker to value, of samples without further labels."""
    async with http.get("/metrics") as answer:
        text = await answer.text()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "each family once"
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.labels["worker"] in ("1", "2") for sample in samples)
    return {(s.name, s.labels["worker"]): s.value for s in samples if len(s.labels) == 1}


async def test_one_gateway(workers: Workers, http: aiohttp.ClientSession) -> None:
    ready = workers.events("ready")
    assert [line["workers"] for line in ready] == [2]
    async with AsyncExitStack() as connections:
        for number in range(40):
            client = await connections.enter_async_context(wire(workers.chat))
            await client.turn("/fast /echo a", f"c{number}")
        for _ in range(4):
            seen = await scrape(http)
            share = [seen["convobase_connections", worker] for worker in ("1", "2")]
            assert sum(share) == 40
            assert min(share) >= 5, "the kernel spreads them"
            assert sum(seen["convobase_streams_started_total", worker] for worker in ("1", "2")) == 40
            assert sum(value for (name, _), value in seen.items() if name == "convobase_workers_silent") == 0
            assert seen["process_resident_memory_bytes", "1"] != seen["process_resident_memory_bytes", "2"]
    workers.terminate()
    await asyncio.to_thread(workers.check_end)
    assert sorted(str(line.get("worker")) for line in workers.events("stopped")) == ["1", "2", "None"]
    assert {line["worker"] for line in workers.events("draining")} == {1, 2}


async def test_a_worker_is_killed(workers: Workers, http: aiohttp.ClientSession) -> None:
    before = workers.pids
    assert set(before) == {1, 2}
    os.kill(before[1], signal.SIGSTOP)
    async with asyncio.timeout(20):
        while True:  # until the kernel chooses the one that can answer
            try:
                async with http.get("/metrics", timeout=aiohttp.ClientTimeout(3)) as answer:
                    seen = await answer.text()
                break
            except TimeoutError:
                pass
    assert 'convobase_workers_silent{worker="2"} 1.0' in seen
    assert 'convobase_connections{worker="1"}' not in seen
    os.kill(before[1], signal.SIGKILL)
    await until(lambda: bool(workers.events("worker serves again")))
    after = workers.pids
    assert after[2] == before[2]
    assert after[1] != before[1]
    assert ("convobase_connections", "1") in await scrape(http)
    [ended] = workers.events("worker ended")
    assert (ended["worker"], ended["exit_code"]) == (1, -signal.SIGKILL)
    # An operator may drain one of them, too.
    os.kill(after[2], signal.SIGTERM)
    await until(lambda: len(workers.events("worker serves again")) == 2)
    workers.terminate()
    await asyncio.to_thread(workers.check_end)


async def test_a_running_turn_comes_to_its_end(workers: Workers) -> None:
    async with wire(workers.chat) as client:
        await client.ask("chat_message", conversation_id="c", message="/long 30")
        await client.until(is_token)
        for pid in workers.pids.values():
            os.kill(pid, signal.SIGTERM)  # as a service manager does, to all at once
        workers.terminate()
        done = await client.get("done")
        assert done["finish_reason"] == "stop"
    await asyncio.to_thread(workers.check_end)


async def test_a_second_signal_stops_at_once(workers: Workers) -> None:
    async with wire(workers.chat) as client:
        await client.ask("chat_message", conversation_id="c", message="/silent")
        workers.terminate()
        await until(lambda: len(workers.events("draining")) == 2)
        workers.terminate()
        await client.closed()
        await asyncio.to_thread(workers.check_end)


async def test_nothing_outlives_the_supervisor(workers: Workers) -> None:
    pids, folder = workers.pids.values(), workers.socket_folder
    assert folder.stat().st_mode & 0o777 == 0o700
    async with wire(workers.chat) as client:
        await client.ask("chat_message", conversation_id="c", message="/long 20")
        await client.until(is_token)
        workers.kill()
        done = await client.get("done")
        assert done["finish_reason"] == "stop", "they drain"
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert not folder.exists()
    assert "Traceback" not in workers.log_lines


AHEAD_S = 0.5
"""Tokens run ahead of the log by 25 ms (SPEC.md section 2.5); on a busy machine by more."""


async def test_a_turn_outlives_its_worker(workers: Workers, http: aiohttp.ClientSession) -> None:
    async with wire(workers.chat) as client:
        asked = await client.ask("chat_message", conversation_id="c", message="/long 60", message_id="m")
        await client.until(is_token)
        await asyncio.sleep(AHEAD_S)
        owner = next(number for number, count in (await running(http)).items() if count)
        os.kill(workers.pids[owner], signal.SIGKILL)
        await client.closed()
    # What the kernel had given to the killed worker's socket is reset: people connect again, and so do we.
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(10):
            while True:
                try:
                    client = await stack.enter_async_context(wire(workers.chat))
                    break
                except (OSError, InvalidMessage):
                    await asyncio.sleep(0.05)
        await client.ask("subscribe", conversation_id="c", after=0)
        frames = [frame for frame in await client.until(is_end) if is_logged(frame)]
    assert kinds(frames) == ["message", "token", "restart", "token", "done"]
    assert frames[-1]["turn_id"] == asked["turn_id"]
    assert frames[-1]["text_length"] == len(text(frames))
    workers.terminate()
    await asyncio.to_thread(workers.check_end)


async def running(http: aiohttp.ClientSession) -> dict[int, float]:
    """Turns of each worker."""
    seen = await scrape(http)
    return {number: seen["convobase_streams_running", str(number)] for number in (1, 2)}


async def test_a_start_that_fails(tmp_path: Path) -> None:
    workers = Workers(tmp_path, workers=2, log_url=f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(AssertionError) as caught:
        await asyncio.to_thread(workers.start)
    assert str(caught.value).count("convobase: Redis at 127.0.0.1") == 1
    assert "Traceback" not in workers.log_lines
    assert workers.wait() == 2
