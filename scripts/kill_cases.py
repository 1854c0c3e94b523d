"""The runs that `kill_anywhere.py` kills: small ones of every training stage, on one rank and on two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
JUDGE = '''
import time


def digits(completions, **kwargs):
    """The share of digits; slow enough to be killed in, and failing on some completions."""
    time.sleep(0.05)
    texts = [chat[0]["content"] for chat in completions]
    return [_fail(text) if text.startswith("7") else sum(map(str.isdigit, text)) / max(len(text), 1) for text in texts]


def _fail(text):
    raise ValueError(f"no reward for {text!r}")
'''
REWARD = """
name: digits
functions:
  digits: {{path: {path}, max_failure_share: 0.5}}
judge: digits
"""
COMMON = [
    "reward=digits",
    f"model.scratch={json.dumps(SHAPE)}".replace('"', ""),
    "data.task.train_problems=200",
    "evaluation.problems=12",
    "evaluation.samples=2",
    "evaluation.max_new_tokens=8",
]
STEPS = 12
SFT = [
    f"max_steps={STEPS}",
    "save_steps=2",
    "save_total_limit=2",
    "per_device_train_batch_size=8",
    "gradient_accumulation_steps=2",
    "warmup_steps=2",
    "learning_rate=1e-2",
]
GRPO = [
    f"max_steps={STEPS}",
    "save_steps=2",
    "save_total_limit=2",
    "per_device_train_batch_size=12",
    "gradient_accumulation_steps=2",
    "num_generations=4",
    "max_completion_length=8",
    "warmup_steps=0",
    "learning_rate=1e-2",
    "beta=0.01",
]
RECOVERY = SFT[1:]
SCHEDULE = "sft.loss_weights={preset: uniform, schedule: linear, end: {small: 0.2, large: 2.0}}"
KEPT = ["num_iterations=2", "steps_per_generation=4"]
"""Rollouts of one generation feed four optimiser steps: of two checkpoints, one is in their middle."""
RANKS = {"1 rank": (1, "off"), "2 × ZeRO-2": (2, "zero2"), "2 × ZeRO-3": (2, "zero3")}


@dataclass(frozen=True)
class Case:
    """A run to kill."""

    name: str
    stage: str
    arguments: tuple[str, ...]
    start_from: str
    """Stage of the prepared run whose family it trains."""
    ranks: int = 1
    deepspeed: str = "off"
    rollout: str = "transformers"

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"\W+", "-", self.name)

    def command(self, folder: Path, prepared: Path, reward: Path) -> list[str]:
        """What follows `python -m ruyi_rl` for a run in `folder`."""
        return [
            f"stage={self.stage}",
            "--config-dir",
            str(reward),
            *COMMON,
            f"rollout={self.rollout}",
            *self.arguments,
            f"start_from={prepared / self.start_from}",
            f"num_processes={self.ranks}",
            f"deepspeed={self.deepspeed}",
            f"run_dir={folder}",
        ]


def trainer(block: str, values: list[str]) -> tuple[str, ...]:
    return tuple(f"{block}.trainer.{value}" for value in values)


def cases(rollout: str) -> Iterator[Case]:
    """Every training stage by every sharding; with an engine only those of GRPO, where it takes part in the training.

    Args:
        rollout: the back end.
    """
    stages = {
        "sft": ("sft", (*trainer("sft", [*SFT, "logging_steps=3"]), SCHEDULE), "init"),
        "grpo": ("grpo", trainer("grpo", [*GRPO, *KEPT]), "sft"),
        "grpo, a log every 3 steps": ("grpo", trainer("grpo", [*GRPO, "logging_steps=3"]), "sft"),
        "expanded_sft": ("expanded_sft", trainer("expanded_sft", SFT), "expand"),
        "expanded grpo": (
            "grpo",
            (*trainer("grpo", [*GRPO, "gradient_accumulation_steps=1"]), "grpo.train_only=expansion"),
            "expanded_sft",
        ),
        "compress": ("compress", (*trainer("compress", RECOVERY), f"compress.recover_steps={STEPS}"), "expanded_sft"),
    }
    if rollout != "transformers":
        stages = {name: stage for name, stage in stages.items() if stage[0] == "grpo"}
    for name, (stage, arguments, start) in stages.items():
        for label, (ranks, mode) in RANKS.items():
            yield Case(f"{name} · {label}", stage, arguments, start, ranks, mode, rollout)
    if rollout == "transformers":
        seldom = trainer("sft", [value for value in SFT if not value.startswith("save_")])
        yield Case("sft, default save_steps · 1 rank", "sft", seldom, "init")


def prepare(folder: Path, reward: Path) -> list[str]:
    """What follows `python -m ruyi_rl` for the run whose families the cases start from."""
    short = ["max_steps=4", "per_device_train_batch_size=8", "warmup_steps=0"]
    return [
        "stage=pipeline",
        "stages=[init,sft,expand,expanded_sft]",
        "--config-dir",
        str(reward),
        *COMMON,
        "rollout=transformers",
        "expand.exit=small",
        "expand.blocks=2",
        *trainer("sft", short),
        *trainer("expanded_sft", short),
        f"run_dir={folder}",
    ]


def write_reward(folder: Path) -> None:
    """The reward's file and its config group, for `--config-dir`."""
    (folder / "reward").mkdir(parents=True)
    (folder / "digits.py").write_text(JUDGE)
    (folder / "reward" / "digits.yaml").write_text(REWARD.format(path=folder / "digits.py"))
