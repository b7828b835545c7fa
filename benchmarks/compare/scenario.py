"""What a scenario is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from benchmarks.compare.entrants import Entrant, Running
from benchmarks.compare.results import Sample
from benchmarks.compare.scale import Bench, Scale


class Column(NamedTuple):
    """A figure as the report shows it."""

    figure: str
    heading: str
    digits: int = 1
    factor: float = 1.0
    """From the unit in which it is kept to the one of the heading."""


class Scenario(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str:
        """What is measured, in one line."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        """Who takes part in that round, by name. All do in the first one, number 0."""

    def rounds(self, scale: Scale) -> int:
        """How often everything is repeated."""

    def steps(self, scale: Scale) -> int:
        """How many samples one entrant gives in a round."""

    def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        """Samples of a server that was started for this, each with the name of its regime.

        Raises `LoadFailedError`; what came before it counts.
        """
