"""One of several processes that are a gateway together: started by the supervisor, never by a person."""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvloop

from gateway.edge.routes import Scrape
from gateway.logs.log import LogUnavailable
from gateway.orders import DRAIN, READY, STOP, Order, failed
from gateway.server import Ask, listen, serve, signals_call
from gateway.settings import Settings
from gateway.telemetry.logging import configure
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.siblings import Siblings


class Supervised:
    """The keeper of a worker. `channel` is its end of the socket pair."""

    def __init__(self, order: Order, channel: socket.socket) -> None:
        self._order = order
        self._channel = channel
        channel.setblocking(False)
        # Or a tool server that we start would hold it open when we are gone.
        channel.set_inheritable(False)
        self.orphaned = False

    @contextmanager
    def orders(self, drain: Ask, stop: Ask) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def told() -> None:
            words = self._hear()
            if words is None:
                self.orphaned = True
                loop.remove_reader(self._channel)
                drain()
                return
            if DRAIN in words:
                drain()
            if STOP in words:
                stop()

        loop.add_reader(self._channel, told)
        try:
            # A service manager may signal every process, after which the supervisor passes it on: still one request.
            with signals_call(drain):
                yield
        finally:
            loop.remove_reader(self._channel)

    def _hear(self) -> bytes | None:
        """None: the supervisor has ended."""
        try:
            return self._channel.recv(64) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None

    def ready(self, settings: Settings, address: str) -> None:
        self._say(READY)

    def failed(self, line: str) -> None:
        """It can't start, for this reason."""
        self._say(failed(line))

    def _say(self, line: bytes) -> None:
        with suppress(OSError):  # a supervisor that has ended is noticed by `orders`
            self._channel.send(line)

    @asynccontextmanager
    async def scraping(self, metrics: Metrics) -> AsyncIterator[Scrape]:
        order = self._order
        async with Siblings(metrics, order.folder, order.number, order.settings.serving.workers) as siblings:
            yield siblings.render


def run(keeper: Supervised, order: Order) -> int:
    """Serves to the end. The exit code."""
    settings = order.settings
    try:
        with listen(settings.serving.host, settings.serving.port, shared=True) as listener:
            uvloop.run(serve(settings, listener, keeper))
    except LogUnavailable as problem:
        keeper.failed(str(problem))
        return 1
    except OSError as problem:
        keeper.failed(f"worker {order.number}: {problem}")
        return 1
    except asyncio.CancelledError:
        pass  # stopped before it was ready
    finally:
        if keeper.orphaned:
            with suppress(OSError):  # a sibling is still in it; the last one succeeds
                order.folder.rmdir()
    return 0


def main() -> None:
    """`python -m gateway.worker NUMBER FD`, with the `Order` on stdin; NUMBER is for whoever reads the list of
    processes."""
    # Until the loop listens to them: they are the supervisor's to pass on.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    order: Order = pickle.load(sys.stdin.buffer)  # noqa: S301 # from the process that started us, which nobody else can write to
    serving = order.settings.serving
    configure(serving.log_level, serving.log_format, worker=order.number)
    with socket.socket(fileno=int(sys.argv[2])) as channel:
        code = run(Supervised(order, channel), order)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
