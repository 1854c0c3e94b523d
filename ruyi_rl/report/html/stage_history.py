"""What each stage made of each exit: as a figure and as a table, from the history that `stage=eval` has written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl.report.batch import byte_size
from ruyi_rl.report.history import rate, source
from ruyi_rl.report.html.line_chart import Chart, Line, line_chart
from ruyi_rl.report.html.records import RunRecord
from ruyi_rl.report.html.scales import percentage
from ruyi_rl.report.html.table import Cell, ShownTable, table

SIZE = (760.0, 280.0)
LEAST = 3
"""Measurements of an exit that make a figure: two stand in the exits' table."""


@dataclass(frozen=True)
class History:
    """The exits over the stages."""

    chart: Chart | None
    table: ShownTable


def history(run: RunRecord, numbers: Mapping[str, int]) -> History | None:
    """Of the newest evaluation that has one."""
    found = next((record.summary["history"] for record in reversed(run.stages) if record.summary.get("history")), None)
    rows = found["rows"] if found else []
    return History(_chart(rows, numbers), _table(rows, numbers)) if rows else None


def _chart(rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> Chart | None:
    """Only measurements that were made alike, in the order of the stages."""
    stages = list(dict.fromkeys(row["stage"] for row in sorted(rows, key=lambda row: _place(rows, row))))
    lines = []
    for exit in dict.fromkeys(row["exit"] for row in rows):
        own = [row for row in rows if row["exit"] == exit and _measured(row)]
        points = [(float(stages.index(row["stage"])), row["pass_rate"]) for row in own]
        if points:
            lines.append(Line(exit, numbers.get(exit, -1), points, errors=[row["standard_error"] for row in own]))
    if max((len(line.strong) for line in lines), default=0) < LEAST:
        return None
    told = "; ".join(f"{line.name} {', '.join(percentage(value) for _, value in line.strong)}" for line in lines)
    return line_chart(
        f"Held-out pass rate after each stage ({', '.join(stages)}): {told}",
        lines,
        "after stage",
        bounds=(0.0, 1.0),
        text=percentage,
        x_text=lambda place: stages[round(place)] if 0 <= round(place) < len(stages) else "",
        across=range(len(stages)),
        size=SIZE,
    )


def _place(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> int:
    """A stage's place: that of its row among those of the exit that has most."""
    longest: dict[str, list[str]] = {}
    for each in rows:
        longest.setdefault(each["exit"], []).append(each["stage"])
    order = max(longest.values(), key=len)
    return order.index(row["stage"]) if row["stage"] in order else len(order)


def _measured(row: Mapping[str, Any]) -> bool:
    return row["comparable"] and row["pass_rate"] is not None and not math.isnan(row["pass_rate"])


def _table(rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> ShownTable:
    shown = [
        {
            "exit": Cell(row["exit"], exit=numbers.get(row["exit"])),
            "after stage": row["stage"],
            "layers": str(row["layers"]),
            "parameters": f"{row['parameters']:,}",
            "on disk": byte_size(row["bytes"]),
            "held-out pass rate": rate(row["pass_rate"], row["standard_error"]),
            "greedy": rate(row["greedy"]),
            "measured by": source(row)
            if row["comparable"] or not row["measured_by"]
            else f"{source(row)}, in another way",
        }
        for row in rows
    ]
    return table("Every exit after every stage", shown)
