"""Rates of exits as dots with bars on one axis: before and after a training, or a benchmark's with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ruyi_rl.report.html.line_chart import Tick, shortened
from ruyi_rl.report.html.scales import Scale, percentage, span, ticks

WIDTH, ROW, TOP, BOTTOM = 400.0, 28.0, 8.0, 34.0
LEFT, RIGHT = 92.0, 18.0
LABEL = 13
"""Characters of a row's name."""


@dataclass(frozen=True)
class Rate:
    """One row."""

    name: str
    colour: int
    value: float
    low: float | None = None
    high: float | None = None
    before: float | None = None


@dataclass(frozen=True)
class DrawnRate:
    name: str
    label: str
    colour: int
    y: float
    value: float
    bar: tuple[float, float] | None
    before: float | None


@dataclass(frozen=True)
class IntervalChart:
    """What the template draws."""

    title: str
    x_name: str
    across: list[Tick]
    rows: list[DrawnRate]
    left: float
    right: float
    bottom: float
    width: float
    height: float

    @property
    def hollow(self) -> bool:
        """Whether any row has a value before."""
        return any(row.before is not None for row in self.rows)


def interval_chart(title: str, rates: Sequence[Rate], x_name: str) -> IntervalChart:
    """A chart of shares, one row each.

    Args:
        title: what the figure shows; the rows' values are added to it, for readers who do not see it.
    """
    shown = [value for rate in rates for value in (rate.value, rate.low, rate.high, rate.before) if value is not None]
    scale = Scale(*span(shown, (0.0, 1.0)), LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rates)

    def place(value: float) -> float:
        return round(scale(value), 1)

    rows = [
        DrawnRate(
            name=rate.name,
            label=shortened(rate.name, LABEL),
            colour=rate.colour,
            y=TOP + ROW * (number + 0.5),
            value=place(rate.value),
            bar=None if rate.low is None or rate.high is None else (place(rate.low), place(rate.high)),
            before=None if rate.before is None else place(rate.before),
        )
        for number, rate in enumerate(rates)
    ]
    told = "; ".join(_told(rate) for rate in rates)
    across = [Tick(place(value), percentage(value)) for value in ticks(scale.low, scale.high, 5)]
    return IntervalChart(f"{title}: {told}", x_name, across, rows, LEFT, WIDTH - RIGHT, bottom, WIDTH, bottom + BOTTOM)


def _told(rate: Rate) -> str:
    before = f"from {percentage(rate.before)} to " if rate.before is not None else ""
    between = (
        f" ({percentage(rate.low)} to {percentage(rate.high)})"
        if rate.low is not None and rate.high is not None
        else ""
    )
    return f"{rate.name} {before}{percentage(rate.value)}{between}"
