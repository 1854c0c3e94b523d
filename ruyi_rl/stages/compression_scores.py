"""Pass rates around `stage=compress`: before it, after it, and after the recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ruyi_rl.data.loading import load_data
from ruyi_rl.data.prompts import limit_prompts
from ruyi_rl.execution import StageContext
from ruyi_rl.rewards.scoring import RewardScorer, check_start
from ruyi_rl.run_folder import StageFolder
from ruyi_rl.stages.held_out import measure, measured_already, measurement, reward_failures
from ruyi_rl.stages.rollouts import completion_limit, rollouts
from ruyi_rl.stages.sft import can_judge

OCCASIONS = {
    "before": "held-out pass rate before compress",
    "compressed": "held-out pass rate after compress",
    "after": "held-out pass rate after recovery",
}
"""What is measured, in order, and how it is told."""


def problems(context: StageContext) -> Dataset | None:
    """The held-out rows that pass rates are measured on, as grpo loads them; None where none are to be measured."""
    config = context.config
    if not config.evaluation.problems:
        return None
    rows = load_data(config.data, config.seed, "grpo").test
    if not len(rows) or not can_judge(context, rows):
        return None
    check_start(config.reward)  # a reward that cannot start should not be found out after the compression
    return rows


def measured(
    context: StageContext,
    folder: Path,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    exit: str,
    when: str,
) -> dict[str, Any]:
    """What `measure` gives, or `{"exits": {}}`; once, however often the stage is resumed."""
    kept = context.kept(when)
    if kept is None:
        kept = measured_already(context, [exit]) if when == "before" else None
        kept = kept or _measured(context, folder, rows, tokenizer, exit, OCCASIONS[when]) or {"exits": {}}
        context.keep(when, kept)
    return kept


def _measured(context, folder, rows, tokenizer, exit, description) -> dict[str, Any] | None:
    config = context.config
    template_kwargs = config.grpo.trainer.get("chat_template_kwargs")
    _, prompts = limit_prompts(rows, tokenizer, config.data.max_prompt_tokens, template_kwargs)
    longest, limit = min(prompts.longest, prompts.limit), completion_limit(context)
    with (
        RewardScorer(config.reward, beat=context.heart.beat) as scorer,
        # An engine reads the family's tensors by what is factored, so each state of it gets its own.
        rollouts(context, folder, [exit], tokenizer, longest, limit) as rollout,
    ):
        return measure(context, folder, rows, scorer, reward_failures(context), [exit], rollout, description)


def unchanged(context: StageContext) -> dict[str, Any]:
    """Exit -> score of the stage before, where it was made in the same way: compression touches one exit alone."""
    try:
        found = StageFolder(context.input).summary().get("held_out")
    except (FileNotFoundError, ValueError):
        return {}
    return found["exits"] if found and found["measurement"] == measurement(context.config) else {}
