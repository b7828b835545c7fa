"""Results as tables: for the terminal, and the same in Markdown."""

from __future__ import annotations

from rich.table import Table

from benchmarks.compare.results import Figure, Results
from benchmarks.compare.scenario import Column, Scenario


def shown(figure: Figure | None, column: Column) -> str:
    """The median, and in brackets the least and the greatest when they differ from it."""
    if figure is None:
        return "–"
    median, least, greatest = (f"{value * column.factor:,.{column.digits}f}" for value in figure)
    return median if least == greatest else f"{median} ({least}–{greatest})"


def cells(results: Results, scenario: Scenario) -> list[list[str]]:
    """A line a row: regime, entrant, one cell a column, and what was wrong."""
    lines = []
    for row in results.rows(scenario.name):
        found = {problem for sample in results.samples[row] for problem in sample.problems}
        figures = [shown(results.figure(row, column.figure), column) for column in scenario.columns]
        lines.append([row.regime, row.entrant, *figures, "; ".join(sorted(found))])
    return lines


def headings(scenario: Scenario) -> list[str]:
    return ["regime", "entrant", *(column.heading for column in scenario.columns), "notes"]


def rich_table(results: Results, scenario: Scenario) -> Table:
    table = Table(title=f"{scenario.name}: {scenario.title}", title_justify="left")
    for number, heading in enumerate(headings(scenario)):
        table.add_column(heading, justify="left" if number < 2 or heading == "notes" else "right")
    before = ""
    for line in cells(results, scenario):
        if before and line[0] != before:
            table.add_section()
        table.add_row("" if line[0] == before else line[0], *line[1:])
        before = line[0]
    return table


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    def line(words: list[str]) -> str:
        return "| " + " | ".join(word.replace("|", "\\|").replace("\n", " ") for word in words) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, lines)]) + "\n"
