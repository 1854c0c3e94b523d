"""Going on from a checkpoint that another number of ranks, or another ZeRO mode, has written.

Weights, optimiser, schedule and place in the data come over exactly. What follows is the same to rounding only: sums
over ranks are made in another order, and random states that each rank has of its own start anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ruyi_rl import ranks
from ruyi_rl.checkpoint_folder import Seal, read_seal
from ruyi_rl.training.checkpoints import zero_mode


class Resharding:
    """Mixed into a family's trainers: `train(resume_from_checkpoint=…)` takes checkpoints of any ranks and mode."""

    def changes(self, checkpoint: Path) -> list[str]:
        """Lines for the user where other ranks or another mode have written a checkpoint; to be called before it is
        loaded."""
        seal, args = read_seal(checkpoint), self.args
        if seal is None or (same_ranks(seal) and seal.deepspeed == zero_mode(args)):
            return []
        micro_batches = args.gradient_accumulation_steps
        before = micro_batches * ranks.world_size() // seal.world_size
        steps = "the same rows in a step"
        if before != micro_batches:
            steps = f"{micro_batches} micro-batches a step on each rank in the place of {before}, of the same rows"
        line = (
            f"written by {_ranks(seal.world_size, seal.deepspeed)}, "
            f"continued by {_ranks(ranks.world_size(), zero_mode(args))}: {steps}; results agree to rounding, not bit "
            "for bit"
        )
        cycle = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)
        if same_ranks(seal) or seal.step * micro_batches % cycle == 0:
            return [line]
        return [line, "the rollouts that further updates were to use stayed with their ranks: they are drawn anew"]

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        seal = None if checkpoint is None else read_seal(checkpoint)
        if seal is None or self._loads_by_itself(seal):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        from ruyi_rl.training.resharded_state import load_resharded  # imports DeepSpeed

        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        load_resharded(self, checkpoint)
        schedule = torch.load(checkpoint / "scheduler.pt", map_location="cpu", weights_only=True)
        self.lr_scheduler.load_state_dict(fitted(schedule, len(self.optimizer.param_groups)))
        return prepared

    def _loads_by_itself(self, seal: Seal) -> bool:
        """Whether the libraries can load an optimiser that was written so: where it is whole, or sharded just so."""
        mode = zero_mode(self.args)
        if mode == "off" == seal.deepspeed:
            # Several ranks on a CPU have a device of a name that torch.load does not know.
            return self.args.device.type != "cpu" or ranks.world_size() == 1
        return seal.deepspeed == mode and same_ranks(seal)

    def _load_rng_state(self, checkpoint):
        seal = None if checkpoint is None else read_seal(Path(checkpoint))
        if seal is None or same_ranks(seal):  # those of other ranks are of no use
            super()._load_rng_state(checkpoint)


def same_ranks(seal: Seal) -> bool:
    """Whether as many ranks have written a checkpoint as there are now."""
    return seal.world_size == ranks.world_size()


def fitted(schedule: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """A learning rate schedule's state for another number of parameter groups: DeepSpeed drops those without any.

    Raises:
        ValueError: groups of different learning rates.
    """
    lists = {key: value for key, value in schedule.items() if isinstance(value, list) and len(value) != groups}
    if uneven := [key for key, value in lists.items() if any(each != value[0] for each in value)]:
        raise ValueError(f"the schedule's {uneven[0]} differs between groups of parameters: {lists[uneven[0]]}")
    return {**schedule, **{key: value[:1] * groups for key, value in lists.items()}}


def _ranks(count: int, mode: str) -> str:
    return f"{count} rank{'s' if count > 1 else ''} ({'no DeepSpeed' if mode == 'off' else mode})"
