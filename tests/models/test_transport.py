"""Connections of our own: read late when nobody is in a hurry, kept, and made through proxies. On both event loops."""

import asyncio
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
import trustme
import uvloop

from gateway.models import proxies, transport
from gateway.models.answer import Answer, Broken
from gateway.models.transport import Transport
from tests.models.fault_server import HEAD, Exchange, Upstream

Play = Callable[[Exchange], Awaitable[None] | None]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Runs a coroutine on either loop."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


Run = Callable[[Coroutine[Any, Any, None]], None]


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that leaves nothing behind."""
    running: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running[task] = writer
        try:
            await serve(reader, writer)
        finally:
            del running[task]

    server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in running.values():
            writer.transport.abort()
        while running:
            await asyncio.wait(list(running))
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(play: Play, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    here = Upstream()
    here.play = play
    async with listening(here.serve, tls) as port:
        here.base_url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        yield here


@asynccontextmanager
async def asked(url: str, through: Transport | None = None) -> AsyncIterator[Answer]:
    """The answer to a POST."""
    made = through or Transport()
    response = await made.handle_async_request(httpx2.Request("POST", url, content=b"?"))
    answer: Answer = response.extensions[transport.EXTENSION]
    try:
        yield answer
    finally:
        answer.close()
        if through is None:
            await made.aclose()


async def drip(exchange: Exchange) -> None:
    """20 pieces, one every 5 ms."""
    exchange.write(HEAD)
    for number in range(20):
        exchange.write(b"2\r\n%02d\r\n" % number)
        await asyncio.sleep(0.005)
    exchange.end()


PIECES = b"".join(b"%02d" % number for number in range(20))


class Reads:
    """A `Take` that asks not to be called again for `hold_s`."""

    def __init__(self, hold_s: float) -> None:
        self.hold_s = hold_s
        self.data: list[bytes] = []
        self.waited_s: list[float] = []

    def __call__(self, data: bytes, since: float) -> float:
        self.data.append(data)
        self.waited_s.append(asyncio.get_running_loop().time() - since)
        return self.hold_s


def context(ca: trustme.CA) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(made)
    return made


def trusting(ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    client = ssl.create_default_context()
    ca.configure_trust(client)
    monkeypatch.setattr(httpx2, "create_ssl_context", lambda: client)


@pytest.mark.parametrize("secure", [False, True])
def test_what_isnt_read_yet_is_read_together(run: Run, secure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = trustme.CA()
    trusting(ca, monkeypatch)

    async def test() -> None:
        async with serving(drip, context(ca) if secure else None) as upstream, asked(upstream.base_url) as answer:
            reads = Reads(0.03)
            assert not await answer.read(reads)
        assert b"".join(reads.data) == PIECES
        assert 2 <= len(reads.data) <= 8
        assert max(reads.waited_s) >= 0.025

    run(test())


def test_a_reader_in_a_hurry_gets_each_piece(run: Run) -> None:
    async def test() -> None:
        async with serving(drip) as upstream, asked(upstream.base_url) as answer:
            reads = Reads(0.0)
            await answer.read(reads)
        assert b"".join(reads.data) == PIECES
        assert len(reads.data) >= 10
        assert max(reads.waited_s) < 0.002

    run(test())


def test_a_quiet_upstream_is_heard_at_once_after_the_pause(run: Run) -> None:
    async def play(exchange: Exchange) -> None:
        exchange.write(HEAD + b"1\r\na\r\n")
        await asyncio.sleep(0.08)
        exchange.write(b"d\r\n%13.6f\r\n" % time.monotonic())
        exchange.end()

    async def test() -> None:
        late = 0.0

        def take(data: bytes, _: float) -> float:
            nonlocal late
            if data != b"a":
                late = time.monotonic() - float(data)
            return 0.01

        async with serving(play) as upstream, asked(upstream.base_url) as answer:
            assert not await answer.read(take)
        assert 0 < late < 0.03

    run(test())


@pytest.mark.parametrize("secure", [False, True])
def test_what_a_slow_upstream_has_not_sent_yet_has_not_waited(
    run: Run, secure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    trusting(ca, monkeypatch)

    async def play(exchange: Exchange) -> None:
        exchange.write(HEAD)
        for number in range(4):
            exchange.write(b"2\r\n%02d\r\n" % number)
            await asyncio.sleep(0.08)
        exchange.end()

    async def test() -> None:
        async with serving(play, context(ca) if secure else None) as upstream, asked(upstream.base_url) as answer:
            reads = Reads(0.01)
            assert not await answer.read(reads)
        assert len(reads.data) == 4
        assert max(reads.waited_s) < 0.04

    run(test())


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("breaking", [Exchange.close, Exchange.reset], ids=["close", "reset"])
def test_broken_while_nothing_is_read(
    run: Run, secure: bool, breaking: Callable[[Exchange], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    trusting(ca, monkeypatch)

    async def play(exchange: Exchange) -> None:
        exchange.write(HEAD + b"1\r\na\r\n")
        await asyncio.sleep(0.01)
        if breaking is Exchange.close:
            exchange.write(b"1\r\nb\r\n")
        breaking(exchange)

    async def test() -> None:
        async with serving(play, context(ca) if secure else None) as upstream, asked(upstream.base_url) as answer:
            reads = Reads(0.03)
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(1):
                    await answer.read(reads)
        assert b"".join(reads.data) == (b"ab" if breaking is Exchange.close else b"a")

    run(test())


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("hold_s", [0.03, math.inf])
@pytest.mark.parametrize("closing", [Exchange.close, Exchange.close_at_once], ids=["close", "at once"])
def test_ended_and_closed_while_nothing_is_read(
    run: Run, secure: bool, hold_s: float, closing: Callable[[Exchange], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    trusting(ca, monkeypatch)

    async def play(exchange: Exchange) -> None:
        exchange.write(HEAD + b"1\r\na\r\n")
        await asyncio.sleep(0.01)
        exchange.write(b"1\r\nb\r\n")
        exchange.end()
        await asyncio.sleep(0.005)
        closing(exchange)

    async def test() -> None:
        async with serving(play, context(ca) if secure else None) as upstream, asked(upstream.base_url) as answer:
            reads = Reads(hold_s)
            async with asyncio.timeout(1):
                while await answer.read(reads):
                    await asyncio.sleep(0.05)
        assert b"".join(reads.data) == b"ab"

    run(test())


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("hold_s", [0.0, 0.001])
def test_without_a_reader_the_server_has_to_wait(
    run: Run, secure: bool, hold_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    trusting(ca, monkeypatch)
    all_bytes = 4_000_000

    async def play(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % all_bytes + bytes(all_bytes))

    async def test() -> None:
        async with serving(play, context(ca) if secure else None) as upstream, asked(upstream.base_url) as answer:
            size = most = reads = 0

            def take(data: bytes, _: float) -> float:
                nonlocal size, most, reads
                size, most, reads = size + len(data), max(most, len(data)), reads + 1
                return math.inf if reads % 4 == 0 else hold_s

            async with asyncio.timeout(20):
                while await answer.read(take):
                    await asyncio.sleep(0.002)
            assert size == all_bytes
            assert most <= 1_000_000  # of which TLS itself has gathered the most

    run(test())


def test_closing_while_paused_closes_the_connection(run: Run) -> None:
    async def test() -> None:
        def play(exchange: Exchange) -> None:
            exchange.write(HEAD + b"1\r\na\r\n")

        async with serving(play) as upstream, asked(upstream.base_url) as answer:
            reading = asyncio.create_task(answer.read(Reads(0.05)))
            await asyncio.sleep(0.02)
            reading.cancel()
            await asyncio.wait([reading])
            answer.close()
            await asyncio.wait_for(upstream.hung_up.wait(), 0.03)
            with pytest.raises(Broken):
                await answer.read(Reads(0.0))
            await asyncio.sleep(0.06)  # the poll that was due finds nothing to do

    run(test())


def test_a_paced_answer_leaves_a_connection_that_is_read(run: Run) -> None:
    """It serves the next request, and its end is noticed while it is idle."""

    def play(exchange: Exchange) -> None:
        exchange.write(HEAD + b"1\r\na\r\n")
        loop = asyncio.get_running_loop()
        loop.call_later(0.02, exchange.end)
        if upstream.exchanges[2:]:
            loop.call_later(0.08, exchange.close)

    async def test() -> None:
        nonlocal upstream
        through = Transport()
        async with serving(play) as upstream:
            for _ in range(3):
                async with asked(upstream.base_url, through) as answer:
                    await answer.read(Reads(0.04))
            assert upstream.connections == 1
            assert through._connections is not None
            assert len(through._connections._idle) == 1
            await asyncio.sleep(0.1)
            assert not through._connections._all
            assert not through._connections._idle
        await through.aclose()

    upstream = Upstream()
    run(test())


async def test_many_requests_look_a_host_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, through, asked_for = asyncio.get_running_loop(), Transport(), []
    look_up = loop.getaddrinfo

    async def counted(*args: Any, **options: Any) -> Any:
        asked_for.append(args)
        return await look_up(*args, **options)

    async def ask() -> None:
        async with asked(upstream.base_url.replace("127.0.0.1", "localhost"), through) as answer:
            await answer.read(Reads(0.0))

    monkeypatch.setattr(loop, "getaddrinfo", counted)
    async with serving(drip) as upstream:
        await asyncio.gather(*(ask() for _ in range(5)))
        assert upstream.connections == 5
    assert len([host for host, *_ in asked_for if host == "localhost"]) == 1
    await through.aclose()


async def test_a_host_that_nobody_knows() -> None:
    with pytest.raises(httpx2.ConnectError):
        async with asked("http://no-such-host.invalid/"):
            pass


# ---------------------------------------------------------------- proxies


@pytest.fixture(autouse=True)
def fresh_look_at_the_environment() -> Iterator[None]:
    proxies.proxy_for.cache_clear()
    yield
    proxies.proxy_for.cache_clear()


@pytest.mark.parametrize(
    ("scheme", "host", "proxy"),
    [
        ("https", "api.openai.com", ("proxy", 3128, b"Basic dXNlcjpwdw==")),
        ("http", "llm.internal", None),
        ("http", "elsewhere", ("plain", 8000, b"")),
        ("https", "localhost", None),
        ("https", "127.0.0.1", None),
        ("https", "::1", None),
    ],
)
def test_which_proxy(monkeypatch: pytest.MonkeyPatch, scheme: str, host: str, proxy: object) -> None:
    for name, value in (("https", "http://user:pw@proxy:3128"), ("http", "plain:8000"), ("no", "llm.internal")):
        monkeypatch.setenv(f"{name}_proxy", value)
    assert proxies.proxy_for(scheme, host) == proxy


@pytest.mark.parametrize("url", ["socks5://proxy:1080", "http://user:hidden@proxy:port", "http://", "http://[::1/"])
def test_a_proxy_that_cant_be_used(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("https_proxy", url)
    with pytest.raises(proxies.ProxyRefused) as caught:
        proxies.proxy_for("https", "api.openai.com")
    assert "hidden" not in str(caught.value)


@asynccontextmanager
async def proxying(answer: bytes, to: str = "") -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy that answers `CONNECT` with `answer`, and then connects to `to` whatever was asked for."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if b" 200 " in answer:
            there, here = await asyncio.open_connection(*to.removeprefix("https://").split(":"))
            await asyncio.gather(pump(reader, here), pump(there, writer))
        writer.close()

    async with listening(serve) as port:
        yield f"http://user:p%40w@127.0.0.1:{port}", heads


def test_tls_through_a_proxy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("models.example").configure_cert(tls)
    trusting(ca, monkeypatch)

    async def test() -> None:
        async with (
            serving(drip, tls) as upstream,
            proxying(b"HTTP/1.1 200 OK\r\n\r\n", upstream.base_url) as (url, heads),
        ):
            monkeypatch.setenv("https_proxy", url)
            async with asked("https://models.example/v1") as answer:
                reads = Reads(0.0)
                await answer.read(reads)
        assert b"".join(reads.data) == PIECES
        request, host, credentials = heads[0].split(b"\r\n")[:3]
        assert request == b"CONNECT models.example:443 HTTP/1.1"
        assert host == b"Host: models.example:443"
        assert credentials == b"Proxy-Authorization: Basic dXNlcjpwQHc="

    run(test())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 Who\r\n\r\n", b"nonsense\r\n\r\n", b""])
def test_a_proxy_that_refuses(run: Run, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    async def test() -> None:
        async with proxying(answer) as (url, _):
            monkeypatch.setenv("https_proxy", url)
            with pytest.raises(httpx2.ConnectError) as caught:
                async with asked("https://models.example/v1"):
                    pass
        assert isinstance(caught.value.__cause__, proxies.ProxyRefused)

    run(test())


def test_plain_http_through_a_proxy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving(drip) as upstream:
            monkeypatch.setenv("http_proxy", upstream.base_url.replace("//", "//user:pw@"))
            async with asked("http://models.example:81/v1?a=b") as answer:
                await answer.read(Reads(0.0))
            head = upstream.exchanges[0].headers
        assert head.startswith(b"POST http://models.example:81/v1?a=b HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjpwdw==\r\n" in head
        assert b"models.example:81\r\n" in head

    run(test())
