"""Overrides against results per exit: runs that differ in their seed alone are one group. Imports no torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl.report.compare.metrics import Metric
from ruyi_rl.report.compare.runs import ComparedRun


@dataclass(frozen=True)
class Cell:
    """A metric of one exit over the seeds of a group."""

    n: int
    mean: float
    """Of the value after, where there is one before."""
    standard_error: float | None
    """Of the mean; None for one run."""
    before: float | None = None
    """None where one of the runs has none: a change is of the same runs before and after."""
    change: float | None = None
    """Mean over the runs of after - before."""
    change_standard_error: float | None = None


@dataclass
class Group:
    """Runs with the same overrides."""

    overrides: dict[str, Any]
    runs: list[ComparedRun]
    cells: dict[tuple[str, str], Cell]
    """(metric, exit); what is of the whole run stands under an empty exit."""

    @property
    def seeds(self) -> list[int]:
        return sorted(run.seed for run in self.runs if run.seed is not None)


@dataclass
class Comparison:
    """The table."""

    keys: list[str]
    """Overrides that differ."""
    exits: list[str]
    metrics: list[Metric]
    groups: list[Group]
    missing: list[ComparedRun]
    """Runs without a result."""
    same: dict[str, list[str]]
    """Key -> other keys that differ exactly where it does, and are left out."""


def compare(runs: Sequence[ComparedRun], metrics: Sequence[Metric]) -> Comparison:
    """Group runs by what differs between them, their seeds apart.

    Args:
        runs: with and without a result.
        metrics: what is compared.
    """
    finished = [run for run in runs if run.summary is not None]
    # Within one sweep what was typed says it best; else what the configurations say.
    by_sweep = all(run.swept for run in finished) and len({(run.sweep, *run.swept) for run in finished}) == 1
    values = [dict(run.swept) if by_sweep else dict(run.values) for run in finished]
    stages = {run.stage for run in finished}
    if len(stages) > 1:
        values = [{"stage": run.stage, **value} for run, value in zip(finished, values)]
    keys, same = differing_keys(values)
    groups: dict[str, Group] = {}
    for run, value in zip(finished, values):
        chosen = {key: value.get(key) for key in keys}
        groups.setdefault(_text(chosen), Group(chosen, [], {})).runs.append(run)
    for group in groups.values():
        for metric in metrics:
            found = [metric.values(run.summary or {}) for run in group.runs]
            for exit in dict.fromkeys(exit for each in found for exit in each):
                group.cells[metric.label, exit] = aggregate([each[exit] for each in found if exit in each])
    missing = [run for run in runs if run.summary is None]
    exits = exits_in_order([run.summary or {} for run in finished], list(groups.values()))
    return Comparison(keys, exits, list(metrics), list(groups.values()), missing, same)


def exits_in_order(summaries: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> list[str]:
    """The exits of the cells as the summaries order them, shallowest first; the family with the most exits leads."""
    known = sorted((list(summary.get("exits") or {}) for summary in summaries), key=len, reverse=True)
    shown = [exit for group in groups for _, exit in group.cells if exit]
    return [exit for exit in dict.fromkeys([*(exit for names in known for exit in names), *shown]) if exit in shown]


def differing_keys(values: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, list[str]]]:
    """Keys whose values differ between runs; of several that differ in the same places one.

    That is where a run starts from, else a key that all runs have, else the first: a run that starts from another's
    family does not say what that one was decided by.

    Args:
        values: key -> value for each run; a key that a run lacks counts as a value of its own.

    Returns:
        The keys, and those left out of each.
    """
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in dict.fromkeys(key for each in values for key in each):
        texts = [_text(each.get(key)) for each in values]
        if len(set(texts)) > 1:
            order = {text: place for place, text in enumerate(dict.fromkeys(texts))}
            patterns.setdefault(tuple(order[text] for text in texts), []).append(key)

    def rank(key: str) -> int:
        return 0 if key == "start_from" else 1 if all(key in each for each in values) else 2

    ranked = [sorted(keys, key=rank) for keys in patterns.values()]
    return [keys[0] for keys in ranked], {keys[0]: keys[1:] for keys in ranked if len(keys) > 1}


def aggregate(values: Sequence[tuple[float | None, float]]) -> Cell:
    """Mean and its standard error (the spread of one run over the root of their number) of before and after.

    Args:
        values: for each run, the value before, if any, and after.
    """
    after = [value for _, value in values]
    before = [first for first, _ in values if first is not None]
    changes = [value - first for first, value in values if first is not None] if len(before) == len(after) else []
    return Cell(
        n=len(after),
        mean=statistics.fmean(after),
        standard_error=standard_error(after),
        before=statistics.fmean(before) if changes else None,
        change=statistics.fmean(changes) if changes else None,
        change_standard_error=standard_error(changes),
    )


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None for fewer than two."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last words, as many as tell it from the others."""
    short = {}
    for key in keys:
        words = key.split(".")
        size = next(
            size
            for size in range(1, len(words) + 1)
            if size == len(words) or sum(_ends(other, words[-size:]) for other in keys) == 1
        )
        short[key] = ".".join(words[-size:])
    return short


def _ends(key: str, words: Sequence[str]) -> bool:
    return key.split(".")[-len(words) :] == list(words)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
