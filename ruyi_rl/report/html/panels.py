"""The panels of a stage's curves: which there are, with what in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ruyi_rl.report.html.line_chart import Chart, Line, line_chart
from ruyi_rl.report.html.metric import HIDDEN, OF_EXITS, OF_TRAINING, Metric
from ruyi_rl.report.html.records import StageRecord
from ruyi_rl.report.html.scales import percentage, plain
from ruyi_rl.report.html.series import Series, columns, extremes, last_of_each, running_mean

MEASURED = "eval/pass_rate"
"""The metric that is a measurement of its own, not a batch's: it has error bars and no running mean."""
LEAST_SHARE, LEAST_CHANGE = 5e-4, 1e-6
"""Differences below these are rounding: of a share, and of another value, as a part of it."""
BARS = 40
"""Measurements of a line that have room for error bars."""
Lines = Mapping[str, Series]
"""Exit -> its series; under "" that of the training as a whole."""


@dataclass(frozen=True)
class Panel:
    """One chart with its words."""

    title: str
    meaning: str
    chart: Chart
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """All that a stage's metrics show."""

    known: list[Panel]
    further: list[Panel]
    """Of metrics that this report knows nothing about, such as a reward function's own."""
    constant: list[str]
    """What never changed, as `Cut completions 0 %`."""
    steps: int


def curves(record: StageRecord, exits: Mapping[str, int]) -> Curves | None:
    """The curves of a stage; None where it has logged nothing.

    Args:
        exits: name -> number, of all exits of the run.
    """
    found = columns(_with_ends(record))
    if not found:
        return None
    known, further, constant = [], [], []
    for metric, lines, is_known in _grouped(found, exits):
        if all(not series.values for series in lines.values()):
            constant.append(f"{metric.title} never finite")
        elif (value := _only_value(metric, lines)) is not None:
            constant.append(f"{metric.title} {_text(metric)(value)}")
        else:
            errors = {name: found.get(f"{name}/eval/standard_error") for name in lines}
            (known if is_known else further).append(_panel(metric, lines, exits, errors))
    return Curves(known, further, constant, max((row["step"] for row in record.rows), default=0))


def _grouped(found: Mapping[str, Series], exits: Mapping[str, int]) -> list[tuple[Metric, Lines, bool]]:
    """The metrics that are there, known ones first, with their lines and whether they are known."""
    by_exit: dict[str, dict[str, Series]] = {}
    whole: dict[str, Series] = {}
    longest = sorted(exits, key=len, reverse=True)  # an exit's name may begin with another's and a slash
    for key, series in found.items():
        exit = next((name for name in longest if key.startswith(f"{name}/")), None)
        if exit is not None:
            by_exit.setdefault(key[len(exit) + 1 :], {})[exit] = series
        elif not key.startswith(HIDDEN):
            whole[key] = series
    ordered = {key: {name: lines[name] for name in exits if name in lines} for key, lines in by_exit.items()}
    groups = [(metric, ordered.pop(metric.key), True) for metric in OF_EXITS if metric.key in ordered]
    seen = {metric.key for metric, _, _ in groups}
    groups += [(metric, {"": whole.pop(metric.key)}, True) for metric in OF_TRAINING if metric.key in whole]
    ordered.pop("eval/standard_error", None)
    groups += [(Metric(key, key, ""), lines, False) for key, lines in ordered.items()]
    # What each exit has for itself, the mean over all of them need not repeat.
    rest = (key for key in whole if key not in seen and key not in ordered)
    return groups + [(Metric(key, key, "all exits together"), {"": whole[key]}, False) for key in rest]


def _only_value(metric: Metric, lines: Lines) -> float | None:
    """The value that all points share as far as a label shows; None where they differ, or there is but one step."""
    values = [value for series in lines.values() for value in series.values]
    steps = max(len(series.values) for series in lines.values())
    low, high = min(values), max(values)
    shown = LEAST_SHARE if metric.share else LEAST_CHANGE * max(abs(low), abs(high))
    return low if high - low <= shown and steps > 1 else None


def _panel(metric: Metric, lines: Lines, exits: Mapping[str, int], errors: Mapping[str, Series | None]) -> Panel:
    drawn, told = [], []
    for name, series in lines.items():
        if not series.values:
            continue
        number = exits.get(name, -1)
        if metric.key == MEASURED and len(series.values) <= BARS:
            bars = errors[name]
            known = dict(zip(bars.steps, bars.values)) if bars else {}
            points = list(zip(series.steps, series.values))
            drawn.append(Line(name, number, points, errors=[known.get(step) for step in series.steps]))
        elif not metric.noisy:
            drawn.append(Line(name, number, last_of_each(series.steps, series.values)))
        else:
            smooth = running_mean(series.values)
            faint = extremes(series.steps, series.values)
            drawn.append(Line(name, number, last_of_each(series.steps, smooth), faint))
        first, last = drawn[-1].strong[0][1], drawn[-1].strong[-1][1]
        text = _text(metric)
        told.append(f"{name + ' ' if name else ''}from {text(first)} to {text(last)}")
    left_out = sum(series.left_out for series in lines.values())
    note = f"{left_out:,} values are not finite and left out" if left_out else ""
    title = f"{metric.title} over optimiser steps: {'; '.join(told)}"
    chart = line_chart(
        title,
        drawn,
        "optimiser step",
        bounds=(0.0, 1.0) if metric.share else (None, None),
        text=_text(metric),
        named=len(lines) > 1 or "" not in lines,
    )
    return Panel(metric.title, metric.meaning, chart, note)


def _text(metric: Metric) -> Callable[[float], str]:
    return percentage if metric.share else plain


def _with_ends(record: StageRecord) -> list[dict[str, Any]]:
    """The rows, and the measurements around the training as rows at its first and last step, where some lie between."""
    rows = record.rows
    if not any(MEASURED in row for row in rows):
        return rows
    exits = record.summary.get("exits") or {}
    before = {
        name: (values["pass_before"], values.get("pass_before_standard_error"))
        for name, values in exits.items()
        if values.get("pass_before") is not None
    }
    after = {
        name: (score["pass_rate"], score.get("standard_error"))
        for name, score in ((record.summary.get("held_out") or {}).get("exits") or {}).items()
    }
    first = {"phase": rows[0]["phase"], "step": 0, **_measurement(before)}
    return [first, *rows, {"phase": rows[-1]["phase"], "step": rows[-1]["step"], **_measurement(after)}]


def _measurement(scores: Mapping[str, tuple[float, float | None]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, (rate, error) in scores.items():
        found |= {f"{name}/{MEASURED}": rate, f"{name}/eval/standard_error": error}
    return found
