"""The `sft`, `pretrain`, `grpo` and `evaluation` blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ruyi_rl.refusal import Refusal
from ruyi_rl.training.batches import plan_batches
from ruyi_rl.training.options import ADVANTAGE_SCALES, EvaluationOptions, GRPOOptions, SFTOptions
from ruyi_rl.training.schedules import PRESETS, SCHEDULES, loss_weights
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
)
NOT_NEGATIVE = ("learning_rate", "weight_decay", "warmup_steps", "beta", "epsilon", "max_grad_norm")


def check_sft(block: str, options: SFTOptions, exits: Mapping[str, int] | None) -> None:
    """Check `sft` or `pretrain` (`block`); `exits` is None where the family's exits are not known."""
    trained = trained_exits(f"{block}.exits", options.exits, exits)
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
        _check_numbers(f"{block}.{name}", trainer)


def check_grpo(options: GRPOOptions, exits: Mapping[str, int] | None, world_size: int) -> None:
    """Check `grpo`, the batch arithmetic included; `exits` is None where the family's exits are not known."""
    trained = trained_exits("grpo.exits", options.exits, exits)
    require_choice("grpo.advantage.scale", options.advantage.scale, ADVANTAGE_SCALES)
    require_exits("grpo.exit_weights", list(options.exit_weights), trained)
    for name, weight in options.exit_weights.items():
        require(f"grpo.exit_weights.{name}", weight, weight >= 0, "0 or more")
    trainer = options.trainer
    _check_numbers("grpo.trainer", trainer)
    require("grpo.trainer.temperature", trainer.get("temperature"), trainer.get("temperature", 1.0) > 0, "above 0")
    level, loss = trainer.get("importance_sampling_level", "token"), trainer.get("loss_type", "dapo")
    if loss == "luspo" and level != "sequence":
        raise Refusal(
            "grpo.trainer.loss_type", "'luspo' weighs whole sequences", "importance_sampling_level=sequence with it"
        )
    names = options.exits or (list(exits) if exits is not None else None)
    check_batches(trainer, None if names is None else len(names), world_size)


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


def trained_exits(key: str, chosen: list[str] | None, exits: Mapping[str, int] | None) -> dict[str, int] | None:
    """The exits that a block trains, shallowest first; None where the family's are not known. Refuses unknown ones."""
    if chosen is None:
        return None if exits is None else dict(exits)
    if not chosen:
        raise Refusal(key, "names no exit", "at least one, or null for all")
    require_exits(key, chosen, exits)
    return None if exits is None else {name: position for name, position in exits.items() if name in chosen}


def _check_numbers(block: str, trainer: Mapping[str, Any]) -> None:
    for name, value in trainer.items():
        if value is None:
            continue
        if name in AT_LEAST_ONE:
            require(f"{block}.{name}", value, value >= 1, "1 or more")
        if name in NOT_NEGATIVE:
            require(f"{block}.{name}", value, value >= 0, "0 or more")
    if trainer.get("bf16") and trainer.get("fp16"):
        raise Refusal(f"{block}.fp16", "stands beside bf16", "one of the two")
