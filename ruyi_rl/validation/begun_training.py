"""A stage whose training has begun: the ranks that go on with it must be able to take the same optimiser steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import TWINS, Step, Work
from ruyi_rl.training.rank_change import RankChange
from ruyi_rl.validation.known_family import described_family
from ruyi_rl.validation.model import read_model_config
from ruyi_rl.validation.training import trained_exits


@dataclass(frozen=True)
class Training:
    """One of a stage's trainings that is not done."""

    key: str
    """Config key of its trainer's fields."""
    trainer: dict[str, Any]
    kind: str = "sft"
    exits: int | None = None
    """How many are trained in `grpo`."""


def require_ranks(work: Sequence[Work], config: RunConfig) -> None:
    """Refuses a number of ranks that a training that has begun cannot go on with.

    Raises:
        Refusal: names the numbers that it can go on with.
    """
    for item in work:
        began_on = item.step.folder.began_on() if item.resume else None
        if began_on in (None, ranks.world_size()):
            continue
        for left in trainings_left(item.step, config):
            RankChange(began_on, ranks.world_size()).require(left.key, left.trainer, left.kind, left.exits)


def trainings_left(step: Step, config: RunConfig) -> Iterator[Training]:
    """The trainings of a stage that has begun which it has still to end."""
    done, stage = step.folder.manifest().progress, step.stage
    options = getattr(config, stage)
    if stage == "grpo":
        family = described_family(read_model_config("start_from", step.input))
        if "trained" not in done:
            yield Training("grpo.trainer", options.trainer, "grpo", len(trained_exits("grpo", options, family)))
    elif stage == "compress":
        if options.recover_steps and "recovered" not in done:
            yield Training("compress.trainer", options.trainer)
    elif TWINS.get(stage, stage) == "pretrain":
        if "trained" not in done:
            yield Training(f"{stage}.trainer", options.trainer)
    else:
        if "trained_one" not in done:
            yield Training(f"{stage}.trainer", options.trainer)
        if options.stage_two.data is not None and "trained_two" not in done:
            yield Training(f"{stage}.stage_two.trainer", {**options.trainer, **options.stage_two.trainer})
