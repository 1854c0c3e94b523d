"""`stage=memory`: the blocks that it reads."""

from __future__ import annotations

import os

from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import TWINS, check_stages
from ruyi_rl.validation.deepspeed import check_deepspeed
from ruyi_rl.validation.expansion import families
from ruyi_rl.validation.known_family import known_family
from ruyi_rl.validation.model import check_model
from ruyi_rl.validation.training import check_grpo, check_pretrain, check_sft
from ruyi_rl.validation.values import require, require_choice

DEVICES = ("auto", "cuda", "cpu")
"""What `memory.device` may be."""


def check_memory(config: RunConfig) -> None:
    """Refuse what the training stages would refuse, and an impossible device; rows are not looked at.

    Raises:
        Refusal: the first thing that is wrong.
    """
    require("num_processes", config.num_processes, config.num_processes >= 1, "1 or more")
    require_choice("memory.device", config.memory.device, DEVICES)
    size = config.memory.gigabytes
    require("memory.gigabytes", size, size is None or size > 0, "above 0, or null: this machine's")
    check_stages(config)
    check_deepspeed(config.deepspeed)
    check_model(config)
    before = families(config, config.stages, known_family(config))
    ranks = int(os.environ.get("WORLD_SIZE", config.num_processes))
    for stage in config.stages:
        kind, block = TWINS.get(stage, stage), getattr(config, stage, None)
        if kind == "sft":
            check_sft(stage, block, before[stage])
        elif kind == "pretrain":
            check_pretrain(stage, block, before[stage])
        elif kind == "grpo":
            check_grpo(block, before[stage], ranks, config.rollout.backend)
