"""What each stage made of each exit, as tables: the expanded exit's first. Importing this module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ruyi_rl.report.batch import byte_size

RECOVERED = ", recovered"
"""Ends the name of a compression's second row."""
ERROR = "(± standard error)"
"""What ± means, wherever it stands in a stage's result; intervals stand in brackets."""
Row = Mapping[str, Any]
"""A `ruyi_rl.stages.history.HistoryRow` as a dict."""


def print_history(console: Console, history: Mapping[str, Any]) -> None:
    """Prints the tables of what `ruyi_rl.stages.history.history` gives."""
    rows, expanded = history["rows"], history["expanded"]
    for exit in expanded:
        console.print(exit_table(exit, [row for row in rows if row["exit"] == exit]))
    others = [row for row in rows if row["exit"] not in expanded]
    if others:
        console.print(others_table(others, "the other exits" if expanded else "the exits"))
    if any(row["standard_error"] is not None for row in rows):
        console.print(f"pass rates of samples {ERROR}, and greedy", style="dim")
    if any(row["measured_by"] and not row["comparable"] for row in rows):
        console.print(
            "* measured in another way (other problems, samples, judge or rollout): not to be compared", style="dim"
        )
    if history["stopped"]:
        console.print(f"older stages are left out: {history['stopped']}", style="dim", markup=False, soft_wrap=True)


def exit_table(exit: str, rows: Sequence[Row]) -> Table:
    """One exit, one row a stage."""
    table = _table(f"{escape(exit)}, stage by stage", "stage")
    before = before_expansion(rows)
    for place, row in enumerate(rows):
        table.add_row(escape(row["stage"]) + (", before expansion" if place == before else ""), *_cells(row))
    return table


def others_table(rows: Sequence[Row], title: str) -> Table:
    """Several exits, one row for all the stages after which an exit computed the same."""
    table = _table(title, "exit", "stage")
    for spell in _spells(rows):
        first, last = spell[0]["stage"], spell[-1]["stage"]
        stages = f"{first} … {last}, unchanged" if len(spell) > 1 else first
        shown = spell[-1]
        cells = [*_cells(shown)[:-1], shown["measured_by"] or "not measured"]
        table.add_row(escape(shown["exit"]), escape(stages), *cells)
    return table


def before_expansion(rows: Sequence[Row]) -> int | None:
    """Index of the last row before the exit's branch first grew; None where it never did."""
    return next((i for i in range(len(rows) - 1) if rows[i]["layers"] < rows[i + 1]["layers"]), None)


def source(row: Row) -> str:
    """Whose measurement a row shows."""
    if row["measured_by"] is None:
        return "not measured"
    if row["measured_by"] == row["stage"].removesuffix(RECOVERED):
        return row["measured_by"]
    return f"{row['measured_by']}: the same function"


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, style="bold" if name == names[0] else None)
    for heading in ("layers", "parameters", "on disk", "held-out pass rate", "greedy"):
        table.add_column(heading, justify="right")
    table.add_column("measured by")
    return table


def _cells(row: Row) -> list[str]:
    sizes = [str(row["layers"]), f"{row['parameters']:,}", byte_size(row["bytes"])]
    return [*sizes, rate(row["pass_rate"], row["standard_error"]) + _mark(row), rate(row["greedy"]), source(row)]


def _mark(row: Row) -> str:
    return " *" if row["measured_by"] and not row["comparable"] else ""


def rate(value: float | None, error: float | None = None) -> str:
    """A share as `41.2 %` or `41.2 ± 1.3 %`; nothing where there is none."""
    if value is None or math.isnan(value):
        return ""
    return f"{100 * value:.1f} %" if error is None or math.isnan(error) else f"{100 * value:.1f} ± {100 * error:.1f} %"


def _spells(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, in their order, in groups of one exit and one function each."""
    spells: list[list[Row]] = []
    for row in rows:
        if spells and row["exit"] == spells[-1][-1]["exit"] and row["unchanged"]:
            spells[-1].append(row)
        else:
            spells.append([row])
    return spells
