"""Joint multi-branch training on rows of text or chat: what `sft` and `pretrain` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from ruyi_rl import ranks
from ruyi_rl.execution import StageContext
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.batch import Prompts, StepPlan, print_plan, sft_steps
from ruyi_rl.stages.held_out import release_memory
from ruyi_rl.stages.inputs import load_to_train, memory_report, trained_parameters, weight_bytes
from ruyi_rl.stages.periodic import PeriodicEvaluation, Watch
from ruyi_rl.training.arguments import trainer_arguments
from ruyi_rl.training.callbacks import first_and_last, last_tokens, read_metrics
from ruyi_rl.training.deepspeed import deepspeed_config
from ruyi_rl.training.finite_updates import skipped_updates
from ruyi_rl.training.frozen_weights import restore_frozen
from ruyi_rl.training.options import LossWeightOptions, SFTOptions
from ruyi_rl.training.phases import phase_summary
from ruyi_rl.training.schedules import loss_weights
from ruyi_rl.training.session import enter_deepspeed, leave_deepspeed, train
from ruyi_rl.training.sft_trainer import FamilySFTTrainer

ROW_COLUMNS = ("prompt", "completion", "messages", "text")
"""What the trainer reads of a row; anything else would be tokenised or collated in vain."""


def joint_training(
    context: StageContext,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    exits: Mapping[str, int],
    options: SFTOptions,
    start: Path,
    save_to: Path,
    checkpoints: Path,
    phase: int = 1,
    defaults: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any] | None:
    """Trains the family in `start` on `rows` and saves it in `save_to`.

    Args:
        rows: with the columns of `ROW_COLUMNS` that they have.
        exits: exits to train, name -> position k, shallowest first.
        options: the block; its `trainer` holds this phase's fields.
        checkpoints: folder of this phase's checkpoints.
        phase: 1, or 2 for a second stage.
        defaults: trainer fields that the config may override.
        watch: what held-out rates are measured with in between; None: none are.

    Returns:
        What `PeriodicEvaluation.outcome` says of these measurements.

    Raises:
        Refusal: trainer fields or loss weights that make no run, no row short enough.
    """
    config, key = context.config, f"{context.step.stage}.trainer"
    rows = rows.select_columns([name for name in ROW_COLUMNS if name in rows.column_names])
    if "messages" in rows.column_names:
        defaults = {"assistant_only_loss": True, **(defaults or {})}
    sharding = deepspeed_config(config.deepspeed, ranks.world_size())
    enter_deepspeed(sharding)
    defaults = {**(defaults or {}), "deepspeed": sharding}
    began_on = context.manifest.world_size
    args = trainer_arguments(SFTConfig, key, options.trainer, checkpoints, config.seed, defaults, began_on)
    try:
        weights = loss_weights(options.loss_weights, exits)
    except ValueError as error:
        raise Refusal(f"{context.step.stage}.loss_weights", str(error)) from error
    with context.console.status("preparing the rows"):
        rows, lengths = limit_rows(rows, tokenizer, row_limit(args), f"{key}.max_length")
        family, callbacks = load_to_train(start, config.model, sharding)
        sizes = weight_bytes(family)
        try:
            trainer = FamilySFTTrainer(
                model=family,
                args=args,
                train_dataset=rows,
                processing_class=tokenizer,
                exits=list(exits),
                train_only=options.train_only,
                loss_weights=weights,
                packed=options.packed,
                callbacks=callbacks,
            )
        except ValueError as error:
            raise Refusal(key, str(error)) from error
    print_plan(context.console, step_plan(context, trainer, options, lengths, sizes))
    description = context.step.stage if phase == 1 else f"{context.step.stage}, stage two"
    watching = None
    if watch is not None:
        watching = PeriodicEvaluation(context, trainer, watch, list(exits), save_to, start, options.train_only)
    train(trainer, context, list(exits), "loss", save_to, phase, description, [watching] if watching else [])
    found = watching.outcome() if watching else None
    del trainer, family, watching
    leave_deepspeed()
    release_memory()
    if options.train_only is not None:
        ranks.on_rank_zero(lambda: restore_frozen(start, save_to, list(exits)))
        context.mirror()
    return found


def step_plan(
    context: StageContext, trainer: FamilySFTTrainer, options: SFTOptions, rows: Prompts, weights: Mapping[str, int]
) -> StepPlan:
    """How the training's batches are put together and what they take.

    Args:
        rows: lengths of the rows that the trainer was given.
        weights: see `weight_bytes`.
    """
    args = trainer.args
    longest = args.max_length if args.packing else rows.longest
    return StepPlan(
        world_size=args.world_size,
        began_on=context.manifest.world_size,
        micro_batch=args.per_device_train_batch_size,
        micro_batches=args.gradient_accumulation_steps,
        optimiser_steps=sft_steps(
            len(trainer.train_dataset),
            args.per_device_train_batch_size,
            args.world_size,
            args.gradient_accumulation_steps,
            args.num_train_epochs,
            args.max_steps,
        ),
        prompts=rows,
        longest_row=longest,
        weights=weights,
        trained=trained_parameters(trainer.model),
        memory=memory_report(context.config, context.step.stage, trainer.model, args, options, longest_row=longest),
    )


def row_limit(args: SFTConfig) -> int | None:
    """Tokens from which the trainer would cut a row; None where packing goes on with it in the next sequence.

    TRL's default packing strategy, `bfd`, cuts what overflows.
    """
    return None if args.packing and args.packing_strategy != "bfd" else args.max_length


def limit_rows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int | None, key: str = "max_length"
) -> tuple[Dataset, Prompts]:
    """Leaves out the rows that are longer than `limit` tokens as the trainer sees them, and counts them.

    Args:
        limit: None: every row is kept (packing that splits long ones over sequences).
        key: config key of the limit, for messages.

    Raises:
        Refusal: none is left, or chat messages without a chat template.
    """
    lengths: list[int] = []
    for start in range(0, len(rows), 1000):
        lengths += _lengths(rows[start : start + 1000], tokenizer)
    kept = [index for index, length in enumerate(lengths) if limit is None or length <= limit]
    if not kept:
        raise Refusal(
            key, f"all {len(lengths)} rows are longer than {limit} tokens", f"{min(lengths, default=1)} or more"
        )
    report = Prompts(len(kept), max(lengths[index] for index in kept), limit, len(lengths) - len(kept))
    return (rows.select(kept) if report.left_out else rows), report


def _lengths(batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if "text" in batch:
        return [len(ids) for ids in tokenizer(batch["text"])["input_ids"]]
    if "messages" in batch:
        chats = batch["messages"]
    elif isinstance(batch["prompt"][0], str):
        texts = [prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"])]
        return [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]
    else:
        chats = [prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"])]
    if tokenizer.chat_template is None:
        raise Refusal(
            "model.base",
            "its tokenizer has no chat template, but the rows are chat messages",
            "a base whose tokenizer has one, such as an instruct model's",
        )
    return [len(ids) for ids in tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True)["input_ids"]]


def closing_weights(options: LossWeightOptions, exits: Mapping[str, int]) -> LossWeightOptions:
    """λ of a second stage: it stays where the first stage's schedule ended."""
    end = loss_weights(options, exits).end
    return replace(options, preset=None, schedule="constant", start=dict(end), end=dict(end))


def training_summary(context: StageContext, exits: Mapping[str, int]) -> dict[str, Any]:
    """First and last loss and token accuracy per exit, tokens seen and time per phase, from the metrics file."""
    rows = read_metrics(context.folder / "metrics.jsonl")
    summary: dict[str, Any] = {"exits": {}, "steps": 0, "tokens": 0, "phases": phase_summary(rows)}
    summary["skipped_updates"] = skipped_updates(rows)
    for phase in sorted({row["phase"] for row in rows}):
        mine = [row for row in rows if row["phase"] == phase]
        summary["steps"] += mine[-1]["step"]
        summary["tokens"] += last_tokens(mine)
    for name in exits:
        loss_first, loss_last = first_and_last(rows, f"{name}/loss")
        accuracy_first, accuracy_last = first_and_last(rows, f"{name}/mean_token_accuracy")
        summary["exits"][name] = {
            "loss_first": loss_first,
            "loss_last": loss_last,
            "accuracy_first": accuracy_first,
            "accuracy_last": accuracy_last,
        }
    return summary
