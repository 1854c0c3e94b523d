"""The blocks of the training stages, `eval` and `evaluation`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.training.batches import plan_batches
from ruyi_rl.training.options import ADVANTAGE_SCALES, TRAIN_ONLY, EvaluationOptions, GRPOOptions, SFTOptions
from ruyi_rl.training.schedules import PRESETS, SCHEDULES, loss_weights
from ruyi_rl.validation.known_family import KnownFamily
from ruyi_rl.validation.trainer_fields import trainer_fields
from ruyi_rl.validation.values import require, require_choice, require_exits

AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "max_completion_length",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "save_total_limit",
)
WITHOUT_MEANING = {
    "eval_strategy": ("no", "evaluation.problems and evaluation.samples measure held-out rows"),
    "eval_on_start": (False, "evaluation.problems and evaluation.samples measure held-out rows"),
    "load_best_model_at_end": (False, "evaluation.every with keep_best=exit|mean"),
    "push_to_hub": (False, "stage=export push_to=<hub id>"),
    "save_only_model": (False, "false: the same command goes on from a checkpoint, which needs the optimiser's state"),
    "ignore_data_skip": (False, "false: a resumed run goes on with the rows that the whole run would have had next"),
}
"""Trainer field -> the one value it can have here, and what to use instead."""
SFT_WITHOUT_MEANING = WITHOUT_MEANING | {
    "label_smoothing_factor": (0, "0: each exit's loss is the plain cross-entropy; see loss_weights"),
    "loss_type": ("nll", "nll, weighted by loss_weights"),
}
GRPO_WITHOUT_MEANING = WITHOUT_MEANING | {
    "num_generations_eval": (None, "evaluation.samples"),
    "cast_lm_head_to_fp32": (False, "model.dtype=float32"),
    "cache_implementation": (None, "rollout=transformers and rollout.batch_size decide how completions are made"),
    "use_transformers_continuous_batching": (False, "rollout=transformers and rollout.batch_size, or rollout=vllm"),
    "use_transformers_paged": (False, "rollout=transformers and rollout.batch_size, or rollout=vllm"),
    "generation_kwargs": (None, "temperature, top_p, top_k, min_p and repetition_penalty of grpo.trainer"),
}
STEPS_OR_SHARE = ("save_steps", "logging_steps")
NOT_NEGATIVE = ("learning_rate", "weight_decay", "warmup_steps", "beta", "epsilon", "max_grad_norm")


def check_sft(block: str, options: SFTOptions, family: KnownFamily | None) -> None:
    """Check `sft`, `pretrain` or a twin of theirs (`block`).

    Args:
        family: the family that the stage starts from; None where it is not known.
    """
    trained = trained_exits(block, options, family)
    weights, key = options.loss_weights, f"{block}.loss_weights"
    require_choice(f"{key}.preset", weights.preset, (*PRESETS, None))
    require_choice(f"{key}.schedule", weights.schedule, (*SCHEDULES, None))
    for name in ("start", "end"):
        values = getattr(weights, name)
        require_exits(f"{key}.{name}", list(values), trained)
        for exit, value in values.items():
            require(f"{key}.{name}.{exit}", value, value >= 0, "0 or more")
    if trained is not None:
        first, last = (loss_weights(weights, trained).at(progress) for progress in (0.0, 1.0))
        require(f"{key}.start", first, any(first.values()) or any(last.values()), "at least one weight above 0")
    require(
        f"{block}.stage_two.replay", options.stage_two.replay, 0 <= options.stage_two.replay < 1, "from 0 to below 1"
    )
    if options.stage_two.trainer and options.stage_two.data is None:
        raise Refusal(
            f"{block}.stage_two.data",
            "is not given, but stage_two.trainer is",
            f"such as {block}.stage_two.data.path=…",
        )
    for name, trainer in (("trainer", options.trainer), ("stage_two.trainer", options.stage_two.trainer)):
        if options.packed and trainer.get("neftune_noise_alpha"):
            raise Refusal(
                f"{block}.{name}.neftune_noise_alpha",
                f"{trainer['neftune_noise_alpha']} is scaled by a row's length, and a pack is one row of a whole batch",
                f"{block}.packed=false, or no noise",
            )
        check_numbers(f"{block}.{name}", trainer)
        check_meaning(f"{block}.{name}", trainer, SFT_WITHOUT_MEANING)


def check_pretrain(block: str, options: SFTOptions, family: KnownFamily | None) -> None:
    """Check `pretrain` or its twin (`block`): as `sft`, but for a second stage, which it has not."""
    if options.stage_two.data is not None or options.stage_two.trainer:
        raise Refusal(
            f"{block}.stage_two",
            "is given, but pretraining has one stage",
            f"sft.stage_two, or another run with start_from=<this run>/{block}",
        )
    check_sft(block, options, family)


def check_grpo(
    options: GRPOOptions, family: KnownFamily | None, world_size: int, backend: str = "transformers"
) -> None:
    """Check `grpo`, the batch arithmetic included.

    Args:
        family: the family that the stage starts from; None where it is not known.
        backend: `rollout.backend`.
    """
    trained = trained_exits("grpo", options, family)
    require_choice("grpo.advantage.scale", options.advantage.scale, ADVANTAGE_SCALES)
    require_exits("grpo.exit_weights", list(options.exit_weights), trained)
    for name, weight in options.exit_weights.items():
        require(f"grpo.exit_weights.{name}", weight, weight >= 0, "0 or more")
    trainer, names = options.trainer, options.exits if trained is None else list(trained)
    if names is not None and not any(options.exit_weights.get(name, 1.0) for name in names):
        raise Refusal(
            "grpo.exit_weights",
            f"{options.exit_weights} gives none of the trained exits a weight",
            "at least one above 0 (an exit that is not named weighs 1)",
        )
    check_numbers("grpo.trainer", trainer)
    check_meaning("grpo.trainer", trainer, GRPO_WITHOUT_MEANING)
    require("grpo.trainer.temperature", trainer.get("temperature"), trainer.get("temperature", 1.0) > 0, "above 0")
    if trainer.get("loss_type") == "vespo" and trainer.get("vllm_importance_sampling_correction", True):
        mode = trainer.get(
            "vllm_importance_sampling_mode", trainer_fields("grpo")["vllm_importance_sampling_mode"].default
        )
        if mode.startswith("sequence") and backend != "transformers":
            raise Refusal(
                "grpo.trainer.vllm_importance_sampling_mode",
                f"{mode} weighs whole completions, but loss_type=vespo weighs tokens",
                "token_truncate or token_mask, or grpo.trainer.vllm_importance_sampling_correction=false",
            )
    if options.token_budget is not None:
        require("grpo.token_budget", options.token_budget, options.token_budget > 0, "1 or more tokens, or null")
        quantile = trainer.get("top_entropy_quantile", 1.0)
        if options.packed and quantile < 1.0:
            raise Refusal(
                "grpo.token_budget",
                f"{options.token_budget} tokens a pack split micro-batches, but top_entropy_quantile={quantile} ranks "
                "the tokens of whole ones",
                "null, or grpo.trainer.top_entropy_quantile=1.0",
            )
    if options.rollout_only and options.replay is not None:
        raise Refusal("grpo.replay", "stands beside grpo.rollout_only=true", "one of the two")
    if options.replay is not None and not Path(options.replay).is_file():
        raise Refusal("grpo.replay", f"no file {options.replay}", "a file that grpo.rollout_only=true has written")
    if trainer.get("use_adaptive_entropy") and names is not None and len(names) > 1:
        raise Refusal(
            "grpo.trainer.use_adaptive_entropy",
            f"steers one coefficient, but {len(names)} exits are trained",
            "grpo.trainer.entropy_coef, or grpo.exits=[<one>]",
        )
    check_batches(trainer, None if names is None else len(names), world_size)


def check_aggregation(reward: RewardOptions, options: GRPOOptions) -> None:
    """Check `reward.scale` and `reward.clip` against the trainer's aggregation and the advantages' scale."""
    key, given = "grpo.trainer.multi_objective_aggregation", options.trainer.get("multi_objective_aggregation")
    if reward.scale is not None and given is not None and given != reward.scale:
        raise Refusal("reward.scale", f"{reward.scale} contradicts {key}={given}", "one of the two")
    scale = reward.scale or given
    if scale != "normalize_then_sum":
        return
    if options.advantage.scale != "group":
        raise Refusal(
            "grpo.advantage.scale",
            f"{options.advantage.scale!r} is never used under {'reward.scale' if reward.scale else key}={scale}",
            "group, or sum_then_normalize",
        )
    if reward.clip is not None:
        problem = f"{reward.clip} has no meaning where each function is normalised before the sum"
        raise Refusal("reward.clip", problem, "reward.functions.<name>.clip, or sum_then_normalize")


def check_batches(trainer: Mapping[str, Any], exits: int | None, world_size: int) -> None:
    """Check that batches hold whole prompts: every exit, every sample, on every rank.

    Args:
        trainer: GRPOConfig fields that were given; the others count with TRL's defaults.
        exits: how many exits are trained; None where that is not known, then only whole groups are asked for.
        world_size: ranks over all machines.
    """
    size, accumulation, steps, generation, samples = (
        trainer.get(name, trainer_fields("grpo")[name].default)
        for name in (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "steps_per_generation",
            "generation_batch_size",
            "num_generations",
        )
    )
    if generation is not None:
        if steps is not None:
            raise Refusal("grpo.trainer.generation_batch_size", "stands beside steps_per_generation", "one of the two")
        rows = size * world_size
        if generation % rows:
            below = max(generation // rows, 1) * rows
            raise Refusal(
                "grpo.trainer.generation_batch_size",
                f"{generation} is no multiple of per_device_train_batch_size {size} x {world_size} ranks = {rows}",
                f"nearest: {below} or {below + rows}",
            )
        steps = generation // rows
    steps = accumulation if steps is None else steps
    if samples is None or samples < 2:
        raise Refusal("grpo.trainer.num_generations", f"{samples!r} samples make no group to compare with", "2 or more")
    try:
        plan_batches(size, steps, samples, exits or 1, world_size)
    except ValueError as error:
        raise Refusal("grpo.trainer.per_device_train_batch_size", str(error)) from None


def check_evaluation(options: EvaluationOptions) -> None:
    """Check the numbers of `evaluation`."""
    require("evaluation.problems", options.problems, options.problems >= 0, "0 (no evaluation) or more")
    require("evaluation.samples", options.samples, options.samples >= 1, "1 or more")
    require("evaluation.temperature", options.temperature, options.temperature > 0, "above 0")
    limit = options.max_new_tokens
    require("evaluation.max_new_tokens", limit, limit is None or limit >= 1, "1 or more, or null")


def check_eval(exits: list[str] | None, family: KnownFamily | None) -> None:
    """Check `eval.exits`; `family` is None where it is not known."""
    require("eval.exits", exits, exits is None or bool(exits), "at least one, or null for all")
    require_exits("eval.exits", exits or [], None if family is None else family.exits)


def trained_exits(block: str, options: SFTOptions | GRPOOptions, family: KnownFamily | None) -> dict[str, int] | None:
    """Exit name -> position of the exits that a block trains, shallowest first; None where the family is not known.

    Raises:
        Refusal: an exit that the family has not, or with `train_only` one without expansion blocks.
    """
    key, chosen = f"{block}.exits", options.exits
    require_choice(f"{block}.train_only", options.train_only, (*TRAIN_ONLY, None))
    if chosen is not None and not chosen:
        raise Refusal(key, "names no exit", "at least one, or null for all")
    require_exits(key, chosen or [], None if family is None else family.exits)
    if family is None:
        return None
    possible = list(family.exits)
    if options.train_only is not None:
        possible = family.expanded
        if not possible:
            raise Refusal(
                f"{block}.train_only",
                f"{options.train_only}, but no exit has expansion blocks when {block} begins",
                f"null, or stage expand before {block}",
            )
        if plain := [name for name in chosen or [] if name not in possible]:
            problem = f"{plain[0]} has no expansion blocks, which alone {block}.train_only={options.train_only} trains"
            raise Refusal(key, problem, f"allowed: {', '.join(possible)}")
    return {name: family.exits[name] for name in possible if chosen is None or name in chosen}


def check_numbers(block: str, trainer: Mapping[str, Any]) -> None:
    """Refuse numbers of a trainer block that are too small."""
    for name, value in trainer.items():
        if value is None:
            continue
        if name in AT_LEAST_ONE:
            require(f"{block}.{name}", value, value >= 1, "1 or more")
        if name in NOT_NEGATIVE:
            require(f"{block}.{name}", value, value >= 0, "0 or more")
        if name in STEPS_OR_SHARE:
            require(f"{block}.{name}", value, value > 0, "a number of steps, or below 1 a share of all steps")
        if name == "max_steps":
            require(f"{block}.{name}", value, value >= 1 or value == -1, "1 or more; -1: as many as the epochs have")
    if trainer.get("bf16") and trainer.get("fp16"):
        raise Refusal(f"{block}.fp16", "stands beside bf16", "one of the two")


def check_meaning(block: str, trainer: Mapping[str, Any], fields: Mapping[str, tuple[Any, str]]) -> None:
    """Refuse what TRL's trainer would read but a family's does not; whatever is empty or off passes."""
    for name, (only, instead) in fields.items():
        value = trainer.get(name)
        if value and value != only:
            raise Refusal(f"{block}.{name}", f"{value!r} has no meaning for a family", instead)
