"""`python -m benchmarks load` as its users run it: against a real gateway, and against one that breaks its promises."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from hdrh.histogram import HdrHistogram

from benchmarks.load.made_up import House
from benchmarks.load.stand_in import Peer
from protocol.codec import JSON
from protocol.frames import AnyServerFrame, ChatMessage, Done, Error, ErrorBody, Message, Token
from tests.support.process import ROOT, GatewayProcess

SHORT = ("--ramp", "200ms", "--duration", "800ms", "--drain", "10s", "--connections", "4")
FAST = ("--prompt", "/fast Tell me {n}")


@dataclass
class Outcome:
    code: int
    output: str
    errors: str
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> dict[str, int]:
        return {kind: number for kind, number in self.results["counts"]["violations"].items() if number}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """With the demo model."""
    started = GatewayProcess(tmp_path_factory.mktemp("gateway"), heartbeat_s=0.5).start()
    yield started
    started.stop()


Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Runs it to its end; `interrupt_after`: with Ctrl-C after that output."""

    async def run(url: str, *arguments: str, interrupt_after: str | None = None) -> Outcome:
        file = tmp_path / "results.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks", "load", "--url", url, *arguments, "--json", str(file),
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        said = b""
        if interrupt_after is not None:
            while interrupt_after.encode() not in said:
                said += await process.stdout.readline()
            process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()
        results = json.loads(file.read_bytes()) if file.exists() else {}
        assert process.returncode is not None
        return Outcome(process.returncode, (said + output).decode(), errors.decode(), results)

    return run


