"""Workers answer for each other: one exposition, whoever is asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry import siblings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.siblings import Siblings

Samples = dict[tuple[str, ...], float]


async def scrape(of: Siblings) -> Samples:
    """Name and label values of each sample. Checks that each family comes once, with its type and its help."""
    body, content_type = await of.render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    text = body.decode()
    for kind in ("# HELP", "# TYPE"):
        heads = [line.split()[2] for line in text.splitlines() if line.startswith(kind)]
        assert len(set(heads)) == len(heads)
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[list[Siblings]]:
    """Workers 1, 2, 3; worker n has seen n turns, of which it failed one."""
    async with AsyncExitStack() as entered:
        workers = []
        for number in (1, 2, 3):
            metrics = Metrics()
            for _ in range(number):
                metrics.stream_started()
            metrics.tokens(number, 0.002)
            metrics.stream_failed("INTERNAL")
            workers.append(await entered.enter_async_context(Siblings(metrics, tmp_path, number, 3)))
        yield workers


async def test_everyone_says_the_same_of_all(three: list[Siblings]) -> None:
    for worker in three:
        seen = await scrape(worker)
        for number in ("1", "2", "3"):
            assert seen["convobase_streams_started_total", number] == int(number)
            assert seen["convobase_stream_errors_total", "INTERNAL", number] == 1
            assert seen["convobase_stream_token_latency_seconds_bucket", "0.0025", number] == int(number)
            assert seen["convobase_stream_token_latency_seconds_bucket", "+Inf", number] == int(number)
            assert seen["convobase_stream_token_latency_seconds_sum", number] == pytest.approx(0.002 * int(number))
            assert seen["process_resident_memory_bytes", number] > 0
        assert sum(value for sample, value in seen.items() if sample[0] == "convobase_workers_silent") == 0
        assert len([sample for sample in seen if sample[0] == "convobase_workers_silent"]) == 1


async def test_who_has_ended_is_counted(three: list[Siblings], tmp_path: Path) -> None:
    await three[1].__aexit__()
    assert not (tmp_path / "2.sock").exists()
    seen = await scrape(three[0])
    assert seen["convobase_workers_silent", "1"] == 1
    assert ("convobase_tokens_total", "2") not in seen
    assert ("convobase_tokens_total", "3") in seen
    await three[1].__aenter__()
    assert ("convobase_tokens_total", "2") in await scrape(three[2]), "one that died and is back"


@pytest.mark.parametrize("says", [b"", b"\xc1nonsense"], ids=["nothing", "nonsense"])
async def test_who_answers_wrong_is_left_out(says: bytes, three: list[Siblings], tmp_path: Path) -> None:
    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writer.close()
        await writer.wait_closed()

    await three[1].__aexit__()
    async with await asyncio.start_unix_server(tell, tmp_path / "2.sock"):
        assert (await scrape(three[0]))["convobase_workers_silent", "1"] == 1
    await three[1].__aenter__()


async def test_who_is_stuck_is_left_out(three: list[Siblings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "ANSWER_WITHIN_S", 0.1)
    await three[1].__aexit__()
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / "2.sock"))
        stuck.listen()
        async with asyncio.timeout(5):
            seen = await scrape(three[0])
    assert seen["convobase_workers_silent", "1"] == 1
    assert ("convobase_tokens_total", "3") in seen
    await three[1].__aenter__()


async def test_who_died_left_its_socket(tmp_path: Path) -> None:
    (tmp_path / "1.sock").touch()
    async with Siblings(Metrics(), tmp_path, 1, 2), Siblings(Metrics(), tmp_path, 2, 2) as second:
        assert ("convobase_tokens_total", "1") in await scrape(second)


async def test_who_asks_and_doesnt_listen(three: list[Siblings], tmp_path: Path) -> None:
    for _ in range(3):
        _, writer = await asyncio.open_unix_connection(tmp_path / "2.sock")
        writer.transport.abort()
    assert ("convobase_tokens_total", "2") in await scrape(three[0])
