"""What one forward of a family returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class FamilyOutput(ModelOutput):
    """One entry per asked exit, under its name. Only what was asked for is set.

    `rows` below is the batch, or the exit's own rows where `exits` mapped names to row counts.
    """

    loss: torch.Tensor | None = None
    """Scalar: the sum over exits of the mean cross-entropy, where `labels` came with `output="logits"`."""
    logits: dict[str, torch.Tensor] | None = None
    """(rows, length, vocab) in the model's dtype."""
    hidden_states: dict[str, torch.Tensor] | None = None
    """(rows, length, hidden): what the exit's head reads, i.e. after its norm."""
    log_probs: dict[str, torch.Tensor] | None = None
    """(rows, length - 1): log-probability of each next token, zero where its label is -100."""
    entropy: dict[str, torch.Tensor] | None = None
    """(rows, length - 1): entropy of the next-token distribution in nats, zero where the label is -100."""
    is_top1: dict[str, torch.Tensor] | None = None
    """(rows, length - 1): whether the label is the most likely next token."""
    past_key_values: object | None = None
    """The cache, for a single exit with `use_cache`."""
