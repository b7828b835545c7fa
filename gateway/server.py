"""Serves a gateway until whoever keeps the process asks it to stop: a shell by signals, or a supervisor."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Protocol

import structlog
import uvicorn

from gateway.app import Gateway
from gateway.edge.http_guard import guarded_http
from gateway.edge.keepalive import Keepalive
from gateway.edge.routes import Scrape, http_app
from gateway.edge.websocket import ShellLimits, shell_factory
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

GC_GENERATION_0 = 20_000
"""Streams make many short-lived objects and no cycles: the collector's default of 700 only costs time."""

BACKLOG = 4096
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log_lines = structlog.get_logger(__name__)

Ask = Callable[[], object]
"""Asks for something that happens in the background; may be repeated."""


class Keeper(Protocol):
    """Who started this process, stops it, and wants to know how it is."""

    def orders(self, drain: Ask, stop: Ask) -> AbstractContextManager[None]:
        """While it is entered, on the running loop: an order calls one of these, at once or in mid-await."""
        ...

    def ready(self, settings: Settings, address: str) -> None: ...

    def scraping(self, metrics: Metrics) -> AbstractAsyncContextManager[Scrape]:
        """What answers `/metrics`, while it is entered."""
        ...


class Alone:
    """This process is the whole gateway: signals stop it, the first in peace, the next at once."""

    @contextmanager
    def orders(self, drain: Ask, stop: Ask) -> Iterator[None]:
        asked = [stop, drain]

        def signalled() -> None:
            (asked.pop() if len(asked) > 1 else stop)()

        with signals_call(signalled):
            yield

    def ready(self, settings: Settings, address: str) -> None:
        log_lines.info("ready", address=address, model=settings.model.model, log=settings.log.url)

    @asynccontextmanager
    async def scraping(self, metrics: Metrics) -> AsyncIterator[Scrape]:
        async def scrape() -> tuple[bytes, str]:
            return metrics.render()

        yield scrape


@contextmanager
def signals_call(callback: Ask) -> Iterator[None]:
    """SIGTERM and SIGINT call it on the running loop."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


class Server(uvicorn.Server):
    """uvicorn, but an order to stop drains first: `/readyz` says so while turns come to their end."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would end the process by the signal before the gateway is closed. The keeper has them."""
        yield

    def drain(self) -> None:
        """Stops when running turns have ended or are handed over. A second call changes nothing."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")

    def stop(self) -> None:
        """Stops at once; turns are handed over all the same."""
        self.should_exit = True

    async def _drain(self) -> None:
        try:
            await self._gateway.drain()
        except Exception:
            log_lines.exception("draining failed by a bug")
        finally:
            self.should_exit = True


class _Orders:
    """Whom an order concerns: until a server serves, the task that starts it."""

    def __init__(self, starting: asyncio.Task[object]) -> None:
        self._starting = starting
        self.server: Server | None = None

    def drain(self) -> None:
        if self.server is None:
            self._starting.cancel()
        else:
            self.server.drain()

    def stop(self) -> None:
        if self.server is None:
            self._starting.cancel()
        else:
            self.server.stop()


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; `shared`: one of several of this port, among which the kernel spreads connections by a hash
    of both addresses. Raises `OSError`."""
    return socket.create_server((_bare(host), port), family=_family(host), backlog=BACKLOG, reuse_port=shared)


def reserve(host: str, port: int) -> socket.socket:
    """A bound socket that keeps the port (0: any free one) for `shared` listeners of this user, and gets no connection
    itself. Raises `OSError`, also when somebody listens there in the same shared way: that would be another gateway,
    which a listener of ours would silently take connections from."""
    with listen(host, port) as alone:
        port = alone.getsockname()[1]
    reserved = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if reserved.family == socket.AF_INET6:
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as `create_server` does
        reserved.bind((_bare(host), port))
    except OSError:
        reserved.close()
        raise
    return reserved


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _bare(host: str) -> str:
    return host.strip("[]")


def address(settings: Settings, bound: socket.socket) -> str:
    """Where clients find it."""
    scheme = "https" if settings.serving.tls_cert else "http"
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def serve(settings: Settings, listener: socket.socket, keeper: Keeper | None = None) -> None:
    """Runs a node until its keeper (default: signals) stops it. Raises `LogUnavailable` when the log can't be opened,
    and `CancelledError` when it was stopped before it was ready."""
    keeper = keeper or Alone()
    gateway = Gateway(settings)
    task = asyncio.current_task()
    assert task is not None
    orders = _Orders(task)
    try:
        with keeper.orders(orders.drain, orders.stop):  # at every moment: an order that nobody takes ends the process
            await gateway.start()
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_GENERATION_0, 50, 50)
            async with keeper.scraping(gateway.metrics) as scrape:
                orders.server = Server(_config(settings, gateway, scrape), gateway)
                keeper.ready(settings, address(settings, listener))
                await orders.server.serve([listener])
    finally:
        await gateway.close()
        log_lines.info("stopped")


def _config(settings: Settings, gateway: Gateway, scrape: Scrape) -> uvicorn.Config:
    serving = settings.serving
    shell = shell_factory(
        accept=gateway.accept,
        limits=ShellLimits(
            max_message_bytes=settings.limits.max_frame_bytes,
            write_deadline_s=serving.write_deadline_s,
            heartbeat_s=serving.heartbeat_s,
            handshake_timeout_s=serving.handshake_timeout_s,
        ),
        keepalive=Keepalive(),
    )
    return uvicorn.Config(
        http_app(gateway.edge(scrape)),
        ws=shell,  # type: ignore[arg-type]  # it calls whatever makes a protocol
        http=guarded_http(serving.handshake_timeout_s, write_deadline_s=serving.write_deadline_s),
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        ssl_certfile=serving.tls_cert,
        ssl_keyfile=serving.tls_key,
        timeout_graceful_shutdown=5,
    )
