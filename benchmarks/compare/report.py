"""The report of a run: a folder of Markdown, HTML, plots, latency histograms and the raw data."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare import raw, targets
from benchmarks.compare.plots import Plot, draw_all
from benchmarks.compare.results import Results, Row
from benchmarks.compare.scenario import Scenario
from benchmarks.compare.tables import cells, headings, markdown_table

INTRODUCTION = """\
Figures are medians over the rounds, with the least and the greatest in brackets. All entrants take turns within a
round; ratios are taken within each round. The server has a core to itself; CPU time is what the operating system counts
for the whole server, the log's threads included. `gateway` is `convobase serve` with `sqlite:`, metrics on, `LOG_LEVEL`
warning and batching off; other settings are in the name. "Added" is the time from when a token was due upstream to its
arrival at the client. At saturation the gateway joins tokens that are due together in one frame, as it does for any
slow reader: see "frames a token". How to measure again: `python -m benchmarks`.
"""
STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1e293b}
table{border-collapse:collapse;font-size:13px;margin:1rem 0}
td,th{border:1px solid #cbd5e1;padding:.25rem .6rem;text-align:right}
td:first-child,td:nth-child(2),th{text-align:left}
img{max-width:100%;height:auto;display:block;margin:1rem 0}
"""


def write(results: Results, scenarios: Sequence[Scenario], machine: dict[str, str], folder: Path) -> None:
    """Makes the folder when it isn't there, and overwrites what an earlier report left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw.json").write_bytes(raw.encoded(results, machine))
    plots = draw_all(results, folder)
    _write_histograms(results, folder / "hdr")
    parts = _parts(results, scenarios, machine, plots)
    (folder / "report.md").write_text(_markdown(parts))
    (folder / "report.html").write_text(_html(parts))


Part = tuple[str, str, tuple[list[str], list[list[str]]], list[Plot]]
"""A heading, a text, a table (its head and lines), plots."""


def _parts(
    results: Results, scenarios: Sequence[Scenario], machine: dict[str, str], plots: dict[str, list[Plot]]
) -> list[Part]:
    skipped = [[*names, why.strip().partition("\n")[0]] for names, why in results.skipped.items()]
    parts: list[Part] = [
        (
            "Convobase Gateway: benchmarks",
            INTRODUCTION,
            (["", ""], [list(said) for said in machine.items()]),
            [],
        ),
        ("Targets", "", (targets.HEADINGS, targets.lines(results)), []),
    ]
    for scenario in scenarios:
        table = (headings(scenario), cells(results, scenario))
        if table[1]:
            parts.append((scenario.name, f"{scenario.title}.", table, plots.get(scenario.name, [])))
    if skipped:
        parts.append(("Left out", "These couldn't take part.", (["scenario", "entrant", "why"], skipped), []))
    return parts


def _markdown(parts: list[Part]) -> str:
    out = io.StringIO()
    for number, (heading, text, (head, lines), plots) in enumerate(parts):
        out.write(f"{'##' if number else '#'} {heading}\n\n{text}\n{markdown_table(head, lines)}\n")
        for plot in plots:
            out.write(f"![{plot.title}]({plot.name}.svg)\n\n")
    return out.getvalue()


def _html(parts: list[Part]) -> str:
    out = io.StringIO()
    out.write('<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Benchmarks</title>\n')
    out.write(f"<style>{STYLE}</style>\n")
    for number, (heading, text, (head, lines), plots) in enumerate(parts):
        level = 2 if number else 1
        out.write(f"<h{level}>{html.escape(heading)}</h{level}>\n<p>{html.escape(text)}</p>\n<table>")
        for tag, words in [("th", head), *(("td", line) for line in lines)]:
            out.write("<tr>" + "".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in words) + "</tr>\n")
        out.write("</table>\n")
        for plot in plots:
            out.write(f'<img src="{plot.name}.svg" alt="{html.escape(plot.title)}">\n')
    return out.getvalue()


def _write_histograms(results: Results, folder: Path) -> None:
    """Percentile files of all that was seen of a row, as HdrHistogram's own plotter reads them; in milliseconds."""
    folder.mkdir(exist_ok=True)
    for row in results.samples:
        for name in ("added", "first_token", "connected"):
            histogram = results.histogram(row, name)
            if histogram.count:
                with (folder / f"{_file_name(row)}.{name}.hgrm").open("wb") as out:
                    histogram.hdr().output_percentile_distribution(out, 1000.0)


def _file_name(row: Row) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in f"{row.scenario} {row.regime} {row.entrant}".lower())
    return "-".join(word for word in kept.split("-") if word)
