"""All scenarios, in the order of a full run."""

from __future__ import annotations

from benchmarks.compare.scenario import Scenario
from benchmarks.compare.scenarios.cpu import CpuPerToken

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (CpuPerToken(),)}
