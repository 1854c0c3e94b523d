"""All checks of a run, in the order in which a user would mend them."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.data.check import calibration_form, check_data
from ruyi_rl.data.options import DataOptions
from ruyi_rl.pipeline import REWARD_TOOLS, TOOLS, TWINS, chain, reads_reward
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.validation.authoring import check_reward_tool
from ruyi_rl.validation.benchmarks import check_benchmarks
from ruyi_rl.validation.comparing import check_compare
from ruyi_rl.validation.deepspeed import check_deepspeed
from ruyi_rl.validation.expansion import families
from ruyi_rl.validation.exporting import check_push
from ruyi_rl.validation.guards import check_quality_guards
from ruyi_rl.validation.harness import check_harness
from ruyi_rl.validation.known_family import KnownFamily, known_family
from ruyi_rl.validation.memory import check_memory
from ruyi_rl.validation.model import CHAT_STAGES, check_chat_template, check_model
from ruyi_rl.validation.report import check_report
from ruyi_rl.validation.rollout import check_lengths, check_rollout
from ruyi_rl.validation.serving import check_launch, check_tool
from ruyi_rl.validation.trackers import check_stage_trackers
from ruyi_rl.validation.training import (
    check_aggregation,
    check_eval,
    check_evaluation,
    check_grpo,
    check_pretrain,
    check_sft,
)
from ruyi_rl.validation.values import check_secrets, require

ROWS = {**{name: name for name in ("pretrain", "sft", "grpo")}, **TWINS, "compress": "sft", "eval": "grpo"}
"""Stage -> the form in which it reads rows (`check_data`); the others read none."""


def validate(config: RunConfig) -> None:
    """Check that a run can start; what only later stages need is not looked at. Imports no torch.

    Raises:
        Refusal: the first thing that is wrong.
    """
    if config.stage.name == "overview":
        return
    check_secrets(asdict(config))
    check_launch(config)
    check_push(config)
    if config.stage.name in REWARD_TOOLS:
        check_reward_tool(config)
        return
    if config.stage.name == "report":
        check_report(config)
        return
    if config.stage.name == "memory":
        check_memory(config)
        return
    if config.stage.name == "compare":
        check_compare(config)
        return
    if config.stage.name in TOOLS:
        check_tool(config)
        return
    stages = chain(config)
    require("num_processes", config.num_processes, config.num_processes >= 1, "1 or more")
    require("max_skipped_updates", config.max_skipped_updates, config.max_skipped_updates >= 0, "0 or more")
    minutes = config.watchdog_minutes
    require("watchdog_minutes", minutes, minutes is None or 0 <= minutes < math.inf, "0 or more; null: no watchdog")
    require("name", config.name, bool(config.name.strip()), "a name that is not blank")
    check_deepspeed(config.deepspeed)

    check_model(config)
    before = families(config, stages, known_family(config))
    for stage in stages:
        _check_stage(config, stage, before[stage])
    columns: set[str] = set()
    if any(reads_reward(config, stage) for stage in stages):
        columns = {column for names in check_reward(config.reward).values() for column in names}
    if measuring := [stage for stage in stages if stage in CHAT_STAGES]:
        check_chat_template(config, stages)
        check_evaluation(config.evaluation)
        if "eval" in stages:
            check_benchmarks(config)
        check_quality_guards(config, stages)
        last = before[measuring[-1]]
        check_rollout(config.rollout, None if last is None else last.depths, _world_size(config))
        check_lengths(config.rollout, config.grpo.trainer, config.evaluation.max_new_tokens)
    _check_data(config, stages, sorted(columns))
    check_writable(Path(config.run_dir))


def _check_stage(config: RunConfig, stage: str, family: KnownFamily | None) -> None:
    """Check the block of a stage that starts from this family."""
    check_stage_trackers(config, stage)
    kind = TWINS.get(stage, stage)
    if kind == "pretrain":
        check_pretrain(stage, getattr(config, stage), family)
    elif kind == "sft":
        check_sft(stage, getattr(config, stage), family)
    elif kind == "grpo":
        began_on = None if config.fresh else StageFolder(Path(config.run_dir) / stage).began_on()
        check_grpo(config.grpo, family, began_on or _world_size(config), config.rollout.backend)
        check_aggregation(config.reward, config.grpo)
    elif kind == "eval":
        # Given completions may be of others than the family's exits.
        check_eval(config.eval.exits, None if config.eval.completions else family)
        check_harness(config.eval.harness, _world_size(config))


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
    """Check the rows of every stage; `columns`: what the rewards read of them in `grpo` and `eval`."""
    for stage in stages:
        if stage not in ROWS or (stage == "eval" and config.eval.benchmarks):  # which have rows of their own
            continue
        block, form = getattr(config, stage), ROWS[stage]
        own = block.data if stage == "compress" else None
        if stage == "compress":
            form = calibration_form(own or config.data)
        if own is None:
            check_data(config.data, form, columns if form == "grpo" else ())
        else:
            _check_own_data(own, form, stage)
        second = getattr(block, "stage_two", None)
        if second is not None and second.data is not None:
            _check_own_data(second.data, form, f"{stage}.stage_two")


def _check_own_data(options: DataOptions, form: str, block: str) -> None:
    """Check the rows of a block that has some of its own."""
    try:
        check_data(options, form)
    except Refusal as refusal:
        raise Refusal(f"{block}.{refusal.key}", refusal.problem, refusal.allowed) from None


def _world_size(config: RunConfig) -> int:
    return int(os.environ.get("WORLD_SIZE", config.num_processes))
