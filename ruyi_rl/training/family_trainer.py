"""What both trainers of a family do the same way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ruyi_rl.training.callbacks import PhaseBorders
from ruyi_rl.training.phases import PhaseClock, in_phase, phase_metrics


class FamilyTrainer:
    """Mixed into TRL's trainers.

    Metrics: `time/<phase>`, wall seconds of each of `PHASES` since the last log, on the rank that logs: where another
    is slower, the wait for it is in the phase that waits. They sum to the time since the last log; the time of a
    checkpoint, which is written after its step's log, is in the next one.
    """

    phases: PhaseClock

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.phases = PhaseClock(settle=torch.cuda.synchronize if self.args.device.type == "cuda" else None)
        self.add_callback(PhaseBorders(self.phases))

    def scoring_phase(self, model) -> str:
        """Phase of a pass for log-probs through `model`: with gradients it is part of the update."""
        if torch.is_grad_enabled():
            return "update"
        return "reference" if model is self.ref_model else "old_log_probs"

    @in_phase("save")
    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # An evaluation's log and the closing one are no steps'.
        if self.model.training and "train_runtime" not in logs:
            logs = {**logs, **phase_metrics(self.phases.take())}
        super().log(logs, start_time)

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
