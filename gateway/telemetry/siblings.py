"""`/metrics` of several workers on one port: a scrape reaches any one of them, which answers for all.

Each listens on a Unix socket in a folder that only this user may enter, and tells whoever connects its samples.
The one that is asked collects them and labels every sample with its worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.telemetry.metrics import Metrics

ANSWER_WITHIN_S: Final = 1.0
"""A sibling that needs longer is stuck; Prometheus itself gives up after 10 s."""
LABEL: Final = "worker"


class Family(msgspec.Struct, array_like=True, frozen=True):
    """A metric with its samples, as workers tell each other."""

    name: str
    help: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Siblings:
    """This worker among `count`, numbered from 1. Enter it to be heard by the others."""

    def __init__(self, metrics: Metrics, folder: Path, index: int, count: int) -> None:
        self._metrics = metrics
        self._folder = folder
        self._index = index
        self._count = count
        self._server: asyncio.Server | None = None

    def _socket(self, index: int) -> Path:
        return self._folder / f"{index}.sock"

    async def __aenter__(self) -> Self:
        # One that died here before left its socket.
        self._socket(self._index).unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._tell, self._socket(self._index))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        self._socket(self._index).unlink(missing_ok=True)

    async def _tell(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(msgspec.msgpack.encode(families(self._metrics.families())))
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await writer.drain()
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            writer.close()

    async def render(self) -> tuple[bytes, str]:
        """The body of `/metrics` for all workers, and its content type. A worker that doesn't answer in time is left
        out, and counted."""
        others = [index for index in range(1, self._count + 1) if index != self._index]
        answers = await asyncio.gather(*map(self._ask, others))
        told = {index: answer for index, answer in zip(others, answers, strict=True) if answer is not None}
        silent = _silent(len(others) - len(told))
        told[self._index] = families([*self._metrics.families(), silent])
        return generate_latest(Merged(told)), CONTENT_TYPE_PLAIN_0_0_4

    async def _ask(self, index: int) -> list[Family] | None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                reader, writer = await asyncio.open_unix_connection(self._socket(index))
                return msgspec.msgpack.decode(await reader.read(), type=list[Family])
        except (OSError, TimeoutError, msgspec.DecodeError):
            return None
        finally:
            if writer is not None:
                writer.transport.abort()


def _silent(count: int) -> Metric:
    return GaugeMetricFamily(
        "convobase_workers_silent", "Workers that didn't answer this scrape; their samples are missing.", value=count
    )


def families(metrics: Iterable[Metric]) -> list[Family]:
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples],
        )
        for metric in metrics
    ]


class Merged(Collector):
    """The families of all workers as one exposition: each once, with every worker's samples."""

    def __init__(self, told: dict[int, list[Family]]) -> None:
        self._metrics: dict[str, Metric] = {}
        for index in sorted(told):
            for family in told[index]:
                metric = self._metrics.setdefault(family.name, Metric(family.name, family.help, family.type))
                for name, labels, value in family.samples:
                    metric.add_sample(name, {**labels, LABEL: str(index)}, value)

    def collect(self) -> Sequence[Metric]:
        return list(self._metrics.values())
