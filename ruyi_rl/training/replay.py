"""The second SFT stage's mix: its own rows and a share of replayed first-stage rows."""

from __future__ import annotations

import random

from datasets import Dataset, concatenate_datasets


def replay_indices(first: int, second: int, share: float, seed: int) -> list[int]:
    """Order of the mixed rows, as indices into first-stage rows followed by second-stage rows.

    Every second-stage row stands there once. First-stage rows make up `share` of the mix, to the nearest row; they are
    drawn without replacement, and again from the start where there are too few.

    Args:
        first: number of first-stage rows.
        second: number of second-stage rows.
        share: of the mix, 0 <= share < 1.
        seed: decides draw and order.

    Raises:
        ValueError: a share outside [0, 1), or rows to replay where there are none.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the replayed share must be at least 0 and below 1, not {share}")
    wanted = round(second * share / (1 - share))
    if wanted and not first:
        raise ValueError("there are no first-stage rows to replay")
    generator = random.Random(seed)
    replayed: list[int] = []
    while len(replayed) < wanted:
        replayed += generator.sample(range(first), min(first, wanted - len(replayed)))
    mixed = replayed + [first + index for index in range(second)]
    generator.shuffle(mixed)
    return mixed


def mixed_rows(first: Dataset, second: Dataset, share: float, seed: int) -> Dataset:
    """The rows that both datasets' common columns give in the order of `replay_indices`."""
    columns = [name for name in second.column_names if name in first.column_names]
    both = concatenate_datasets([first.select_columns(columns), second.select_columns(columns)])
    return both.select(replay_indices(len(first), len(second), share, seed))
