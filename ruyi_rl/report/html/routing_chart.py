"""What routing problems between exits could give: accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl.report.html.line_chart import Chart, Line, line_chart
from ruyi_rl.report.html.records import RunRecord
from ruyi_rl.report.html.scales import operations, percentage, ticks
from ruyi_rl.report.html.table import Cell, ShownTable, table

SIZE = (380.0, 300.0)
RULE, ORACLE = -1, -2
"""Colours of the lines that are no exit's."""


@dataclass(frozen=True)
class Routing:
    """One benchmark's curve and figures."""

    benchmark: str
    chart: Chart
    table: ShownTable
    told: str


def routings(run: RunRecord, numbers: Mapping[str, int]) -> list[Routing]:
    """Of the newest evaluation that has any."""
    for record in reversed(run.stages):
        found = record.summary.get("benchmarks") or {}
        drawn = [_routing(name, values["routing"], numbers) for name, values in found.items() if values.get("routing")]
        if shown := [each for each in drawn if each is not None]:
            return shown
    return []


def _routing(name: str, found: Mapping[str, Any], numbers: Mapping[str, int]) -> Routing | None:
    exits, rule = found.get("exits") or {}, found.get("confidence") or {}
    lines = [
        Line("oracle", ORACLE, _points(found.get("frontier") or [])),
        Line("rule", RULE, _points(rule.get("curve") or [])),
        *(Line(exit, numbers.get(exit, -1), _points([point])) for exit, point in exits.items()),
    ]
    lines = [line for line in lines if line.strong]
    if len(lines) < 2:
        return None
    told = "; ".join(
        f"{line.name} {percentage(line.strong[-1][1])} at {operations(line.strong[-1][0])}" for line in lines
    )
    title = f"{name}, accuracy against cost: {told}"
    chart = line_chart(
        title,
        lines,
        "cost of a problem",
        bounds=(0.0, 1.0),
        text=percentage,
        x_text=operations,
        across=_across(lines),
        size=SIZE,
    )
    return Routing(name, chart, _table(found, numbers), _told(found))


def _across(lines: Sequence[Line]) -> list[float]:
    costs = [cost for line in lines for cost, _ in line.strong]
    return ticks(min(costs), max(costs), 3) if max(costs) > min(costs) else [costs[0]]


def _table(found: Mapping[str, Any], numbers: Mapping[str, int]) -> ShownTable:
    cheapest = found.get("cheapest_right") or {}
    rows = [
        {
            "answered by": Cell(exit, exit=numbers.get(exit)),
            "accuracy": percentage(point["accuracy"]),
            "cost": operations(point["cost"]),
            "cheapest right": f"{cheapest[exit]:,}" if exit in cheapest else "",
        }
        for exit, point in (found.get("exits") or {}).items()
    ]
    if cheapest.get("none"):
        rows.append({"answered by": "none is right", "cheapest right": f"{cheapest['none']:,}"})
    oracle, chosen = found.get("oracle"), (found.get("confidence") or {}).get("chosen")
    if oracle:
        accuracy = oracle["accuracy"]
        value = accuracy["value"] if isinstance(accuracy, Mapping) else accuracy
        rows.append({"answered by": "oracle", "accuracy": percentage(value), "cost": operations(oracle["cost"])})
    if chosen:
        values = {"accuracy": percentage(chosen["accuracy"]), "cost": operations(chosen["cost"])}
        rows.append({"answered by": Cell("confidence rule", "as it was chosen"), **values})
    return table("Who answers a problem, and what it costs", rows)


def _told(found: Mapping[str, Any]) -> str:
    """On which problems the rule was chosen, and on which it is shown."""
    problems = (found.get("confidence") or {}).get("problems") or {}
    if not problems:
        return ""
    return (
        f"The confidence rule was chosen on {problems['chosen_on']:,} of the problems and is shown on the other "
        f"{problems['reported_on']:,}; all else is of all problems."
    )


def _points(found: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    points = [(each.get("cost"), each.get("accuracy")) for each in found]
    known = [(cost, accuracy) for cost, accuracy in points if cost is not None and accuracy is not None]
    return sorted((cost, accuracy) for cost, accuracy in known if math.isfinite(cost) and math.isfinite(accuracy))