@asynccontextmanager
async def standing_in(house: House, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The address of a stand-in for a gateway."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(house), "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://localhost:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for peer in tuple(house.peers):
            if isinstance(peer, Peer) and peer.transport is not None:
                peer.transport.abort()
        await server.wait_closed()


def once(change: Callable[[list[AnyServerFrame], int], list[AnyServerFrame]]) -> Callable[..., Any]:
    """Does something at the first token that can be changed, and then nothing more."""
    found = False

    def mangle(frames: list[AnyServerFrame]) -> list[AnyServerFrame]:
        nonlocal found
        at = next((at for at, frame in enumerate(frames) if isinstance(frame, Token)), None)
        if at is None or found or len(frames) < at + 2:
            return frames
        found = True
        return change(frames, at)

    return mangle


# ---------------------------------------------------------------- a real gateway


@pytest.mark.parametrize("transport", ["json", "msgpack", "sse"])
async def test_a_run_passes_through_storms(load: Load, gateway: GatewayProcess, transport: str) -> None:
    storms = ("--storm-every", "200ms", "--storm-percent", "75")
    told = await load(gateway.base, *SHORT, "--transport", transport, "--prompt", "/fast /long 3000", *storms)
    assert told.code == 0, told.output + told.errors
    counts = told.results["counts"]
    assert counts["messages"] == sum(counts["ends"].values())
    assert counts["cuts"] >= 3  # one storm; on a busy machine not all of them find everybody connected
    assert counts["resumes"] > 0
    assert told.broken == {}
    assert "in order, no gap, no duplicate, every text whole" in told.output
    assert re.search(r"^PASS http", told.output, re.MULTILINE)


async def test_the_results(load: Load, gateway: GatewayProcess) -> None:
    told = await load(gateway.chat, *SHORT, *FAST, "--rate", "30", "--processes", "2", "--token", "secret-token")
    assert told.code == 0, told.output + told.errors
    results = told.results
    assert (results["version"], results["passed"], results["stopped"]) == (1, True, False)
    assert results["plan"]["connections"] == 4
    assert "secret-token" not in json.dumps(results) + told.output
    assert results["seconds"]["load"] == pytest.approx(0.8, abs=0.4)
    rates = results["rates_per_s"]
    assert 0 < rates["messages"] < 40  # a busy machine sends fewer than the 30 that were asked for, never more
    assert rates["tokens"] > rates["messages"]
    assert len(results["tool"]["processes"]) == 2
    first = results["latency_ms"]["first_token"]
    assert 0 < first["p50"] <= first["p99"] <= first["p99.9"] <= first["max"]
    histogram = HdrHistogram.decode(first["histogram"])
    assert histogram.get_total_count() == first["count"] > 10
    assert histogram.get_value_at_percentile(50) / 1000 == pytest.approx(first["p50"], abs=0.001)
    assert {each["name"] for each in results["thresholds"]} == {"max-gaps", "min-connected", "max-error-rate"}
    assert results["counts"]["model_tokens"] > results["counts"]["tokens"] / 10


async def test_thresholds_drive_the_exit_code(load: Load, gateway: GatewayProcess) -> None:
    missed = ("--max-p99-ms", "0.001", "--min-tokens-per-s", "1e9", "--max-resume-p99-ms", "5")
    told = await load(gateway.base, *SHORT, *FAST, *missed, "--max-ack-p99-ms", "60000", "--min-messages-per-s", "1")
    assert told.code == 1
    verdicts = {each["name"]: each["passed"] for each in told.results["thresholds"]}
    assert verdicts == {
        "max-gaps": True,
        "min-connected": True,
        "max-error-rate": True,
        "max-p99-ms": False,
        "max-ack-p99-ms": True,
        "max-resume-p99-ms": False,
        "min-tokens-per-s": False,
        "min-messages-per-s": True,
    }
    assert "it was never measured" in told.output
    assert re.search(r"^FAIL http", told.output, re.MULTILINE)


@pytest.mark.parametrize("transport", ["json", "sse"])
async def test_calls_are_answered(load: Load, gateway: GatewayProcess, transport: str) -> None:
    asked = ("--prompt", "/fast /call f {} g {}", "--turns", "1", "--transport", transport)
    told = await load(gateway.base, *SHORT, *asked)
    assert told.code == 0, told.output + told.errors
    counts = told.results["counts"]
    assert counts["calls"] == 2 * counts["messages"] > 20
    assert counts["ends"] == {"stop": counts["messages"]}


async def test_failed_turns_count_and_are_explained(load: Load, gateway: GatewayProcess) -> None:
    told = await load(gateway.base, *SHORT, "--prompt", "/fail stream_error")
    assert told.code == 1
    counts = told.results["counts"]
    assert counts["failed"] == counts["messages"] == counts["errors"]["STREAM_ERROR"]
    assert told.broken == {}
    assert "FAIL  --max-error-rate 1.00%: 100.00% of the messages got no whole answer" in told.output


async def test_a_turn_that_never_ends(load: Load, gateway: GatewayProcess) -> None:
    told = await load(gateway.base, *SHORT, "--prompt", "/stall", "--answer-timeout", "500ms", "--drain", "200ms")
    assert told.code == 1
    counts = told.results["counts"]
    assert counts["unended"] == counts["messages"] >= 4
    assert "Turns without an end" in told.output


async def test_a_reader_that_stops_is_cut_and_resumes(load: Load, gateway: GatewayProcess) -> None:
    slow = ("--slow-percent", "50", "--slow-stop", "4s", "--duration", "4500ms", "--think", "9s")
    told = await load(gateway.base, *SHORT, *slow, "--prompt", "/fast /long 3000")
    assert told.code == 0, told.output + told.errors
    assert told.results["counts"]["closes"] == {"1006": 2}, "they answered no ping"
    assert told.results["counts"]["resumes"] == 2
    assert told.results["latency_ms"]["resume"]["count"] == 0, "they aren't timed"
    assert "as is right for readers that stop" in told.output


async def test_connections_that_say_nothing(load: Load, gateway: GatewayProcess) -> None:
    told = await load(gateway.base, "--connections", "200", "--in-flight", "0", "--ramp", "500ms", "--duration", "1s")
    assert told.code == 0, told.output + told.errors
    assert told.results["most_open"] == 200
    assert told.results["counts"]["messages"] == 0


async def test_conversations_are_erased_when_asked(load: Load, gateway: GatewayProcess) -> None:
    told = await load(gateway.base, *SHORT, *FAST, "--delete")
    assert told.code == 0, told.output + told.errors
    assert told.results["undeleted"] == 0
    run_id = told.results["plan"]["run_id"]
    async with aiohttp.ClientSession() as http:
        for number in (1, 2, 3, 4):
            async with http.get(f"{gateway.base}/api/conversations/load-{run_id}-0-{number}") as answer:
                assert answer.status == 404


async def test_ctrl_c_ends_it_with_the_report_so_far(load: Load, gateway: GatewayProcess) -> None:
    told = await load(gateway.base, *FAST, "--ramp", "100ms", "--duration", "10m", interrupt_after="ramping up")
    assert told.code == 130, told.output + told.errors
    assert told.results["stopped"] is True
    assert told.results["passed"] is True
    assert told.results["counts"]["unended"] == 0
    assert "stopped early" in told.output
    assert told.errors == ""


# ---------------------------------------------------------------- one that breaks its promises


def drop(frames: list[AnyServerFrame], at: int) -> list[AnyServerFrame]:
    return frames[:at] + frames[at + 1 :]


def repeat(frames: list[AnyServerFrame], at: int) -> list[AnyServerFrame]:
    return [*frames[: at + 1], *frames[at:]]


def swap(frames: list[AnyServerFrame], at: int) -> list[AnyServerFrame]:
    return [*frames[:at], frames[at + 1], frames[at], *frames[at + 2 :]]


@pytest.mark.parametrize(
    ("transport", "change", "kind", "words"),
    [
        ("json", drop, "gap", "1 entries missing"),
        ("json", repeat, "duplicate", "1 entries that came twice"),
        ("json", swap, "order", "1 entries out of order"),
        ("sse", drop, "gap", "1 entries missing"),
    ],
)
async def test_a_broken_order(load: Load, transport: str, change: Any, kind: str, words: str) -> None:
    async with standing_in(House(mangle=once(change))) as url:
        told = await load(url, *SHORT, "--in-flight", "2", "--transport", transport, "--max-p99-ms", "60000")
    assert told.code == 1, told.output
    assert told.broken[kind] == 1
    assert words in told.output
    assert "FAIL  --max-gaps 0" in told.output


async def test_a_wrong_text(load: Load) -> None:
    def shorten(frames: list[AnyServerFrame], at: int) -> list[AnyServerFrame]:
        token = frames[at]
        assert isinstance(token, Token)
        shorter = Token(
            conversation_id=token.conversation_id, turn_id=token.turn_id, seq=token.seq, metadata=token.metadata,
            content=token.content[1:],
        )  # fmt: skip
        return [*frames[:at], shorter, *frames[at + 1 :]]

    async with standing_in(House(mangle=once(shorten))) as url:
        told = await load(url, *SHORT)
    assert told.code == 1
    assert told.broken == {"text": 1}
    assert "1 answers whose text isn't as long as `done` says" in told.output


async def test_broken_promises_can_be_allowed(load: Load) -> None:
    async with standing_in(House(mangle=once(drop))) as url:
        told = await load(url, *SHORT, "--max-gaps", "2")
    assert told.code == 0, told.output
    assert told.broken == {"gap": 1, "text": 1}


async def test_an_end_that_never_comes(load: Load) -> None:
    house = House(mangle=lambda frames: [frame for frame in frames if not isinstance(frame, Done)])
    async with standing_in(house) as url:
        told = await load(url, *SHORT, "--drain", "300ms")
    assert told.code == 1
    assert told.results["counts"]["unended"] == told.results["counts"]["messages"] == 4


async def test_refused_messages(load: Load) -> None:
    body = ErrorBody("RATE_LIMITED", "Too many.", retryable=True)

    def refuse(frames: list[AnyServerFrame]) -> list[AnyServerFrame]:
        return [
            Error(error=body, conversation_id=frame.conversation_id, ref=f"m {frame.conversation_id}")
            for frame in frames
            if isinstance(frame, Message)
        ]

    async with standing_in(House(mangle=refuse)) as url:
        told = await load(url, *SHORT)
    assert told.code == 1
    counts = told.results["counts"]
    assert counts["errors"] == {"RATE_LIMITED": counts["messages"]}
    assert counts["messages"] <= 8, "a refused conversation is quiet for a second"
    assert "MESSAGES_PER_MINUTE is reached" in told.output


# ---------------------------------------------------------------- what can't work is said at once


async def test_nothing_listens(load: Load) -> None:
    told = await load("ws://127.0.0.1:1", *SHORT)
    assert told.code == 2
    assert told.errors == (
        "load: can't reach ws://127.0.0.1:1: connection refused. "
        "Nothing listens there. Is the gateway running, and is the port right?\n"
    )


@pytest.mark.parametrize(
    ("transport", "status", "code", "advice"),
    [
        ("json", 401, "UNAUTHORIZED", "give them with --token"),
        ("json", 404, "", "no gateway at this"),
        ("sse", 503, "OVERLOADED", "no room"),
    ],
)
async def test_refused_at_the_door(load: Load, transport: str, status: int, code: str, advice: str) -> None:
    house = House()
    house.refuse = status, json.dumps({"error": {"code": code, "message": "no", "retryable": False}}).encode()
    async with standing_in(house) as url:
        told = await load(url, *SHORT, "--transport", transport)
    assert told.code == 2
    assert f"HTTP {status} {code}".rstrip() in told.errors
    assert advice in told.errors


async def test_tls(load: Load, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with standing_in(House(), context) as url:
        told = await load(url.replace("https", "wss"), *SHORT)
        assert told.code == 2
        assert "certificate not trusted" in told.errors
        assert "--ca FILE" in told.errors
        told = await load(url.replace("https", "wss"), *SHORT, "--ca", str(tmp_path / "ca.pem"))
        assert told.code == 0, told.output + told.errors
        told = await load(url, *SHORT, "--insecure", "--transport", "sse")
        assert told.code == 0, told.output + told.errors


async def test_more_conversations_than_a_connection_may_have(load: Load, gateway: GatewayProcess) -> None:
    told = await load(gateway.base, *SHORT, "--conversations", "1001")
    assert told.code == 2
    assert "lets a connection follow 1,000 conversations, not 1,001" in told.errors


def test_the_stand_in_resumes_and_begins_a_turn_once() -> None:
    """What the tests above break was whole before."""
    house = House(tokens=3)
    frames: list[AnyServerFrame] = []

    class Listener(Peer):
        def tell(self, told: list[AnyServerFrame]) -> None:
            frames.extend(told)

    asked = ChatMessage(message="hi", conversation_id="c", message_id="m")
    for _ in range(2):
        house.ask(Listener(house), asked)
    assert [getattr(frame, "seq", None) for frame in frames] == [1, 2, 3, 4, 5] * 2
    assert [JSON.decode_server(JSON.encode(frame)) for frame in frames] == frames
