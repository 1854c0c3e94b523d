"""λ_k(t): the weight of each exit's loss over a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ruyi_rl.training.options import LossWeightOptions

PRESETS = ("uniform", "ee_llm", "layerskip")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LossWeights:
    """λ_k moves from `start` to `end` as a run goes from progress 0 to 1."""

    start: Mapping[str, float]
    end: Mapping[str, float]
    schedule: str = "constant"

    def at(self, progress: float) -> dict[str, float]:
        """Exit -> λ at `progress` in [0, 1]; `λ(t) = start + (end - start)·r(t)` (EE-LLM, arXiv 2312.04916, §3)."""
        progress = min(max(progress, 0.0), 1.0)
        share = {
            "constant": 0.0,
            "linear": progress,
            "cosine": (1 - math.cos(math.pi * progress)) / 2,
        }[self.schedule]
        return {exit: first + (self.end[exit] - first) * share for exit, first in self.start.items()}


def loss_weights(options: LossWeightOptions, exits: Mapping[str, int]) -> LossWeights:
    """The weights that the options describe.

    Args:
        options: preset, schedule and per-exit values.
        exits: the trained exits, name -> position k, shallowest first.

    Raises:
        ValueError: an unknown preset, schedule or exit, or a negative weight.
    """
    names, last = list(exits), list(exits)[-1]
    schedule = "constant"
    if options.preset in (None, "uniform"):
        start = end = dict.fromkeys(names, 1.0)
    elif options.preset == "ee_llm":
        # EE-LLM keeps the main loss at 1 and the exits' between 0.1 and 0.5; lower exits weigh more early and decay.
        start = {name: 1.0 if name == last else 0.5 for name in names}
        end = {name: 1.0 if name == last else 0.1 for name in names}
        schedule = "linear"
    elif options.preset == "layerskip":
        # In proportion to the branch's depth k + 1: .046, .338, .615 for exits 2, 21, 39 (LayerSkip, arXiv 2404.16710).
        total = sum(depth + 1 for depth in exits.values())
        start = end = {name: (depth + 1) / total for name, depth in exits.items()}
    else:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)} or null, not {options.preset!r}")
    schedule = options.schedule or schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    for values in (options.start, options.end):
        if unknown := [name for name in values if name not in exits]:
            raise ValueError(f"no such exit: {unknown}; trained are {names}")
    # An end that is not given stays where the start was put by hand.
    weights = LossWeights({**start, **options.start}, {**end, **options.start, **options.end}, schedule)
    if any(value < 0 for value in (*weights.start.values(), *weights.end.values())):
        raise ValueError("a loss weight cannot be negative")
    return weights
