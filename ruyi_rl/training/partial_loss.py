"""TRL's GRPO loss of a micro-batch from those of its parts.

TRL divides by what a micro-batch holds. Where a micro-batch is computed in several packs, each pack's loss is brought
to the whole micro-batch's denominators, so that the sum over packs is the loss that TRL would have computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from trl import GRPOTrainer

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


def mean_entropy(entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """() mean of (rows, length) entropies where `mask` is 1; 0 without any."""
    return (entropies * mask).sum() / mask.sum().clamp(min=1.0)


class Alone:
    """An accelerator for which there are no other ranks: packs of equal tokens hold different rows on each."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    def __getattr__(self, name: str):
        return getattr(self._accelerator, name)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return tensor


@contextmanager
def unreported(trainer: GRPOTrainer) -> Iterator[None]:
    """TRL's loss, computed in here, asks no other rank and leaves no metric and no state of the entropy's control."""
    names = ("accelerator", "_entropy_window_stats", "entropy_coef", "_last_world_entropy")
    kept = {name: getattr(trainer, name) for name in names}
    trainer.accelerator = Alone(trainer.accelerator)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
