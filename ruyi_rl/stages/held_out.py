"""Pass rates of a stage's family on the held-out rows."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ruyi_rl.config import RunConfig
from ruyi_rl.data.prompts import limit_prompts
from ruyi_rl.evaluation import Judge, evaluate_family
from ruyi_rl.execution import StageContext
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.report.progress import ProgressLine
from ruyi_rl.report.tables import percent
from ruyi_rl.rewards.loading import LoadedReward
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rollout.worker import Rollout
from ruyi_rl.run_folder import StageFolder, config_hash, flat
from ruyi_rl.stages.inputs import device, load_family, load_tokenizer
from ruyi_rl.training.options import EvaluationOptions

DEFAULT_COMPLETION = 256
"""TRL's max_completion_length."""


def judge_of(rewards: Sequence[LoadedReward], options: RewardOptions) -> Judge:
    """The judge that `reward.judge` names; None: the first function.

    Raises:
        Refusal: it names no function of the group.
    """
    by_name = {reward.name: reward for reward in rewards}
    name = options.judge or next(iter(by_name), "")
    if name not in by_name:
        raise Refusal("reward.judge", f"no reward function {name!r}", nearest(name, by_name))
    return Judge(by_name[name].function, options.pass_at)


def evaluation_options(config: RunConfig) -> EvaluationOptions:
    """`evaluation` with its completion limit filled in."""
    limit = config.evaluation.max_new_tokens or config.grpo.trainer.get("max_completion_length") or DEFAULT_COMPLETION
    return replace(config.evaluation, max_new_tokens=limit)


def measurement(config: RunConfig) -> str:
    """Hash of all that decides a measurement but the family: equal hashes make pass rates comparable."""
    tree = {
        "evaluation": asdict(evaluation_options(config)),
        "reward": asdict(config.reward),
        "rollout": config.rollout.backend,
        "data": asdict(config.data),
        "template": config.grpo.trainer.get("chat_template_kwargs") or {},
        "seed": config.seed,
    }
    return config_hash(flat(tree))


def measure(
    context: StageContext,
    folder: Path,
    rows: Any,
    rewards: Sequence[LoadedReward],
    exits: Sequence[str],
    rollout: Rollout,
    description: str,
) -> dict[str, Any] | None:
    """Pass rates of the family in `folder`, every rank with its own copy: the trainer's may be sharded.

    Args:
        rows: held-out rows.
        exits: names of the exits to measure.
        rollout: generates, with this family's weights from now on.
        description: for the progress line.

    Returns:
        `{"measurement": …, "problems": …, "samples": …, "temperature": …, "exits": {name: ExitScore as a dict}}`,
        or None where evaluation is off, or there is nothing to judge with or on.
    """
    config, options = context.config, evaluation_options(context.config)
    if not options.problems or not rewards or not len(rows):
        return None
    tokenizer = load_tokenizer(folder)
    template_kwargs = config.grpo.trainer.get("chat_template_kwargs") or {}
    rows, _ = limit_prompts(rows, tokenizer, config.data.max_prompt_tokens, template_kwargs)
    family = load_family(folder, config.model).to(device()).eval()
    rollout.update_weights(family)
    with ProgressLine(context.console, description, 2 * len(exits), lines=0) as line:
        scores = evaluate_family(
            tokenizer,
            rows,
            judge_of(rewards, config.reward),
            exits,
            options,
            rollout,
            config.seed,
            template_kwargs,
            lambda exit, done, total: line.update(done, exit),
        )
    del family
    release_memory()
    found = "  ".join(
        f"{name} {percent(score.pass_rate)} (greedy {percent(score.greedy)})" for name, score in scores.items()
    )
    context.console.print(f"{description}: {found}", markup=False, soft_wrap=True)
    return {
        "measurement": measurement(config),
        "problems": min(options.problems, len(rows)),
        "samples": options.samples,
        "temperature": options.temperature,
        "exits": {name: asdict(score) for name, score in scores.items()},
    }


def measured_already(context: StageContext, exits: Sequence[str]) -> dict[str, Any] | None:
    """The closing measurement of the stage before, where it was made in the same way for the same exits."""
    try:
        found = StageFolder(context.input).summary().get("held_out")
    except (FileNotFoundError, ValueError):
        return None
    if not found or found["measurement"] != measurement(context.config) or not set(exits) <= set(found["exits"]):
        return None
    return {**found, "exits": {name: found["exits"][name] for name in exits}}


def release_memory() -> None:
    """Gives the accelerator back what no tensor holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
