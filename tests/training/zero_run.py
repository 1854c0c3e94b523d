"""One rank of a run that test_zero.py compares with plain torch: `zero_run.py {sft|grpo} {mode} folder`."""

import json
import os
import random
import sys
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
from ruyi_rl.training.session import enter_deepspeed
from ruyi_rl.training.sft_trainer import FamilySFTTrainer

STEPS, ACCUMULATION, RANKS = 5, 2, 2
WEIGHTS = {"small": 0.5, "medium": 1.0, "large": 2.0}
SAMPLES = 2
# Steps large enough for float32 to resolve: plain torch in float32 is 3e-3 away from float64 in a norm's update at
# 0.05, and 1e-4 at 2. Clipping bounds them.
LEARNING_RATE = 2.0
CLIP = 0.5


def sft_rows() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"{a}+{b}=", "completion": "x" * (a % 5) + f"{a + b}"} for a in range(8) for b in range(8)]
    )


def grpo_rows() -> Dataset:
    return Dataset.from_list([{"prompt": f"{i}+" * (i % 3) + "1="} for i in range(64)])


def completion_of(exit: str, prompt_ids: list[int], sample: int) -> list[int]:
    """A fixed rollout: decided by exit, prompt and sample alone, so by neither rank nor batch."""
    draw = random.Random(f"{exit} {prompt_ids} {sample}")
    return [draw.randrange(60, 100) for _ in range(draw.randrange(1, 7))]


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


def common(folder: Path, deepspeed: dict | None, ranks: int) -> dict:
    return {
        "output_dir": str(folder / "out"),
        "gradient_accumulation_steps": ACCUMULATION * RANKS // ranks,
        "max_steps": STEPS,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "deepspeed": deepspeed,
    }


def main(kind: str, mode: str, folder: Path) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    config = deepspeed_config(DeepSpeedOptions(mode=mode), ranks)
    enter_deepspeed(config)
    arguments = common(folder, config, ranks)
    if kind == "sft":
        args = SFTConfig(
            **arguments, per_device_train_batch_size=4, max_length=64, train_sampling_strategy="sequential"
        )
        trainer = FamilySFTTrainer(
            model=Family.from_pretrained(folder / "family"),
            args=args,
            train_dataset=sft_rows(),
            processing_class=byte_tokenizer(),
            loss_weights=LossWeights(WEIGHTS, WEIGHTS),
        )
    else:
        args = GRPOConfig(
            **arguments,
            per_device_train_batch_size=6,
            num_generations=SAMPLES,
            max_completion_length=8,
            beta=0.04,
            shuffle_dataset=False,
        )
        trainer = FamilyGRPOTrainer(
            model=Family.from_pretrained(folder / "family"),
            reward_funcs=reward,
            args=args,
            train_dataset=grpo_rows(),
            processing_class=byte_tokenizer(),
            exit_weights=WEIGHTS,
            rollout=FixedRollout(),
        )
    trainer.train()
    trainer.save_model(str(folder / "trained"))
    if trainer.is_world_process_zero():
        norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
        (folder / "norms.json").write_text(json.dumps(norms, default=float))
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
