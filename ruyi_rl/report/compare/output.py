"""The comparison as a table in a terminal and in Markdown, as JSON and as CSV. Imports no torch."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from ruyi_rl.report.compare.metrics import Metric
from ruyi_rl.report.compare.runs import ComparedRun
from ruyi_rl.report.compare.table import Cell, Comparison, Group, short_keys
from ruyi_rl.report.tables import duration

NONE = "–"
DRAWN = re.compile(r"-?\d+\.\d{6,}(e-?\d+)?")


def headings(comparison: Comparison) -> list[str]:
    """Of the columns: the overrides, the number of runs, the exit, the metrics."""
    short = short_keys(comparison.keys)
    return [*(short[key] for key in comparison.keys), "n", "exit", *(metric.label for metric in comparison.metrics)]


def rows(comparison: Comparison) -> Iterator[tuple[bool, list[str]]]:
    """Whether a row opens a group, and its cells as text; one row an exit."""
    for group in comparison.groups:
        for number, exit in enumerate(comparison.exits or [""]):
            first = number == 0
            cells = [override_text(value) if first else "" for value in group.overrides.values()]
            cells += [str(len(group.runs)) if first else "", exit or NONE]
            yield first, cells + [_cell(group, metric, exit, first) for metric in comparison.metrics]


def _cell(group: Group, metric: Metric, exit: str, first: bool) -> str:
    cell = group.cells.get((metric.label, exit))
    if cell is None and (cell := group.cells.get((metric.label, ""))) is not None and not first:
        return ""  # of the whole run: once
    fewer = f" (n={cell.n})" if cell is not None and cell.n < len(group.runs) else ""
    return cell_text(metric, cell) + fewer


def cell_text(metric: Metric, cell: Cell | None) -> str:
    """`48.9 → 78.9 (+30.0 ± 1.3)`, or `57.0 ± 1.2`; shares in percent, their changes in points."""
    if cell is None:
        return NONE
    if metric.label == "seconds":
        return duration(cell.mean)
    if cell.before is None or cell.change is None:
        return _number(metric, cell.mean) + _error(metric, cell.standard_error)
    change = f"{'+' if cell.change >= 0 else '-'}{_number(metric, abs(cell.change))}"
    change += _error(metric, cell.change_standard_error)
    return f"{_number(metric, cell.before)} → {_number(metric, cell.mean)} ({change})"


def _error(metric: Metric, value: float | None) -> str:
    return "" if value is None else f" ± {_number(metric, value)}"


def _number(metric: Metric, value: float) -> str:
    return f"{100 * value:.1f}" if metric.share else f"{value:.4g}"


def override_text(value: Any) -> str:
    """An override's value; of a number that a search has drawn four digits."""
    if value is None:
        return NONE
    text = str(value)
    return f"{float(text):.4g}" if DRAWN.fullmatch(text) else text


def rich_table(comparison: Comparison) -> Table:
    """For a terminal."""
    table = Table(title=title(comparison), title_justify="left", caption=caption(comparison), caption_justify="left")
    names = headings(comparison)
    for place, heading in enumerate(names):
        left = place < len(comparison.keys) or heading == "exit"
        table.add_column(escape(heading), justify="left" if left else "right", overflow="fold")
    for opens, cells in rows(comparison):
        if opens and table.row_count:
            table.add_section()
        table.add_row(*(escape(cell) for cell in cells))
    return table


def title(comparison: Comparison) -> str:
    stages = dict.fromkeys(run.stage for group in comparison.groups for run in group.runs)
    count = sum(len(group.runs) for group in comparison.groups)
    return f"{', '.join(map(str, stages))} · {count} run{'' if count == 1 else 's'}"


def caption(comparison: Comparison) -> str:
    """What the figures are."""
    lines = []
    if any(metric.share for metric in comparison.metrics):
        changes = any(cell.change is not None for group in comparison.groups for cell in group.cells.values())
        lines.append("rates in percent" + (", changes in points" if changes else ""))
    if any(len(group.runs) > 1 for group in comparison.groups):
        lines.append("mean ± standard error over the n runs of a line, which differ in their seed alone")
    short = short_keys(comparison.keys)
    lines += [
        f"{short[key]} stands for {', '.join(others[:4])}{' …' if len(others) > 4 else ''} too"
        for key, others in comparison.same.items()
    ]
    return "; ".join(lines)


def markdown(comparison: Comparison) -> str:
    """The table, what its figures are, and the runs without a result."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    names = headings(comparison)
    lines = [line(names), "|" + "---|" * len(names), *(line(cells) for _, cells in rows(comparison))]
    lines += ["", f"{caption(comparison)}."] if caption(comparison) else []
    if comparison.missing:
        lines += ["", "Without a result:", "", *(f"- {missing_text(run)}" for run in comparison.missing)]
    return "\n".join(lines) + "\n"


def missing_text(run: ComparedRun) -> str:
    """A run without a result, and why."""
    return f"{run.name} {run.status}" + (f": {run.message}" if run.message else "")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it, numbers unrounded."""
    return {
        "overrides": comparison.keys,
        "same": comparison.same,
        "metrics": [{"label": metric.label, "paths": metric.paths} for metric in comparison.metrics],
        "groups": [
            {
                "overrides": group.overrides,
                "seeds": group.seeds,
                "runs": [run.folder for run in group.runs],
                "results": [
                    {"metric": label, "exit": exit or None, **asdict(cell)}
                    for (label, exit), cell in group.cells.items()
                ],
            }
            for group in comparison.groups
        ],
        "missing": [
            {"run": run.name, "folder": run.folder, "status": run.status, "message": run.message}
            for run in comparison.missing
        ],
    }


def as_csv(comparison: Comparison) -> str:
    """One line a run and exit: what a notebook reads."""
    text = io.StringIO()
    columns = [
        f"{metric.label}{end}"
        for metric in comparison.metrics
        for end in ([" before", ""] if any(before for before, _ in metric.paths) else [""])
    ]
    writer = csv.DictWriter(text, ["run", "stage", "seed", *comparison.keys, "exit", *columns], lineterminator="\n")
    writer.writeheader()
    for group in comparison.groups:
        for run in group.runs:
            found = {metric.label: metric.values(run.summary or {}) for metric in comparison.metrics}
            for exit in comparison.exits or [""]:
                row = {"run": run.folder, "stage": run.stage, "seed": run.seed, **group.overrides, "exit": exit}
                for label, values in found.items():
                    before, after = values.get(exit) or values.get("") or (None, None)
                    row |= {label: after} | ({f"{label} before": before} if f"{label} before" in columns else {})
                writer.writerow(row)
    return text.getvalue()
