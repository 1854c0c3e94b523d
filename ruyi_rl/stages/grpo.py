"""`stage=grpo`: reinforcement learning of all chosen exits at once, measured before and after."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.data.loading import Splits, load_data
from ruyi_rl.data.prompts import PromptReport, limit_prompts
from ruyi_rl.execution import StageContext
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.batch import Prompts, StepPlan, grpo_steps, print_plan
from ruyi_rl.report.curves import draw_curves
from ruyi_rl.rewards.check import check_reward
from ruyi_rl.rewards.failures import RewardFailures, failure_counts
from ruyi_rl.rewards.scoring import RewardScorer
from ruyi_rl.rollout.record import ReplayRollout, RolloutFile
from ruyi_rl.rollout.worker import Rollout
from ruyi_rl.stages.held_out import measure, measured_already, release_memory, reward_failures, told
from ruyi_rl.stages.inputs import (
    chosen_exits,
    load_to_train,
    load_tokenizer,
    memory_report,
    trained_parameters,
    weight_bytes,
)
from ruyi_rl.stages.periodic import PeriodicEvaluation, Watch, best_summary, with_ends
from ruyi_rl.stages.rollout_only import record_rollouts
from ruyi_rl.stages.rollouts import completion_limit, rollouts
from ruyi_rl.training.arguments import trainer_arguments
from ruyi_rl.training.callbacks import first_and_last, last_tokens, read_metrics
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.finite_updates import skipped_updates
from ruyi_rl.training.frozen_weights import restore_frozen
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.training.phases import phase_summary
from ruyi_rl.training.session import enter_deepspeed, leave_deepspeed, train


def run(context: StageContext) -> dict[str, Any]:
    """Measures the family that the stage starts from, trains it, measures it again."""
    with RewardScorer(context.config.reward, beat=context.heart.beat) as scorer:
        ranks.on_rank_zero(scorer.start)  # what cannot start is found before anything is loaded
        return _run(context, scorer)


def _run(context: StageContext, scorer: RewardScorer) -> dict[str, Any]:
    config, failures = context.config, reward_failures(context)
    exits = chosen_exits(context.input, config.grpo, "grpo")
    needs = {column for columns in check_reward(config.reward).values() for column in columns}
    splits = load_data(config.data, config.seed, "grpo", needs)
    args = arguments(context, sharded=False)  # refuses bad values before minutes of measuring
    tokenizer = load_tokenizer(context.input)
    inputs = Inputs(exits, tokenizer, scorer, failures, *prompts_of(config, splits, tokenizer, args))

    names = list(exits)
    trained: dict[str, Any] = {"watched": None}
    if config.grpo.replay is not None:
        context.console.print("rollouts from grpo.replay; no held-out pass rates, which need an engine")
        before = after = None
        _train(context, inputs, ReplayRollout(config.grpo.replay), None)
    else:
        limit = completion_limit(context, args.max_completion_length)
        with rollouts(context, context.input, names, tokenizer, inputs.longest_prompt, limit) as rollout:

            def measured(folder: Path, description: str) -> dict[str, Any] | None:
                return measure(context, folder, splits.test, scorer, failures, names, rollout, description)

            if config.grpo.rollout_only:
                file = RolloutFile(context.folder / "rollouts.jsonl")
                failures.forget(lambda row: True)
                args = arguments(context, sharded=False)
                return record_rollouts(context, _trainer(context, inputs, args, rollout, file.write), file)
            before = context.kept("before")
            if before is None:
                before = measured_already(context, names) or measured(context.input, "held-out pass rate before grpo")
                before = before or {"exits": {}}
                context.keep("before", before)
            trained = context.kept("trained")
            if trained is None:
                watch = None
                if config.evaluation.every is not None and before["exits"]:
                    held_out, _ = limit_prompts(
                        splits.test, tokenizer, config.data.max_prompt_tokens, args.chat_template_kwargs
                    )
                    watch = Watch(held_out, tokenizer, scorer, rollout, before)
                trained = {"watched": _train(context, inputs, rollout, watch)}
                context.keep("trained", trained)
            after = context.kept("after")
            if after is None:
                after = measured(context.folder, "held-out pass rate after grpo")
                context.keep("after", after or {"exits": {}})

    rows = read_metrics(context.folder / "metrics.jsonl")
    if ranks.rank() == 0:
        metrics = ["reward", "completions/mean_length"]
        shown = rows
        if trained["watched"]:
            shown, metrics = with_ends(rows, before, after), [*metrics, "eval/pass_rate"]
        draw_curves(shown, names, metrics, context.folder / "curves.png", f"{config.name}: grpo")
    found = summary(rows, names, before or {"exits": {}}, after or {"exits": {}})
    if trained["watched"]:
        found["best"] = best_summary(context, trained["watched"], after, context.folder, context.input)
    found["rollout"] = rollout_summary(rows, names)
    counts = failure_counts(failures.path)
    found["reward_failures"] = sum(sum(kinds.values()) for kinds in counts.values())
    found["reward_failures_by_kind"] = counts
    return found


def arguments(context: StageContext, sharded: bool) -> GRPOConfig:
    """The trainer's arguments; without `sharded` no DeepSpeed is set up."""
    config = context.config
    defaults: dict[str, Any] = {
        "reward_weights": [float(function.weight) for function in config.reward.functions.values()],
    }
    if config.reward.scale is not None:
        defaults["multi_objective_aggregation"] = config.reward.scale
    if sharded:
        defaults["deepspeed"] = deepspeed_config(config.deepspeed, ranks.world_size())
        enter_deepspeed(defaults["deepspeed"])
    given, began_on = config.grpo.trainer, context.manifest.world_size
    return trainer_arguments(GRPOConfig, "grpo.trainer", given, context.folder, config.seed, defaults, began_on)


