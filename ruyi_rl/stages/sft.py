"""`stage=sft` and `stage=expanded_sft`: joint multi-branch fine-tuning, with an optional second stage that replays rows
of the first."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from datasets import Dataset

from ruyi_rl import ranks
from ruyi_rl.data.loading import load_data
from ruyi_rl.execution import StageContext
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.curves import draw_curves
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.scoring import check_start
from ruyi_rl.run_folder import PHASES
from ruyi_rl.stages.held_out import measure, measured_already, reward_failures
from ruyi_rl.stages.inputs import chosen_exits, load_tokenizer
from ruyi_rl.stages.joint import closing_weights, joint_training, training_summary
from ruyi_rl.stages.periodic import best_summary, measuring, with_ends
from ruyi_rl.training.callbacks import read_metrics
from ruyi_rl.training.options import StageTwoOptions
from ruyi_rl.training.replay import mixed_rows


def run(context: StageContext) -> dict[str, Any]:
    """Trains, and measures the held-out pass rates of the trained exits."""
    config, stage = context.config, context.step.stage
    options = getattr(config, stage)
    exits = chosen_exits(context.input, options, stage)
    tokenizer = load_tokenizer(context.input)
    splits = load_data(config.data, config.seed, "sft")
    judged = config.evaluation.problems > 0 and can_judge(context, splits.test)
    if judged:
        check_start(config.reward)  # a reward that cannot start should not be found out after the training
    second = mixture(context, options.stage_two, splits.train) if options.stage_two.data is not None else None

    first_folder = context.folder if second is None else context.folder / PHASES[0]
    names = list(exits)
    with ExitStack() as held:
        watch = None
        if judged and config.evaluation.every is not None:
            watch = held.enter_context(measuring(context, context.input, tokenizer, names))
            watch = replace(watch, before=measured_already(context, names))
        if not context.kept("trained_one"):
            watched = joint_training(
                context,
                splits.train,
                tokenizer,
                exits,
                options,
                start=context.input,
                save_to=first_folder,
                checkpoints=first_folder,
                watch=watch,
            )
            context.keep("trained_one", {"watched": watched})
        if second is not None and not context.kept("trained_two"):
            watched = joint_training(
                context,
                second,
                tokenizer,
                exits,
                replace(
                    options,
                    trainer={**options.trainer, **options.stage_two.trainer},
                    loss_weights=closing_weights(options.loss_weights, exits),
                ),
                start=first_folder,
                save_to=context.folder,
                checkpoints=context.folder / PHASES[1],
                phase=2,
                watch=watch and replace(watch, before=None),
            )
            context.keep("trained_two", {"watched": watched})
        watched = context.kept("trained_one" if second is None else "trained_two")["watched"]

        summary, after = training_summary(context, exits), None
        if judged:
            watch = watch or held.enter_context(measuring(context, context.folder, tokenizer, names))
            after = measure(
                context,
                context.folder,
                watch.rows,
                watch.scorer,
                reward_failures(context),
                names,
                watch.rollout,
                f"held-out pass rate after {stage}",
            )
    if after is not None:
        summary["held_out"] = after
        for name, score in after["exits"].items():
            summary["exits"][name] |= {"pass": score["pass_rate"], "greedy": score["greedy"]}
    if watched:
        start = context.input if second is None else first_folder
        summary["best"] = best_summary(context, watched, after, context.folder, start)
    if ranks.rank() == 0:
        rows, metrics = read_metrics(context.folder / "metrics.jsonl"), ["loss", "mean_token_accuracy"]
        if watched:
            rows, metrics = with_ends(rows, None, after), [*metrics, "eval/pass_rate"]
        draw_curves(rows, names, metrics, context.folder / "curves.png", f"{config.name}: {stage}")
    return summary


def can_judge(context: StageContext, rows: Dataset) -> bool:
    """Whether held-out rows hold what the rewards read; says so where they do not."""
    read = {column for names in check_reward(context.config.reward).values() for column in names}
    missing = sorted(({"prompt"} | read) - set(rows.column_names))
    if missing:
        context.console.print(f"no held-out pass rates: the rows have no {', '.join(missing)}", markup=False)
    return not missing


def mixture(context: StageContext, stage_two: StageTwoOptions, first: Dataset) -> Dataset:
    """The second stage's rows with the replayed ones.

    Raises:
        Refusal: a replayed share that cannot be.
    """
    config, block = context.config, f"{context.step.stage}.stage_two"
    second = load_data(stage_two.data, config.seed, "sft").train
    forms = [{"messages", "completion"} & set(rows.column_names) for rows in (first, second)]
    if forms[0] != forms[1]:
        names = [" and ".join(sorted(form)) for form in forms]
        raise Refusal(
            f"{block}.data",
            f"has rows of {names[1]}, but the first stage's are of {names[0]}",
            "rows of one form in both stages, so that the first can be replayed",
        )
    try:
        return mixed_rows(first, second, stage_two.replay, config.seed)
    except ValueError as error:
        raise Refusal(f"{block}.replay", str(error)) from error
