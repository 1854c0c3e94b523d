"""What both trainers of a family do the same way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINING_ARGS_NAME

from ruyi_rl.family import Family, FamilyConfig
from ruyi_rl.training.callbacks import PhaseBorders
from ruyi_rl.training.checkpoints import Checkpoints
from ruyi_rl.training.finite_updates import METRIC, FiniteUpdates
from ruyi_rl.training.gradient_check import GradientCheck
from ruyi_rl.training.options import TRAIN_ONLY
from ruyi_rl.training.phases import PhaseClock, phase_metrics
from ruyi_rl.training.resharding import Resharding
from ruyi_rl.training.run_state import RunState


class FamilyTrainer(FiniteUpdates, Resharding, Checkpoints):
    """Mixed into TRL's trainers.

    Metrics: `time/<phase>`, wall seconds of each of `PHASES` since the last log, on the rank that logs: where another
    is slower, the wait for it is in the phase that waits. They sum to the time since the last log; the time of a
    checkpoint, which is written after its step's log, is in the next one.
    """

    phases: PhaseClock
    carried: dict[str, Any]
    """JSON values that a resumed training goes on with; each rank's own, as they were after the checkpoint's step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.phases = PhaseClock(settle=torch.cuda.synchronize if self.args.device.type == "cuda" else None)
        self.carried: dict[str, Any] = {}
        self.add_callback(PhaseBorders(self.phases))
        self.add_callback(GradientCheck(self))

    def check_stop(self) -> None:
        """Raises StepAbandoned where the run is to stop; every rank calls it at the same point of a step."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle of the arguments, which nobody reads again: whoever gets the family should not have to trust one.
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def scoring_phase(self, model) -> str:
        """Phase of a pass for log-probs through `model`: with gradients it is part of the update."""
        if torch.is_grad_enabled():
            return "update"
        return "reference" if model is self.ref_model else "old_log_probs"

    def run_state(self) -> RunState:
        """Sums that the next log will report, counters that a step in the making has moved on, and `carried`."""
        return RunState(
            {
                "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
                "loss": self._tr_loss.clone(),
                "total_loss": self._total_loss_scalar,
                "last_logged": self._globalstep_last_logged,
                "tokens": self.state.num_input_tokens_seen,
                "flos": self.current_flos,
                "carried": copy.deepcopy(self.carried),
            }
        )

    def set_run_state(self, state: RunState, same_ranks: bool) -> None:
        values = state.values
        self._metrics["train"].clear()
        self._metrics["train"].update(values["metrics"])
        self._tr_loss.fill_(values["loss"])
        self._total_loss_scalar, self._globalstep_last_logged = values["total_loss"], values["last_logged"]
        self.state.num_input_tokens_seen, self.current_flos = values["tokens"], values["flos"]
        self.carried = copy.deepcopy(values["carried"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # An evaluation's log and the closing one are no steps'.
        if self.model.training and "train_runtime" not in logs:
            logs = {**logs, METRIC: self.skipped_updates["count"], **phase_metrics(self.phases.take())}
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model) -> list[str]:
        """As for a stock Qwen, no norm decays; transformers' pattern finds `norm`, but not a family's `norms`."""
        return [name for name in super().get_decay_parameter_names(model) if ".norms." not in name]


def freeze_others(family: Family, exits: Sequence[str] | None, train_only: str | None = None) -> list[str]:
    """Freeze what is not to be trained; return the names of the trained exits, shallowest first.

    To be called before an engine is built: a trainable parameter without a gradient corrupts what ZeRO-3 accumulates.

    Args:
        exits: names; None: all, or with `expansion` all that have expansion blocks.
        train_only: None: all that the exits run through; `expansion`: what DaE trains, see `Family.freeze_except`.

    Raises:
        ValueError: an exit that the family does not have, or none at all; nothing that could be trained so.
    """
    if train_only not in (None, *TRAIN_ONLY):
        raise ValueError(f"train_only must be one of {(None, *TRAIN_ONLY)}, not {train_only!r}")
    chosen = trained_exits(family.config, train_only) if exits is None else list(exits)
    family.freeze_except(chosen, only_expansion=train_only is not None)
    return [name for name in family.exits if name in chosen]


def trained_exits(config: FamilyConfig, train_only: str | None) -> list[str]:
    """The exits that are trained where none is named, shallowest first.

    Raises:
        ValueError: `expansion`, and no exit has expansion blocks.
    """
    if train_only is None:
        return list(config.exits)
    expanded = [name for name, blocks in config.expansions.items() if blocks]
    if not expanded:
        raise ValueError(f"train_only={train_only}: no exit of {list(config.exits)} has expansion blocks")
    return expanded
