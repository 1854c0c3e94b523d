"""The loss-aware budget (SVD-LLM V2, eq. 5-6; Ruyi2 report, §4.4): who in a group of matrices gives up how much.

A matrix whose truncation at the uniform ratio costs L gets the ratio `R_w = |G| · R · g / Σg`, `g = 1 / log L`. The
formula needs a guard, for L is a norm with a scale of its own: it grows with the calibration's tokens and the inputs'
size. Near L = 1 the log is 0 and g explodes, below 1 it is negative and the order turns round. And nothing in it looks
at how fast a spectrum falls, so that even with large L a group's total loss can rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

HALVINGS = 10
"""How often the budget is moved half the way back to the uniform one before that is taken as it is."""


def full_ratio_rank(rows: int, columns: int, ratio: float) -> int:
    """Rank at which the factors of a matrix (rows, columns) hold a share 1 - ratio of its numbers; at least 1."""
    # 0.6 · 2560 is 1535.999…: what misses a whole number by rounding alone is meant to be that number.
    return max(1, math.floor((1 - ratio) * rows * columns / (rows + columns) + 1e-9))


def shares(losses: Sequence[float], limits: Sequence[float], ratio: float) -> list[float]:
    """The ratio of each matrix of a group, by eq. 6; their mean is `ratio`.

    Where a loss is below e, `log(1 + L)` stands for `log L`: positive and rising at any L, and for small ones g is
    1 / L, which depends on no scale. What is above a limit is cut there and shared out among the others in proportion
    to g.

    Args:
        losses: L of each, 0 or more, at the uniform ratio.
        limits: the largest ratio of each, none below `ratio`.
        ratio: R.
    """
    largest = max(losses)
    if largest == 0:
        return [ratio] * len(losses)
    log = math.log1p if min(losses) < math.e else math.log
    # A loss of 0 takes all it can; the floor keeps g finite.
    weights = [1 / log(max(loss, 1e-12 * largest)) for loss in losses]
    given, free, left = list(limits), set(range(len(losses))), ratio * len(losses)
    while free:
        total = sum(weights[i] for i in free)
        asked = {i: left * weights[i] / total for i in free}
        over = {i for i in free if asked[i] > limits[i]}
        if not over:
            for i in free:
                given[i] = asked[i]
            break
        left -= sum(limits[i] for i in over)
        free -= over
    return given


def budget(shapes: Sequence[tuple[int, int]], loss_at: Sequence[Callable[[int], float]], ratio: float) -> list[float]:
    """The ratio of each matrix of a group; their mean is `ratio`, and the group loses no more than at the uniform one.

    The second is checked, which the spectra make free: until `sqrt(ΣL²)` at the floored ranks is not above that of the
    uniform ratio, the ratios move half the way back to it.

    Args:
        shapes: (rows, columns) of each.
        loss_at: rank -> loss, of each.
        ratio: R.
    """

    def total(ratios: Sequence[float]) -> float:
        return math.hypot(*(loss(full_ratio_rank(*shape, r)) for loss, shape, r in zip(loss_at, shapes, ratios)))

    uniform = [ratio] * len(shapes)
    losses = [loss(full_ratio_rank(*shape, ratio)) for loss, shape in zip(loss_at, shapes)]
    # Above this no rank is left; a matrix so thin that R itself asks for less than rank 1 stays at R.
    limits = [max(ratio, 1 - (rows + columns) / (rows * columns)) for rows, columns in shapes]
    wanted, allowed = shares(losses, limits, ratio), total(uniform)
    for halving in range(HALVINGS):
        ratios = [ratio + (want - ratio) / 2**halving for want in wanted]
        if total(ratios) <= allowed:
            return ratios
    return uniform
