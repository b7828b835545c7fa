"""What a show says: its checks and figures, in plain words."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

MIB = 1 << 20


class Report:
    """Collects; `print` shows it. A show passes when it made a check and none failed."""

    def __init__(self, title: str, console: Console) -> None:
        self.title = title
        self.console = console
        self.checks: list[tuple[bool, str]] = []
        self.figures: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.started = time.monotonic()
        self.seconds = 0.0

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(ok for ok, _ in self.checks)

    def check(self, ok: bool, text: str) -> bool:
        self.checks.append((ok, text))
        return ok

    def none(self, problems: Iterable[str | None], text: str) -> bool:
        """A check that there is no problem; else the first few are told."""
        found = [problem for problem in problems if problem]
        told = "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        return self.check(not found, f"{text}: {told}" if found else text)

    def figure(self, name: str, value: object) -> None:
        self.figures.append((name, str(value)))

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Bars while something goes on; they leave no trace."""
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as progress:
            yield progress

    def print(self) -> None:
        self.seconds = time.monotonic() - self.started
        table = Table(box=None, show_header=False, padding=(0, 2))
        for name, value in self.figures:
            table.add_row(escape(name), escape(value))
        self.console.print(table)
        for note in self.notes:
            self.console.print(f"  [dim]{escape(note)}[/]")
        for ok, text in self.checks:
            self.console.print(f"  [green]PASS[/]  {escape(text)}" if ok else f"  [red]FAIL[/]  {escape(text)}")
        word = "[bold green]PASS[/]" if self.passed else "[bold red]FAIL[/]"
        self.console.print(f"{word} [bold]{escape(self.title)}[/] in {self.seconds:.0f} s\n")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least that share of all isn't above; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def mib(size_bytes: float) -> str:
    return f"{size_bytes / MIB:.1f} MiB"
