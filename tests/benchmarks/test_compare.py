"""The comparison: taking turns, figures over rounds, targets, and the report."""

from __future__ import annotations

import io
import math
import mmap
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.compare import raw, report, targets
from benchmarks.compare.cli import main
from benchmarks.compare.cores import Cores
from benchmarks.compare.entrants import ENTRANTS, Entrant, Running, UnavailableError
from benchmarks.compare.results import Figure, Results, Row, Sample
from benchmarks.compare.runner import Runner
from benchmarks.compare.scale import Bench, Scale
from benchmarks.compare.scenario import Column
from benchmarks.compare.scenarios import SCENARIOS, first_token
from benchmarks.compare.tables import markdown_table, shown
from benchmarks.histogram import Histogram
from benchmarks.native.run import LoadFailedError, NativeUpstream
from benchmarks.processes import allocated_bytes, cpu_s, family, rss_bytes, total_cpu_s

NAN = math.nan
BENCH = Bench(Scale(rounds=2, seconds=0.1), Cores(0, 0, 0), NativeUpstream(1, os.getpid()))


class Fake:
    """Writes down who is measured; entrants whose name says so go wrong."""

    name = "fake"
    title = "a scenario"
    columns = (Column("cpu_us", "CPU µs"), Column("p99_us", "p99 ms", 2, 1e-3))

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.seen: list[str] = []

    def entrants(self, scale: Scale, number: int = 0) -> list[str]:
        return self.names if not number else [name for name in self.names if name != "once"]

    def rounds(self, scale: Scale) -> int:
        return scale.rounds

    def steps(self, scale: Scale) -> int:
        return 2

    async def measure(self, bench: Bench, entrant: Entrant, running: Running) -> AsyncIterator[tuple[str, Sample]]:
        self.seen.append(entrant.name)
        yield "slow", Sample({"cpu_us": float(len(self.seen)), "p99_us": 1500.0})
        if entrant.name == "fails":
            raise LoadFailedError("it broke")
        yield "fast", Sample({"cpu_us": 10.0 * len(self.seen)}, {"added": Histogram(((5, 2),), 5)}, ["a problem"])


def entrant(name: str) -> Entrant:
    @asynccontextmanager
    async def start(_: str, __: int) -> AsyncIterator[Running]:
        if name == "missing":
            raise UnavailableError("install it")
        yield Running(1, list)

    return Entrant(name, name, start)


async def run(scenario: Fake, *only: str) -> Results:
    known = {name: entrant(name) for name in scenario.names}
    results = Results()
    await Runner(BENCH, known, results, Console(file=io.StringIO())).run([scenario], only)
    return results


async def test_entrants_take_turns() -> None:
    scenario = Fake("a", "b", "once")
    results = await run(scenario)
    assert scenario.seen == ["a", "b", "once", "a", "b"]
    assert [row.entrant for row in results.rows("fake")] == ["a", "b", "once"] * 2
    assert [row.regime for row in results.rows("fake")] == ["slow"] * 3 + ["fast"] * 3
    assert results.values(Row("fake", "slow", "b"), "cpu_us") == [2, 5]


async def test_one_that_is_missing_or_breaks_stops_nobody_else() -> None:
    scenario = Fake("missing", "fails", "b")
    results = await run(scenario)
    assert scenario.seen == ["fails", "b", "b"]
    assert results.skipped == {("fake", "missing"): "install it", ("fake", "fails"): "it broke"}
    assert results.values(Row("fake", "slow", "fails"), "cpu_us") == [1]


async def test_only_those_that_are_named_take_part() -> None:
    scenario = Fake("a", "b")
    await run(scenario, "b")
    assert scenario.seen == ["b", "b"]


async def test_ratios_are_taken_within_a_round() -> None:
    results = Results()
    for over, under in ((10, 1), (30, 10), (8, 4)):
        results.add(Row("s", "r", "over"), Sample({"cpu_us": over}))
        results.add(Row("s", "r", "under"), Sample({"cpu_us": under}))
    assert results.ratio("cpu_us", Row("s", "r", "over"), Row("s", "r", "under")) == Figure(3, 2, 10)
    assert results.ratio("cpu_us", Row("s", "r", "over"), Row("s", "r", "nobody")) is None


@pytest.mark.parametrize(
    ("values", "figure"),
    [([3.0, 1.0, 2.0], Figure(2, 1, 3)), ([NAN, 4.0], Figure(4, 4, 4)), ([NAN], None), ([], None)],
)
def test_a_figure_is_the_median_with_its_spread(values: list[float], figure: Figure | None) -> None:
    assert Figure.over(values) == figure


@pytest.mark.parametrize(
    ("figure", "text"),
    [(None, "–"), (Figure(1234.5, 1234.5, 1234.5), "1.23"), (Figure(2000, 1000, 3000), "2.00 (1.00–3.00)")],
)
def test_figures_are_shown_in_the_unit_of_their_column(figure: Figure | None, text: str) -> None:
    assert shown(figure, Column("p99_us", "p99 ms", 2, 1e-3)) == text


def test_markdown_cells_cant_break_their_table() -> None:
    assert markdown_table(["a"], [["x|y\nz"]]) == "| a |\n|---|\n| x\\|y z |\n"


