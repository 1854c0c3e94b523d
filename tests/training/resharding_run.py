"""The ranks of the runs that test_resharding.py continues on other numbers of ranks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import recovery_run
import torch
import zero_run
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from transformers import Trainer, TrainerCallback
from trl import GRPOConfig, SFTConfig

from ruyi_rl import ranks
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.training.arguments import trainer_arguments
from ruyi_rl.training.callbacks import NoLastCheckpoint
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.options import DeepSpeedOptions
from ruyi_rl.training.rank_change import RankChange
from ruyi_rl.training.session import enter_deepspeed, leave_deepspeed, release
from ruyi_rl.training.sft_trainer import FamilySFTTrainer

SEED, STEPS, STOP = 5, 4, 2
MICRO_BATCHES = 4  # of all ranks in an optimiser step
COMMON = {
    "max_steps": STEPS,
    "save_steps": STOP,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
}
"""A warm-up that is under way at the checkpoint, parameters with decay and without, clipping."""
SFT = {"per_device_train_batch_size": 2, "max_length": 64}
GRPO = {
    "per_device_train_batch_size": 2 * zero_run.SAMPLES,  # of two exits
    "num_generations": zero_run.SAMPLES,
    "max_completion_length": 16,
    "beta": 0.04,
}


@dataclass(frozen=True)
class Leg:
    """A run by the ranks that there are."""

    name: str
    mode: str
    goes_on: str | None = None
    """Name of the run whose checkpoint it continues."""
    began_on: int | None = None
    """Ranks of that run."""
    kind: str = "sft"
    bf16: bool = False
    exits: tuple[str, ...] | None = None
    cut: int | None = None
    """Elements of a flat tensor of ZeRO-3 at most, so that each group has several; None: one for each group."""


class LeaveStates(TrainerCallback):
    """Leaves `states(trainer)` in `<step>.pt` when the checkpoint's steps are done, or come over, and at the end."""

    def __init__(self, trainer: Trainer, folder: Path):
        self.trainer, self.folder = trainer, folder

    def on_train_begin(self, args, state, control, **kwargs):
        self.leave(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.leave(state.global_step)

    def leave(self, step: int) -> None:
        if step in (STOP, STEPS):
            found = states(self.trainer)
            if ranks.rank() == 0:
                torch.save(found, self.folder / f"{step}.pt")


def states(trainer: Trainer) -> dict[str, dict[str, torch.Tensor | float]]:
    """Trained parameter -> its float32 weight, its optimiser states, and its group's learning rate and decay."""
    optimizer = trainer.optimizer.optimizer
    plain = isinstance(optimizer, torch.optim.Optimizer)
    inner = optimizer if plain else optimizer.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed has looked for the states when the first group was stepped: those of the others were not there yet.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    decayed = trainer.get_decay_parameter_names(trainer.model)
    by_decay = {
        bool(group["weight_decay"]): {key: group[key] for key in ("lr", "weight_decay")} for group in inner.param_groups
    }
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = inner.state[parameter] if plain else next(iter(inner.state.values()))
        tensors = {"weight": parameter if plain else safe_get_full_fp32_param(parameter)}
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[key] = own[key] if plain else safe_get_full_optimizer_state(parameter, key)
        tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        found[name] = {**tensors, "step": float(own["step"]), **by_decay[name in decayed]}
    return found


def trainer_of(leg: Leg, start: Path, folder: Path) -> Trainer:
    changes = {} if leg.cut is None else {"zero_optimization": {"sub_group_size": leg.cut}}
    sharding = deepspeed_config(DeepSpeedOptions(leg.mode, changes), ranks.world_size())
    enter_deepspeed(sharding)
    began_on = leg.began_on or ranks.world_size()
    given = {**COMMON, "bf16": leg.bf16, "gradient_accumulation_steps": MICRO_BATCHES // began_on}
    given |= GRPO if leg.kind == "grpo" else SFT
    if leg.kind == "recovery":
        given = RankChange(began_on, ranks.world_size()).scaled(given, "sft")
        changes = {**given, "seed": SEED, "data_seed": SEED, "save_strategy": "steps", "deepspeed": sharding}
        return recovery_run.trainer(folder, changes, save=None)
    kind = GRPOConfig if leg.kind == "grpo" else SFTConfig
    args = trainer_arguments(kind, leg.kind, given, folder / "out", SEED, {"deepspeed": sharding}, began_on)
    common = {
        "model": Family.from_pretrained(start / "family"),
        "args": args,
        "processing_class": byte_tokenizer(),
        "exits": leg.exits,
    }
    if leg.kind == "sft":
        return FamilySFTTrainer(train_dataset=zero_run.sft_rows(), **common)
    return FamilyGRPOTrainer(
        reward_funcs=zero_run.reward, train_dataset=zero_run.grpo_rows(), rollout=zero_run.FixedRollout(), **common
    )


def main(start: Path, legs: Sequence[Leg]) -> None:
    """Trains each leg to its end; leaves its states and what it tells the user in a folder of its name in `start`."""
    for leg in legs:
        folder = start / leg.name
        folder.mkdir(exist_ok=True)
        trainer = trainer_of(leg, start, folder)
        checkpoint = None if leg.goes_on is None else start / leg.goes_on / "out" / f"checkpoint-{STOP}"
        if checkpoint is not None and ranks.rank() == 0:
            (folder / "changes.json").write_text(json.dumps(trainer.changes(checkpoint)))
        for callback in (LeaveStates(trainer, folder), NoLastCheckpoint()):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.accelerator.wait_for_everyone()
        release(trainer)
        leave_deepspeed()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
