"""Curves out of metrics: one line per key, thinned to what a screen shows, with its running mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

BUCKETS = 150
"""Points of a thinned line, about: a panel is some 300 pixels wide."""
SMOOTHED = 0.05
"""Share of all values over which the running mean goes, as in `curves.png`."""
LARGEST = 1e300
"""A value beyond it is left out: differences and sums would not be finite."""


@dataclass(frozen=True)
class Series:
    """The values of one key that can be drawn."""

    steps: list[float]
    values: list[float]
    left_out: int = 0
    """Values that are NaN, infinite or beyond `LARGEST`."""


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Every numeric key of `metrics.jsonl` as a series; steps of a later phase go on after those of the one before."""
    ends: dict[int, int] = {}
    for row in rows:
        ends[row["phase"]] = max(ends.get(row["phase"], 0), row["step"])
    before = {phase: sum(end for other, end in ends.items() if other < phase) for phase in ends}
    found: dict[str, tuple[list[float], list[float]]] = {}
    left_out: dict[str, int] = {}
    for row in rows:
        step = row["step"] + before[row["phase"]]
        for key, value in row.items():
            if key in ("phase", "step", "epoch") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if abs(value) < LARGEST:
                steps, values = found.setdefault(key, ([], []))
                steps.append(step)
                values.append(float(value))
            else:
                left_out[key] = left_out.get(key, 0) + 1
    empty: tuple[list[float], list[float]] = ([], [])
    return {key: Series(*found.get(key, empty), left_out.get(key, 0)) for key in [*found, *left_out]}


def running_mean(values: Sequence[float], share: float = SMOOTHED) -> list[float]:
    """Mean of each value and those before it, over a window of `share` of all values, at least 1."""
    width, total, means = max(1, round(share * len(values))), 0.0, []
    for place, value in enumerate(values):
        total += value
        if place >= width:
            total -= values[place - width]
        # A sum that is carried on keeps the rounding of the largest value it has seen.
        if place % 256 == 0:
            total = math.fsum(values[max(0, place - width + 1) : place + 1])
        means.append(total / min(width, place + 1))
    return means


def extremes(steps: Sequence[float], values: Sequence[float], buckets: int = BUCKETS) -> list[tuple[float, float]]:
    """At most 2 points a bucket, its lowest and its highest, in their order: no peak is lost."""
    if len(values) <= 2 * buckets:
        return list(zip(steps, values))
    points: list[tuple[float, float]] = []
    for start, end in _buckets(len(values), buckets):
        places = sorted(
            {min(range(start, end), key=values.__getitem__), max(range(start, end), key=values.__getitem__)}
        )
        points += [(steps[place], values[place]) for place in places]
    return points


def last_of_each(steps: Sequence[float], values: Sequence[float], buckets: int = BUCKETS) -> list[tuple[float, float]]:
    """The last point of every bucket, and the first of all: for a line that is smooth already."""
    if len(values) <= buckets:
        return list(zip(steps, values))
    places = [0, *(end - 1 for _, end in _buckets(len(values), buckets))]
    return [(steps[place], values[place]) for place in places]


def _buckets(count: int, buckets: int) -> list[tuple[int, int]]:
    borders = [round(count * place / buckets) for place in range(buckets + 1)]
    return list(pairwise(borders))