@pytest.mark.parametrize(
    ("less_is_better", "measured", "verdict"),
    [
        (False, 10, "aim reached"), (False, 9.9, "reached"), (False, 6, "reached"), (False, 5.9, "NOT REACHED"),
        (True, 2, "NOT REACHED"), (True, 0.5, "aim reached"),
    ],
)  # fmt: skip
def test_targets_are_judged_by_the_median(less_is_better: bool, measured: float, verdict: str) -> None:
    limits = (1.0, 0.5) if less_is_better else (6.0, 10.0)
    target = targets.Target("t", *limits, "×", lambda _: None, less_is_better)
    assert target.verdict(Figure(measured, 0, 100)) == verdict
    assert target.verdict(None) == "not measured"


def test_every_target_is_measured_by_some_scenario() -> None:
    """A regime or an entrant that was renamed would leave its target unmeasured for ever."""
    results = Results()
    for target in targets.TARGETS:
        assert target.measure(results) is None
    asked: list[Row] = []

    class Asking(Results):
        def values(self, row: Row, figure: str) -> list[float]:
            asked.append(row)
            return [1.0]

        def rows(self, scenario: str) -> list[Row]:
            return [Row(scenario, row.regime, row.entrant) for row in known if row.scenario == scenario]

    known = [Row("connection-storm", "any", "gateway"), Row("memory", "idle in the pool", "gateway"),
             Row("memory", "evicted", "gateway-evicting")]  # fmt: skip
    assert all(target.measure(Asking()) is not None for target in targets.TARGETS)
    for row in asked:
        assert row.entrant in SCENARIOS[row.scenario].entrants(Scale.full())


def test_scenarios_name_entrants_that_there_are() -> None:
    for scenario in SCENARIOS.values():
        for scale in (Scale.full(), Scale.fast()):
            assert set(scenario.entrants(scale)) <= set(ENTRANTS)
            assert scenario.rounds(scale) <= scale.rounds


async def test_a_report_can_be_made_again_from_its_raw_data(tmp_path: Path) -> None:
    scenario = Fake("a", "missing")
    results = await run(scenario)
    results.add(Row("fake", "slow", "a"), Sample({"cpu_us": NAN}))
    report.write(results, [scenario], {"processor": "<fast & cheap>"}, tmp_path)
    again, machine = raw.decoded((tmp_path / "raw.json").read_bytes())
    assert machine == {"processor": "<fast & cheap>"}
    assert again.skipped == results.skipped
    assert repr(again.samples) == repr(results.samples)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;fast &amp; cheap&gt;" in page
    text = (tmp_path / "report.md").read_text()
    assert "| fast | a | 15.0 (10.0–20.0) | – | a problem |" in text
    assert "| fake | missing | install it |" in text
    curve = (tmp_path / "hdr" / "fake-fast-a.added.hgrm").read_text()
    assert "Percentile" in curve
    with pytest.raises(ValueError, match="no results"):
        raw.decoded(b"{}")


def test_the_command_lists_what_there_is_and_refuses_what_there_isnt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*SCENARIOS, *ENTRANTS))
    with pytest.raises(SystemExit):
        main(["no-such-scenario"])
    assert "cpu-per-token" in capsys.readouterr().err


@pytest.mark.usefixtures("native")
def test_a_run_from_its_beginning_to_its_report(tmp_path: Path) -> None:
    words = ["first-token", "--only", "relay", "--rounds", "1", "--seconds", "0.3"]
    assert main([*words, "--report", str(tmp_path / "report")]) == 0
    results, machine = raw.decoded((tmp_path / "report" / "raw.json").read_bytes())
    assert machine["Python"].startswith(sys.version.split()[0])
    ((sample,),) = results.samples.values()
    assert sample.problems == []
    assert sample.figures["turns_per_s"] > 5
    assert sample.figures["cpu_us"] > 0
    assert sample.histograms["first_token"].percentile_us(50) > 1e6 * first_token.THINKING_S
    assert (tmp_path / "report" / "first-token.svg").exists()
    assert main(["report", str(tmp_path / "report")]) == 0


def test_what_processes_use_is_read_from_the_system() -> None:
    before = cpu_s(os.getpid())
    assert sum(range(200_000)) > 0
    assert cpu_s(os.getpid()) > before
    assert rss_bytes(os.getpid()) >= allocated_bytes(os.getpid()) > 1 << 20
    assert os.getpid() in family(os.getpid())
    gone = 2**22 + 1  # beyond the greatest process id
    assert total_cpu_s([gone]) == 0
    with pytest.raises(ProcessLookupError):
        cpu_s(gone)


def test_pages_of_files_arent_counted_as_memory(tmp_path: Path) -> None:
    """Libraries are such pages, and whoever else has them open changes what falls to us."""
    size = 16 << 20
    with (tmp_path / "library").open("w+b") as file:
        file.write(bytes(size))
        file.flush()
        before, resident = allocated_bytes(os.getpid()), rss_bytes(os.getpid())
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:: mmap.PAGESIZE].count(0) == size // mmap.PAGESIZE
            assert rss_bytes(os.getpid()) - resident > size // 2
            assert allocated_bytes(os.getpid()) - before < size // 2
