"""pass@k: the chance that at least one of k samples is right."""

from __future__ import annotations

import math


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate of one problem's pass@k, 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021, Evaluating Large Language Models Trained on Code, eq. 1. It is the share of all sets of k
    of the n samples that hold a right one, so that its mean over draws of the samples is pass@k itself.

    Args:
        samples: n, those that could be judged.
        right: c, those that are right.
        k: 1 or more.

    Returns:
        The share in 0..1; NaN where n < k, for nothing unbiased can be said then.
    """
    if samples < k:
        return math.nan
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4 … up to `samples`."""
    return [2**power for power in range(samples.bit_length())]
