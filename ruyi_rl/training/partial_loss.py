"""TRL's GRPO loss of a micro-batch from those of its parts.

TRL divides by what a micro-batch holds. Where a micro-batch is computed in several packs, each pack's loss is brought
to the whole micro-batch's denominators, so that the sum over packs is the loss that TRL would have computed at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

MEAN_OVER_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")
"""Loss types that average over the completions of a micro-batch."""
MEAN_OVER_TOKENS = ("bnpo",)
"""Loss types that average over the tokens of a micro-batch; all others divide by the generation batch's."""


def loss_share(loss_type: str, rows: float, tokens: float) -> float:
    """What a part's loss is multiplied by.

    Args:
        loss_type: TRL's.
        rows: share of the micro-batch's completions that the part holds.
        tokens: share of its tokens.
    """
    if loss_type in MEAN_OVER_ROWS:
        return rows
    return tokens if loss_type in MEAN_OVER_TOKENS else 1.0


def joined_metrics(parts: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """A micro-batch's metrics from its parts': the least of a minimum, the largest of a maximum, else the mean.

    Args:
        parts: name -> value, one mapping a part, with the same names.
        weights: of the parts, their tokens.
    """
    total = sum(weights)
    if len(parts) == 1 or not total:
        return dict(parts[0])
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.endswith("min"):
            joined[name] = min(values)
        elif name.endswith("max"):
            joined[name] = max(values)
        else:
            # A part without tokens may report NaN; it weighs nothing.
            joined[name] = sum(weight * value for weight, value in zip(weights, values) if weight) / total
    return joined


def mean_entropy(entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """() mean of (rows, length) entropies where `mask` is 1; 0 without any."""
    return (entropies * mask).sum() / mask.sum().clamp(min=1.0)