@dataclass(frozen=True)
class Inputs:
    """What a trainer is built from."""

    exits: Mapping[str, int]
    tokenizer: PreTrainedTokenizerBase
    scorer: RewardScorer
    failures: RewardFailures
    rows: Dataset
    """Training rows whose prompts are within the limit."""
    report: PromptReport
    """Of the training rows."""
    longest_prompt: int
    """Of training and held-out rows, in tokens."""


def prompts_of(
    config: RunConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase, args: GRPOConfig
) -> tuple[Dataset, PromptReport, int]:
    """Training rows within `data.max_prompt_tokens`, their report, and the longest prompt of all splits."""
    limit, kwargs = config.data.max_prompt_tokens, args.chat_template_kwargs
    rows, report = limit_prompts(splits.train, tokenizer, limit, kwargs)
    longest = report.longest
    if config.evaluation.problems:
        longest = max(longest, limit_prompts(splits.test, tokenizer, limit, kwargs)[1].longest)
    return rows, report, min(longest, limit)


def _trainer(
    context: StageContext,
    inputs: Inputs,
    args: GRPOConfig,
    rollout: Rollout,
    record: Callable[[list[dict]], None] | None = None,
) -> FamilyGRPOTrainer:
    family, callbacks = load_to_train(context.input, context.config.model, args.deepspeed)
    try:
        return FamilyGRPOTrainer(
            model=family,
            reward_funcs=inputs.scorer,
            args=args,
            train_dataset=inputs.rows,
            processing_class=inputs.tokenizer,
            exits=list(inputs.exits),
            train_only=context.config.grpo.train_only,
            advantage_scale=context.config.grpo.advantage.scale,
            exit_weights=context.config.grpo.exit_weights,
            packed=context.config.grpo.packed,
            token_budget=context.config.grpo.token_budget,
            rollout=rollout,
            record=record,
            failures=inputs.failures,
            callbacks=[*callbacks, ForgetRepeated(inputs.failures)],
        )
    except ValueError as error:
        raise Refusal("grpo.trainer", str(error)) from error


class ForgetRepeated(TrainerCallback):
    """A resumed training draws again what came after its checkpoint: the failures among it are not to count twice."""

    def __init__(self, failures: RewardFailures):
        self.failures = failures

    def on_train_begin(self, args, state, control, **kwargs):
        self.failures.forget(lambda row: row["mode"] == "train" and row["step"] >= state.global_step)


