"""What `stage=eval` found on each benchmark: rates with intervals, differences between exits, the harness's tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl.report.html.interval_chart import IntervalChart, Rate, interval_chart
from ruyi_rl.report.html.records import RunRecord
from ruyi_rl.report.html.scales import operations
from ruyi_rl.report.html.table import Cell, ShownTable, table
from ruyi_rl.report.tables import percent

CHARTED = ("pass@1", "greedy")
"""The metric that the figure shows: the first of these that is there."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's tables and figure."""

    name: str
    told: str
    rates: ShownTable
    differences: ShownTable | None
    chart: IntervalChart | None


def benchmarks(run: RunRecord, numbers: Mapping[str, int]) -> list[Benchmark]:
    """Of the newest evaluation that has any."""
    for record in reversed(run.stages):
        if found := record.summary.get("benchmarks"):
            return [_benchmark(name, values, numbers) for name, values in found.items()]
    return []


def harness_table(run: RunRecord, numbers: Mapping[str, int]) -> ShownTable | None:
    """One row a task of lm-evaluation-harness, one column an exit."""
    found = next((record.summary["harness"] for record in reversed(run.stages) if record.summary.get("harness")), None)
    if not found:
        return None
    rows = []
    for task, values in found.items():
        exits = values.get("exits") or {}
        scores = {name: _score(exits[name]) for name in [*numbers, *exits] if name in exits}
        rows.append({"task": Cell(task, str(values.get("metric", ""))), **scores})
    return table("Tasks of lm-evaluation-harness", rows, note="± 1 standard error, as the harness gives it.")


def published_table(run: RunRecord) -> ShownTable | None:
    """The measured scores beside the reported ones, where the family was published."""
    summary = next((record.summary for record in reversed(run.stages) if record.summary.get("published")), None)
    if summary is None:
        return None
    found = summary["published"]
    names = dict.fromkeys(name for values in found.values() for name in values["benchmarks"])
    rows = [
        {"benchmark": name, **{exit: _beside(values["benchmarks"].get(name)) for exit, values in found.items()}}
        for name in names
    ]
    rows.append({"benchmark": "mean of these", **{exit: _beside(values["average"]) for exit, values in found.items()}})
    models = ", ".join(f"{exit}: {values['model']}" for exit, values in found.items())
    note = f"{models}. {summary.get('published_source', '')}"
    return table("Measured, and as reported", rows, note=note)


def _beside(score: Mapping[str, Any] | None) -> Cell | str:
    return "" if score is None else Cell(percent(score["measured"]), f"reported {percent(score['reported'])}")


def _benchmark(name: str, found: Mapping[str, Any], numbers: Mapping[str, int]) -> Benchmark:
    exits = found.get("exits") or {}
    order = [exit for exit in [*numbers, *exits] if exit in exits]
    order = list(dict.fromkeys(order))
    rows = [{"exit": Cell(exit, exit=numbers.get(exit)), **_scores(exits[exit])} for exit in order]
    left_out = f", {found['left_out']:,} left out" if found.get("left_out") else ""
    drawn = f"greedy and {found.get('samples', 0)} samples each"
    told = f"{found.get('problems', 0):,} problems{left_out}, {drawn}; 95 % intervals over problems"
    return Benchmark(
        name=name,
        told=told,
        rates=table("Rates of each exit", rows, ["exit"]),
        differences=_differences(found.get("differences") or []),
        chart=_chart(name, {exit: exits[exit] for exit in order}, numbers),
    )


def _scores(values: Mapping[str, Any]) -> dict[str, Cell | str]:
    cells: dict[str, Cell | str] = {}
    for key, value in values.items():
        if _known(value):
            cells[key] = Cell(percent(value["value"]), _interval(value))
    if _finite(tokens := values.get("mean_tokens")):
        cells["tokens"] = f"{tokens:.1f}"
    if _finite(truncated := values.get("truncated")):
        cells["cut off"] = percent(truncated)
    if _finite(seconds := values.get("seconds")):
        cells["seconds"] = f"{seconds:,.1f}"
    if _finite(cost := values.get("cost")):
        cells["cost"] = Cell(operations(cost), "an answer")
    if failures := values.get("failures"):
        cells["not judged"] = f"{failures:,}"
    return cells


def _differences(found: Sequence[Mapping[str, Any]]) -> ShownTable | None:
    if not found:
        return None
    rows = []
    for each in (each for each in found if _finite(each["value"])):
        deeper, shallower = each["exits"]
        shown = f"{_points(each.get('low'))} to {_points(each.get('high'))}" if _finite(each.get("low")) else ""
        rows.append(
            {
                "exits": f"{deeper} − {shallower}",
                "metric": str(each["metric"]),
                "difference": Cell(f"{_points(each['value'])} points", shown),
                "": _judged(each),
            }
        )
    return table("Differences between exits, problem by problem", rows) if rows else None


def _judged(each: Mapping[str, Any]) -> str:
    low, high = each.get("low"), each.get("high")
    if not (_finite(low) and _finite(high)):
        return ""
    return "within noise" if low <= 0 <= high else "beyond noise"


def _chart(name: str, exits: Mapping[str, Mapping[str, Any]], numbers: Mapping[str, int]) -> IntervalChart | None:
    metric = next((key for key in CHARTED if any(_known(values.get(key)) for values in exits.values())), None)
    if metric is None:
        return None
    rates = [
        Rate(
            exit, numbers.get(exit, -1), values[metric]["value"], values[metric].get("low"), values[metric].get("high")
        )
        for exit, values in exits.items()
        if _known(values.get(metric))
    ]
    return interval_chart(f"{name}, {metric}", rates, f"{metric}, with its 95 % interval")


def _known(value: Any) -> bool:
    return isinstance(value, Mapping) and _finite(value.get("value"))


def _score(values: Mapping[str, Any]) -> Cell:
    error = values.get("standard_error")
    return Cell(percent(values.get("value")), f"± {100 * error:.1f}" if _finite(error) else "")


def _interval(value: Mapping[str, Any]) -> str:
    low, high = value.get("low"), value.get("high")
    return f"{100 * low:.1f} to {100 * high:.1f}" if _finite(low) and _finite(high) else ""


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
