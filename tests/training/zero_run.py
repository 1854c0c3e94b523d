"""One rank of the runs that test_zero.py and scripts/zero_equality.py compare with plain_torch.py."""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig, SFTConfig

from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.rollout.worker import Completion
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.options import DeepSpeedOptions
from ruyi_rl.training.schedules import LossWeights
from ruyi_rl.training.session import enter_deepspeed, leave_deepspeed, release
from ruyi_rl.training.sft_trainer import FamilySFTTrainer
from ruyi_rl.training.token_budget import packs_needed

STEP = 8  # rows (sft) or prompts (grpo) of an optimiser step, on all ranks
WEIGHTS = {"small": 0.5, "medium": 1.0, "large": 2.0}
SAMPLES = 4
BUDGET = 80
# Steps large enough for float32 to resolve: plain torch in float32 is 3e-3 away from float64 in a norm's update at
# 0.05, and 1e-4 at 2. Clipping bounds them.
LEARNING_RATE = 2.0
CLIP = 0.5
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
EOS = byte_tokenizer().eos_token_id


@dataclass(frozen=True)
class Case:
    """One run on the same rows: five optimiser steps of SGD, or twenty of AdamW."""

    exits: tuple[str, ...] = tuple(WEIGHTS)
    accumulation: int = 2
    budget: int | None = None
    checkpointing: bool = False
    bf16: bool = False
    beta: float = 0.04
    truncated_out: bool = False
    """Whether the completions that were cut off are left out, so that packs have exits without a token."""
    train_only: str | None = None
    """With `expansion` the exits' new blocks, norms and heads alone are trained."""
    adamw: bool = False
    """The trainer's default optimiser, for the losses: its first steps are as long where a gradient is all rounding."""
    iterations: int = 1
    """Optimiser steps that learn from the same completions."""

    @property
    def steps(self) -> int:
        return 20 if self.adamw else 5


CASES = {
    "whole": Case(),
    "packs": Case(budget=BUDGET, beta=0.0, truncated_out=True),
    "packs, checkpointing": Case(budget=BUDGET, beta=0.0, truncated_out=True, checkpointing=True),
    "packs, bf16": Case(budget=BUDGET, beta=0.0, truncated_out=True, bf16=True),
    # The rest is frozen: the reference shares it, or under ZeRO-3 is TRL's own. DeepSpeed is told of no accumulation
    # here, so that the backward passes of several packs are the trainer's doing alone.
    "one exit": Case(("small",), accumulation=1, budget=BUDGET),
    "two exits": Case(("small", "medium"), accumulation=1, budget=96),
    "adamw": Case(accumulation=1, adamw=True, iterations=2),
    "adamw, one exit": Case(("medium",), accumulation=2, adamw=True, iterations=2),
    "middle exit": Case(("medium",)),
    **{f"{count} micro-batches": Case(accumulation=count) for count in (1, 4, 8)},
    "expansion": Case(("small", "large"), budget=64, train_only="expansion"),
    "expansion, checkpointing": Case(("small", "large"), budget=64, train_only="expansion", checkpointing=True),
}


def sft_rows() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"{a}+{b}=", "completion": "x" * (a % 5) + f"{a + b}"} for a in range(8) for b in range(8)]
    )


def grpo_rows() -> Dataset:
    """In one micro-batch of every other step the last rank's prompts are longer by far."""

    def prompt(number: int) -> str:
        step, place = divmod(number, STEP)
        longer = step % 2 == 0 and place >= STEP * 3 // 4
        return "1+" * (8 * longer + number % 4) + f"{number % 10}="

    return Dataset.from_list([{"prompt": prompt(i)} for i in range(10 * STEP)])


