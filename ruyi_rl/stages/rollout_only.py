"""`grpo.rollout_only=true`: draws and scores what a training would be given, and trains nothing."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ruyi_rl import ranks
from ruyi_rl.execution import StageContext
from ruyi_rl.report.progress import ProgressLine
from ruyi_rl.rollout.record import RolloutFile, read_rollouts
from ruyi_rl.training.grpo_trainer import FamilyGRPOTrainer
from ruyi_rl.watchdog import watched


def record_rollouts(context: StageContext, trainer: FamilyGRPOTrainer, file: RolloutFile) -> dict[str, Any]:
    """Draws the generation batches of all steps with the weights as they are; the trainer scores and records them.

    Args:
        trainer: built with `record=file.write`.

    Returns:
        The stage's summary.
    """
    trainer.model.train()
    total = batch_count(trainer)
    trainer.phases.listener = context.heart.enter
    with watched(context), ProgressLine(context.console, "rollouts", total, lines=0) as line, torch.no_grad():
        for number, (step, batch) in enumerate(itertools.islice(generation_batches(trainer), total), 1):
            context.stop.check()
            trainer.state.global_step = step
            context.heart.at_step(step)
            trainer._generate_and_score_completions(batch)
            line.update(number, f"{file.rows} completions")
    exits = ranks.on_rank_zero(lambda: exit_summaries(read_rollouts(file.path), trainer))
    total = sum(exit["completions"] for exit in exits.values())
    return {"exits": exits, "rollouts": str(file.path), "completions": total}


def exit_summaries(rows: Sequence[Mapping[str, Any]], trainer: FamilyGRPOTrainer) -> dict[str, dict[str, float]]:
    """Exit -> number of completions, mean reward (as in training), mean tokens, share of truncated ones."""
    found = {}
    for name in reversed(trainer.exits):
        mine = [row for row in rows if row["exit"] == name]
        rewards = [row["reward"] for row in mine if row["reward"] is not None]
        found[name] = {
            "completions": len(mine),
            "reward": statistics.fmean(rewards) if rewards else math.nan,
            "mean_tokens": statistics.fmean(len(row["completion_ids"]) for row in mine),
            "truncated": statistics.fmean(not row["finished"] for row in mine),
        }
    return found


def batch_count(trainer: FamilyGRPOTrainer) -> int:
    """Generation batches of the whole training."""
    args = trainer.args
    every = args.steps_per_generation * trainer.num_iterations
    micro_steps = args.max_steps * args.gradient_accumulation_steps
    if args.max_steps <= 0:
        micro_steps = int(len(trainer.get_train_dataloader()) * args.num_train_epochs)
    return -(-micro_steps // every)


def generation_batches(trainer: FamilyGRPOTrainer) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(optimiser step, this rank's rows) of each generation batch, pass after pass, in the training's order."""
    every = trainer.args.steps_per_generation * trainer.num_iterations
    loader = trainer.get_train_dataloader()
    micro_step = 0
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in loader:
            if micro_step % every == 0:
                yield micro_step // trainer.args.gradient_accumulation_steps, batch
            micro_step += 1
