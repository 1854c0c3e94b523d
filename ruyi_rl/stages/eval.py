"""`stage=eval`: held-out pass rates of a family's exits, and what each stage before made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.data.loading import load_data
from ruyi_rl.data.prompts import limit_prompts
from ruyi_rl.execution import StageContext
from ruyi_rl.family import FamilyConfig
from ruyi_rl.family.stored import StoredFamily, stored_family
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.report.history_plot import draw_history
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.failures import failure_counts
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.run_folder import write_json
from ruyi_rl.stages.held_out import measure, measured_already, reward_failures
from ruyi_rl.stages.history import history
from ruyi_rl.stages.inputs import load_tokenizer
from ruyi_rl.stages.rollouts import completion_limit, rollouts


def run(context: StageContext) -> dict[str, Any]:
    """Measures what the stage before has not measured in the same way; leaves no family."""
    try:
        stored = stored_family(context.input)
    except (OSError, ValueError) as error:
        raise Refusal(str(context.input), f"holds no family that can be measured: {error}") from error
    exits = measured_exits(stored.config, context.config.eval.exits)
    held_out = context.kept("held_out")
    if held_out is None and context.config.evaluation.problems:
        held_out = held_out_scores(context, exits)
        context.keep("held_out", held_out)
    counts = failure_counts(reward_failures(context).path, "evaluation")
    return {
        "family": str(context.input),
        "exits": {name: exit_summary(stored, name, held_out) for name in exits},
        **({"held_out": held_out} if held_out else {}),
        "reward_failures": sum(sum(kinds.values()) for kinds in counts.values()),
        "history": ranks.on_rank_zero(lambda: _history(context, held_out)),
    }


def measured_exits(config: FamilyConfig, chosen: Sequence[str] | None) -> list[str]:
    """Names of the exits that `eval.exits` chooses, shallowest first; none: all.

    Raises:
        Refusal: an exit that the family has not.
    """
    for name in chosen or ():
        if name not in config.exits:
            raise Refusal("eval.exits", f"no exit {name!r} in this family", nearest(name, config.exits))
    return [name for name in config.exits if not chosen or name in chosen]


def held_out_scores(context: StageContext, exits: Sequence[str]) -> dict[str, Any]:
    """What `measure` gives, for these exits; those that the stage before measured in the same way are not repeated.

    Raises:
        Refusal: no held-out rows.
    """
    config = context.config
    known = [found for name in exits if (found := measured_already(context, [name])) is not None]
    scores = {name: score for found in known for name, score in found["exits"].items()}
    missing = [name for name in exits if name not in scores]
    if not missing:
        return {key: known[0][key] for key in ("measurement", "problems", "samples", "temperature")} | {"exits": scores}
    with RewardScorer(config.reward, beat=context.heart.beat) as scorer:
        ranks.on_rank_zero(scorer.start)
        needs = {column for columns in check_reward(config.reward).values() for column in columns}
        rows = load_data(config.data, config.seed, "grpo", needs).test  # as grpo loads them: one measurement for both
        if not len(rows):
            raise Refusal("data", "has no held-out rows to measure on", "data.test, or data.holdout above 0")
        tokenizer = load_tokenizer(context.input)
        template_kwargs = config.grpo.trainer.get("chat_template_kwargs")
        _, prompts = limit_prompts(rows, tokenizer, config.data.max_prompt_tokens, template_kwargs)
        longest, limit = min(prompts.longest, prompts.limit), completion_limit(context)
        with rollouts(context, context.input, missing, tokenizer, longest, limit) as rollout:
            failures, description = reward_failures(context), "held-out pass rate"
            found = measure(context, context.input, rows, scorer, failures, missing, rollout, description)
    scores |= found["exits"]
    return {**found, "exits": {name: scores[name] for name in exits}}


def exit_summary(stored: StoredFamily, exit: str, held_out: dict[str, Any] | None) -> dict[str, Any]:
    """One exit's size and, where it was measured, its scores."""
    size = stored.size(exit)
    values: dict[str, Any] = {"layers": size.layers, "parameters": size.parameters, "bytes": size.bytes}
    if held_out is None:
        return values
    score = held_out["exits"][exit]
    return {
        "pass": score["pass_rate"],
        "pass_standard_error": score["standard_error"],
        **{key: score[key] for key in ("greedy", "mean_tokens", "truncated")},
        **values,
    }


def _history(context: StageContext, held_out: dict[str, Any] | None) -> dict[str, Any]:
    found = history(context.input, held_out)
    write_json(context.folder / "history.json", found)
    draw_history(found, context.folder / "history.png", f"{context.config.name}: what each stage made of the exits")
    return found