def completion_of(exit: str, prompt_ids: list[int], sample: int) -> list[int]:
    """A fixed rollout: decided by exit, prompt and sample alone, so by neither rank nor batch.

    It is cut off at every exit of the shortest prompts, and at the smallest exit unless the prompt is long.
    """
    draw = random.Random(f"{exit} {prompt_ids} {sample}")
    letters = [draw.randrange(60, 100) for _ in range(draw.randrange(1, 2 + len(prompt_ids) // 2))]
    cut_off = len(prompt_ids) == 2 or (exit == "small" and len(prompt_ids) < 10)
    return letters if cut_off else [*letters, EOS]


def reward(completion_ids, **kwargs) -> list[float]:
    return [float(sum(ids) % 11) for ids in completion_ids]


class FixedRollout:
    name = "fixed"
    runs_family = False

    def generate(self, requests, sampling):
        return [
            Completion(completion_of(request.exit, request.prompt_ids, index % SAMPLES), finished=False)
            for index, request in enumerate(requests)
        ]

    def update_weights(self, family):
        pass

    def statistics(self):
        return {}

    def health(self):
        return []

    def close(self):
        pass


class CountedPacks(FamilyGRPOTrainer):
    """Notes for each micro-batch how many packs this rank needed, and how many it ran."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.packs = []

    def _parts(self, rows, padded):
        parts = super()._parts(rows, padded)
        if torch.is_grad_enabled():
            self.packs.append((packs_needed(rows.blocks(len(self.exits)), self.token_budget), len(parts)))
        return parts


def optimiser_fields(case: Case) -> dict:
    if not case.adamw:
        return {"optim": "sgd", "learning_rate": LEARNING_RATE}
    first, second = ADAMW["betas"]
    return {
        "learning_rate": ADAMW["lr"],
        "weight_decay": ADAMW["weight_decay"],
        "adam_beta1": first,
        "adam_beta2": second,
        "adam_epsilon": ADAMW["eps"],
    }


def micro_batch(case: Case) -> int:
    """Rows or prompts of one rank's micro-batch."""
    rows, rest = divmod(STEP, int(os.environ["WORLD_SIZE"]) * case.accumulation)
    assert not rest
    return rows


def family_folder(start: Path, case: Case) -> Path:
    return start / ("expanded" if case.train_only else "family")


def common(folder: Path, deepspeed: dict | None, case: Case) -> dict:
    return {
        "output_dir": str(folder / "out"),
        "gradient_accumulation_steps": case.accumulation,
        "max_steps": case.steps,
        **optimiser_fields(case),
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": case.bf16,
        "gradient_checkpointing": case.checkpointing,
        "save_strategy": "no",
        "deepspeed": deepspeed,
    }


def sft_trainer(family: Path, arguments: dict, case: Case) -> FamilySFTTrainer:
    args = SFTConfig(
        **arguments, per_device_train_batch_size=micro_batch(case), max_length=64, train_sampling_strategy="sequential"
    )
    return FamilySFTTrainer(
        model=Family.from_pretrained(family),
        args=args,
        train_dataset=sft_rows(),
        processing_class=byte_tokenizer(),
        exits=case.exits,
        train_only=case.train_only,
        loss_weights=LossWeights(WEIGHTS, WEIGHTS),
        packed=True,
    )


def grpo_trainer(family: Path, arguments: dict, case: Case) -> CountedPacks:
    args = GRPOConfig(
        **arguments,
        per_device_train_batch_size=micro_batch(case) * len(case.exits) * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=16,
        num_iterations=case.iterations,
        beta=case.beta,
        mask_truncated_completions=case.truncated_out,
        shuffle_dataset=False,
    )
    return CountedPacks(
        model=Family.from_pretrained(family),
        reward_funcs=reward,
        args=args,
        train_dataset=grpo_rows(),
        processing_class=byte_tokenizer(),
        exits=case.exits,
        train_only=case.train_only,
        exit_weights=WEIGHTS,
        packed=True,
        token_budget=case.budget,
        rollout=FixedRollout(),
    )


def optimised(optimizer) -> int:
    """Numbers that this rank's optimiser has a value, and a state, for: under ZeRO those of its float32 partitions."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    for partitions in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(optimizer, partitions):
            return sum(part.numel() for part in getattr(optimizer, partitions))
    return sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])


def main(mode: str, start: Path, folder: Path, runs: Sequence[tuple[str, str]]) -> None:
    """Runs (kind, case) one after the other; leaves of each, in `folder/<kind>/<case>`, the family and what was logged.

    Args:
        start: folder with the families that they begin with.
    """
    config = deepspeed_config(DeepSpeedOptions(mode=mode), int(os.environ["WORLD_SIZE"]))
    for kind, name in runs:
        case, out = CASES[name], folder / kind / name
        enter_deepspeed(config)
        arguments, family = common(folder, config, case), family_folder(start, case)
        trainer = sft_trainer(family, arguments, case) if kind == "sft" else grpo_trainer(family, arguments, case)
        trainer.train()
        out.mkdir(parents=True, exist_ok=True)
        trainer.save_model(str(out / "trained"))
        if trainer.is_world_process_zero():
            logs = [row for row in trainer.state.log_history if "grad_norm" in row]
            (out / "logs.json").write_text(json.dumps(logs, default=float))
        (out / f"optimised-{os.environ['RANK']}.json").write_text(json.dumps(optimised(trainer.optimizer)))
        if kind == "grpo":
            (out / f"packs-{os.environ['RANK']}.json").write_text(json.dumps(trainer.packs))
        trainer.accelerator.wait_for_everyone()
        release(trainer)
        leave_deepspeed()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
