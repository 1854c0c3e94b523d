"""The recovery of `stage=compress`: its factors are tuned, with the uncompressed branch as the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from ruyi_rl import ranks
from ruyi_rl.execution import StageContext
from ruyi_rl.family.calibration import compressed_modules
from ruyi_rl.family.truncation import Factors
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.factor_files import FACTORS, load_factors, save_compressed
from ruyi_rl.stages.held_out import release_memory
from ruyi_rl.stages.inputs import load_family
from ruyi_rl.training.arguments import trainer_arguments
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.options import ZERO_STAGES, DeepSpeedOptions
from ruyi_rl.training.recovery_trainer import RecoveryTrainer
from ruyi_rl.training.session import enter_deepspeed, leave_deepspeed, train
from ruyi_rl.training.taught_branch import TaughtBranch

KEY = "compress.trainer"


def recover(context: StageContext, exit: str, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    """Tunes the factors for `compress.recover_steps` and saves the family with them in the stage's folder.

    It starts from the uncompressed family and the factors beside the compressed one, so that a second attempt does not
    start from what the first has left half written.

    Raises:
        Refusal: trainer fields that make no run.
        StopNow: a signal came; a checkpoint of the last full step is saved.
    """
    sharding = recovery_sharding(context)
    enter_deepspeed(sharding)
    _train(context, exit, tokenizer, rows, sharding)
    leave_deepspeed()
    release_memory()


def _train(
    context: StageContext,
    exit: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    sharding: dict[str, Any] | None,
) -> None:
    args = recovery_arguments(context, rows, sharding)
    family = load_family(context.input, context.config.model).eval()
    factors = load_factors(context.folder / FACTORS)
    own_names = compressed_modules(family.config, exit)

    def save(folder: Path, tuned: Mapping[str, Factors]) -> None:
        save_compressed(family, tokenizer, exit, {own_names[name]: found for name, found in tuned.items()}, folder)

    try:
        trainer = RecoveryTrainer(
            model=TaughtBranch(
                # A copy: casting it or moving it would cast or move the family that is to be saved.
                branch=family.branch(exit),
                trunk=family.config.exits[exit] + 1,
                factors={stock: factors[own] for stock, own in own_names.items()},
                dtype=computing_dtype(args),
            ),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            exit=exit,
            save=save,
        )
    except ValueError as error:
        raise Refusal(KEY, str(error)) from error
    train(trainer, context, [exit], "loss", context.folder, description="recovery")


def recovery_sharding(context: StageContext) -> dict[str, Any] | None:
    """DeepSpeed's configuration; ZeRO-2 in the place of ZeRO-3, offloaded or not, and a line that says so."""
    options: DeepSpeedOptions = context.config.deepspeed
    if ZERO_STAGES.get(options.mode) == 3:
        context.console.print("recovery runs on ZeRO-2: what it trains is small, and the rest is frozen")
        options = replace(options, mode="zero2")
    return deepspeed_config(options, ranks.world_size())


def recovery_arguments(context: StageContext, rows: Dataset, sharding: dict[str, Any] | None = None) -> SFTConfig:
    """The trainer's arguments; without `sharding` no DeepSpeed is set up.

    Raises:
        Refusal: fields that SFTConfig refuses.
    """
    options = context.config.compress
    defaults = {"max_length": options.max_length, "deepspeed": sharding}
    if "messages" in rows.column_names:
        defaults["assistant_only_loss"] = True
    given = {**options.trainer, "max_steps": options.recover_steps}
    began_on = context.manifest.world_size
    return trainer_arguments(SFTConfig, KEY, given, context.folder, context.config.seed, defaults, began_on)


def computing_dtype(args: SFTConfig) -> torch.dtype:
    """What the trainer computes in, which the frozen parts may be held in."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
