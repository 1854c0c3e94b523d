"""What both trainers of a family do the same way."""

from __future__ import annotations

from collections.abc import Sequence


class FamilyTrainer:
    """Mixed into TRL's trainers."""

    def get_decay_parameter_names(self, model) -> list[str]:
        """As for a stock Qwen, no norm decays; transformers' pattern finds `norm`, but not a family's `norms`."""
        return [name for name in super().get_decay_parameter_names(model) if ".norms." not in name]


def train_only(family, exits: Sequence[str] | None) -> list[str]:
    """Freeze what the exits do not run through; return their names, shallowest first.

    To be called before an engine is built: a trainable parameter without a gradient corrupts what ZeRO-3 accumulates.

    Raises:
        ValueError: an exit that the family does not have, or none at all.
    """
    chosen = list(family.exits) if exits is None else list(exits)
    family.freeze_except(chosen)
    return [name for name in family.exits if name in chosen]
