"""All scenarios, in the order of a full run."""

from __future__ import annotations

from benchmarks.compare.scenario import Scenario
from benchmarks.compare.scenarios.connections import Connections
from benchmarks.compare.scenarios.conversations import Conversations
from benchmarks.compare.scenarios.cpu import CpuPerToken
from benchmarks.compare.scenarios.fan_out import FanOut
from benchmarks.compare.scenarios.first_token import FirstToken
from benchmarks.compare.scenarios.latency import Latency
from benchmarks.compare.scenarios.memory import Memory
from benchmarks.compare.scenarios.resume import Resume
from benchmarks.compare.scenarios.slow_reader import SlowReader
from benchmarks.compare.scenarios.sse import SseAndWs
from benchmarks.compare.scenarios.tools import Tools
from benchmarks.compare.scenarios.workers import Workers

_ALL: tuple[Scenario, ...] = (
    Tools(), CpuPerToken(), Latency(), FirstToken(), SseAndWs(), FanOut(), Connections(), Memory(), SlowReader(),
    Resume(), Conversations(), Workers(),
)  # fmt: skip
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
