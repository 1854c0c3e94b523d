"""Axes: round numbers as ticks, values as places, numbers as short texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Distances of ticks, times a power of ten, that are read at a glance."""
SMALLEST = 1e-300
"""What lies closer together is one value: quotients of smaller numbers are not exact."""


@dataclass(frozen=True)
class Scale:
    """A linear map of values in [low, high] to places in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def span(values: Sequence[float], bounds: tuple[float | None, float | None] = (None, None)) -> tuple[float, float]:
    """The range that an axis shows: of the finite values, a little wider; a single value stands in its middle.

    Args:
        bounds: values that it never goes beyond, such as 0 and 1 for a share, but where a value does.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    spread = high - low or abs(high)
    spread = spread if spread >= SMALLEST else 1.0
    wide_low, wide_high = low - 0.06 * spread, high + 0.06 * spread
    if high == low:
        wide_low, wide_high = low - 0.5 * spread, high + 0.5 * spread
    lowest, highest = bounds
    if lowest is not None and low >= lowest:
        wide_low = max(wide_low, lowest)
    if highest is not None and high <= highest:
        wide_high = min(wide_high, highest)
    return wide_low, wide_high


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers in [low, high], evenly apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) + 0.0 for place in range(first, last + 1)]


def plain(value: float) -> str:
    """A number in at most four figures: `0.125`, `12.5`, `4.2k`, `1e-06`."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.2g}"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.4g}" if size >= 1 else f"{value:.3g}"


def percentage(value: float) -> str:
    """A share as `41.2 %`."""
    return f"{round(100 * value, 1) + 0.0:g} %"


def operations(teraflops: float) -> str:
    """A number of operations, given in TFLOP, as `31.9 MFLOP`."""
    units = {"PFLOP": 1e3, "TFLOP": 1.0, "GFLOP": 1e-3, "MFLOP": 1e-6}
    unit = next((name for name, size in units.items() if abs(teraflops) >= size), "MFLOP")
    return f"{teraflops / units[unit]:.3g} {unit}"