def _train(context: StageContext, inputs: Inputs, rollout: Rollout, watch: Watch | None) -> dict[str, Any] | None:
    """Trains and saves the family; returns what `PeriodicEvaluation.outcome` says of the measurements in between."""
    report = inputs.report
    args = arguments(context, sharded=True)
    trainer = _trainer(context, inputs, args, rollout)
    plan = trainer.plan
    longest = min(report.longest, report.limit)
    print_plan(
        context.console,
        StepPlan(
            world_size=args.world_size,
            began_on=context.manifest.world_size,
            micro_batch=args.per_device_train_batch_size,
            micro_batches=args.gradient_accumulation_steps,
            optimiser_steps=grpo_steps(
                report.kept,
                plan.prompts,
                args.num_iterations * args.steps_per_generation / args.gradient_accumulation_steps,
                args.num_train_epochs,
                args.max_steps,
            ),
            prompts=Prompts(report.kept, longest, report.limit, report.dropped),
            longest_row=longest + args.max_completion_length,
            weights=weight_bytes(trainer.model),
            trained=trained_parameters(trainer.model),
            memory=memory_report(context.config, "grpo", trainer.model, args, context.config.grpo, longest),
            exits=len(inputs.exits),
            generations=args.num_generations,
            generation_batch=plan.completions,
            packed=context.config.grpo.packed,
            token_budget=context.config.grpo.token_budget,
        ),
    )
    watching = None
    if watch is not None:
        train_only = context.config.grpo.train_only
        watching = PeriodicEvaluation(
            context, trainer, watch, list(inputs.exits), context.folder, context.input, train_only
        )
    train(trainer, context, list(inputs.exits), "reward", context.folder, watching=[watching] if watching else [])
    found = watching.outcome() if watching else None
    del trainer, watching
    leave_deepspeed()
    release_memory()
    if context.config.grpo.train_only is not None:
        ranks.on_rank_zero(lambda: restore_frozen(context.input, context.folder, list(inputs.exits)))
        context.mirror()
    return found


def summary(
    rows: Sequence[Mapping[str, Any]],
    exits: Sequence[str],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> dict[str, Any]:
    """What the stage has shown, per exit, and where the training's time went."""
    found: dict[str, Any] = {
        "exits": {},
        "steps": rows[-1]["step"] if rows else 0,
        "tokens": last_tokens(rows),
        "skipped_updates": skipped_updates(rows),
        "phases": phase_summary(rows),
    }
    for name in exits:
        first, last = first_and_last(rows, f"{name}/reward")
        values: dict[str, Any] = {"reward_first": first, "reward_last": last}
        for when, scores in (("before", before), ("after", after)):
            score = scores["exits"].get(name)
            if score is not None:
                values |= told(score, when)
        found["exits"][name] = values
    if after["exits"]:
        found["held_out"] = {key: after[key] for key in ("measurement", "problems", "samples", "temperature")}
        found["held_out"]["exits"] = after["exits"]
    return found


def rollout_summary(rows: Sequence[Mapping[str, Any]], exits: Sequence[str]) -> dict[str, Any]:
    """Speed of the rollouts, share of the steps' time that syncs took, and how far the engine was from the trainer."""

    def values(key: str) -> list[float]:
        return [row[key] for row in rows if row.get(key) is not None]

    found: dict[str, Any] = {"exits": {}}
    if values("step_time"):
        found["sync_share"] = sum(values("rollout/sync_seconds")) / sum(values("step_time"))
        found["share"] = sum(values("rollout/seconds")) / sum(values("step_time"))
    for name in exits:
        mean, largest = (values(f"{name}/sampling/sampling_logp_difference/{kind}") for kind in ("mean", "max"))
        found["exits"][name] = {
            "tokens_per_second": statistics.fmean(values(f"{name}/rollout/tokens_per_second") or [0.0]),
            "failures": sum(values(f"{name}/rollout/failures")),
            **({"logp_difference_mean": statistics.fmean(mean), "logp_difference_max": max(largest)} if mean else {}),
        }
    return found
