"""All checks of a run, in the order in which a user would mend them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.data.check import check_data
from ruyi_rl.pipeline import REWARD_TOOLS, TOOLS, chain
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.validation.authoring import check_reward_tool
from ruyi_rl.validation.deepspeed import check_deepspeed
from ruyi_rl.validation.model import check_chat_template, check_model, known_exits
from ruyi_rl.validation.rollout import check_lengths, check_rollout
from ruyi_rl.validation.serving import check_launch, check_tool
from ruyi_rl.validation.training import check_aggregation, check_evaluation, check_grpo, check_pretrain, check_sft
from ruyi_rl.validation.values import require


def validate(config: RunConfig) -> None:
    """Check that a run can start; what only later stages need is not looked at. Imports no torch.

    Raises:
        Refusal: the first thing that is wrong.
    """
    if config.stage.name == "overview":
        return
    check_launch(config)
    if config.stage.name in REWARD_TOOLS:
        check_reward_tool(config)
        return
    if config.stage.name in TOOLS:
        check_tool(config)
        return
    stages = chain(config)
    require("num_processes", config.num_processes, config.num_processes >= 1, "1 or more")
    require("name", config.name, bool(config.name.strip()), "a name that is not blank")
    check_deepspeed(config.deepspeed)

    check_model(config)
    exits = known_exits(config)
    if "pretrain" in stages:
        check_pretrain(config.pretrain, exits)
    if "sft" in stages:
        check_sft("sft", config.sft, exits)
    columns: set[str] = set()
    if "grpo" in stages:
        check_grpo(config.grpo, exits, _world_size(config), config.rollout.backend)
        columns = {column for names in check_reward(config.reward).values() for column in names}
        check_aggregation(config.reward, config.grpo)
    if "sft" in stages or "grpo" in stages:
        check_chat_template(config, stages)
        check_evaluation(config.evaluation)
        check_rollout(config.rollout, exits, _world_size(config))
        check_lengths(config.rollout, config.grpo.trainer, config.evaluation.max_new_tokens)
    _check_data(config, stages, sorted(columns))
    check_writable(Path(config.run_dir))


def check_writable(folder: Path) -> None:
    """Refuse a run folder that cannot be made or written; nothing is left behind."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        # The answer of os.access is not that of the file system for root, nor on a read-only or virtual one.
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise Refusal(
            "run_dir", f"cannot write in {existing}: {error.strerror}", "a folder that can be written"
        ) from None


def _check_data(config: RunConfig, stages: list[str], columns: list[str]) -> None:
    """Check the rows of every stage; `columns`: what the rewards read of them in `grpo`."""
    for stage in stages:
        if stage == "init":
            continue
        check_data(config.data, stage, columns if stage == "grpo" else ())
        second = getattr(getattr(config, stage), "stage_two", None)
        if second is not None and second.data is not None:
            try:
                check_data(second.data, stage)
            except Refusal as refusal:
                raise Refusal(f"{stage}.stage_two.{refusal.key}", refusal.problem, refusal.allowed) from None


def _world_size(config: RunConfig) -> int:
    return int(os.environ.get("WORLD_SIZE", config.num_processes))
