"""Percentile bootstrap over problems: intervals of means, and of differences on the same problems."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

LEVEL = 0.95
"""Coverage of an interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its interval; None where no problem has a value."""

    value: float | None
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, float | None]:
        return asdict(self)


def resamples(problems: int, count: int, seed: int) -> np.ndarray:
    """(count, problems) float32: how often each problem is in each draw of `problems` out of them with replacement.

    The same for the same arguments: two exits' values that are weighed by it are paired by problem.
    """
    draws = np.random.default_rng(seed).integers(problems, size=(count, problems))
    draws += problems * np.arange(count)[:, None]
    return np.bincount(draws.ravel(), minlength=count * problems).reshape(count, problems).astype(np.float32)


def estimate(values: np.ndarray, weights: np.ndarray, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The mean of the problems' values and its percentile interval (Efron & Tibshirani 1993, §13.3).

    Where all values are equal, no draw differs, and the bootstrap would claim certainty. With n problems all at v, the
    share q of problems at v is above q₀ = (α/2)^(1/n) at the same confidence (Clopper & Pearson 1934); the rest may lie
    anywhere within the bounds.

    Args:
        values: (problems,) NaN where a problem has none: it is left out of every draw.
        weights: (draws, problems), see `resamples`.
        bounds: the least and the greatest value that a problem can have.
    """
    there = ~np.isnan(values)
    if not there.any():
        return Estimate(None, None, None)
    known, tail = values[there], (1 - LEVEL) / 2
    value = float(known.mean())
    if known.min() == known.max():
        surely = tail ** (1 / len(known))
        low, high = (surely * value + (1 - surely) * bound for bound in bounds)
        return Estimate(value, low, high)
    chosen = weights[:, there]
    with np.errstate(invalid="ignore"):  # a draw of none but problems without a value
        means = (chosen @ known) / chosen.sum(axis=1)
    low, high = np.nanquantile(means, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))


def paired_difference(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> Estimate:
    """Mean of one - other over the problems that both have a value of, shares each; the problems are drawn together."""
    return estimate(one - other, weights, bounds=(-1.0, 1.0))


def finite(value: float) -> float | None:
    """None for NaN, which is no JSON."""
    return None if math.isnan(value) else value
