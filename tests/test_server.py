"""A node in this process, and whoever keeps it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.server import Alone, listen, serve
from gateway.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
def settings() -> Settings:
    return load_settings(log_url="memory:", model="demo")


async def test_an_order_to_stop_is_heard_at_every_moment(settings: Settings) -> None:
    """Also in the one in which the start is over and serving hasn't begun: a signal that nobody takes ends the process
    with all that it was doing."""
    handlers: list[Any] = []

    class Keeper(Alone):
        def ready(self, settings: Settings, address: str) -> None:
            handlers.append(signal.getsignal(signal.SIGTERM))
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)

    with listen("127.0.0.1", 0) as listener:
        await serve(settings, listener, Keeper())
    assert len(handlers) == 1
    assert signal.SIG_DFL not in handlers


async def test_an_order_between_start_and_service_is_one_to_stop(settings: Settings) -> None:
    class Keeper(Alone):
        def ready(self, settings: Settings, address: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with listen("127.0.0.1", 0) as listener:
        async with asyncio.timeout(10):
            await serve(settings, listener, Keeper())
