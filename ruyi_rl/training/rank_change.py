"""The optimiser step of a training that goes on with another number of ranks. Importing this module imports no torch.

The step stays what it was: as many rows, of the same places in the data. What a rank has more or less to do of it, it
does in more or fewer micro-batches; the config keeps the numbers that the training began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruyi_rl.refusal import Refusal
from ruyi_rl.training.batches import plan_batches
from ruyi_rl.validation.trainer_fields import trainer_fields

SCALED = ("gradient_accumulation_steps", "steps_per_generation")
"""Trainer fields that count what one rank does."""
ORDERED_BY_RANKS = ("group_by_length", "batch_rebalance")
"""Values of `train_sampling_strategy` whose order of the rows depends on the number of ranks."""


@dataclass(frozen=True)
class RankChange:
    """From the ranks that a training began on to those that go on with it."""

    began_on: int
    now: int

    def scaled(self, trainer: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """The trainer's fields for the ranks of now.

        Args:
            trainer: SFTConfig's or GRPOConfig's fields, as given for the ranks of the beginning.
            kind: `sft` or `grpo`.

        Raises:
            ValueError: numbers that cannot be divided so.
        """
        if self.now == self.began_on:
            return dict(trainer)
        scaled = {}
        for name in SCALED:
            value = trainer.get(name, _default(kind, name))
            if value is None:
                continue
            scaled[name], rest = divmod(value * self.began_on, self.now)
            if rest:
                raise ValueError(
                    f"{self.began_on} ranks x {name} {value} = {value * self.began_on} micro-batches are not to be "
                    f"divided among {self.now} ranks"
                )
        return {**trainer, **scaled}

    def require(self, key: str, trainer: Mapping[str, Any], kind: str, exits: int | None = None) -> None:
        """Refuses ranks that cannot take the same step.

        Args:
            key: config key of `trainer`.
            trainer: its fields.
            kind: `sft` or `grpo`.
            exits: how many are trained in `grpo`; None: not known.

        Raises:
            Refusal: names the numbers of ranks that go.
        """
        problem = self._problem(trainer, kind, exits)
        if problem is None:
            return
        micro_batches = self.began_on * trainer.get(SCALED[0], _default(kind, SCALED[0]))
        tried = (RankChange(self.began_on, ranks) for ranks in range(1, micro_batches + 1))
        fitting = [str(change.now) for change in tried if change._problem(trainer, kind, exits) is None]
        raise Refusal(
            "num_processes",
            f"the training began on {self.began_on} ranks, this run has {self.now}: {problem} ({key})",
            f"{' or '.join(fitting)} ranks, or fresh=true to start over",
        )

    def _problem(self, trainer: Mapping[str, Any], kind: str, exits: int | None) -> str | None:
        strategy = trainer.get("train_sampling_strategy")
        if self.now != self.began_on and strategy in ORDERED_BY_RANKS:
            return f"train_sampling_strategy={strategy} orders the rows by the number of ranks"
        try:
            scaled = self.scaled(trainer, kind)
            if kind == "grpo":
                _require_whole_prompts(scaled, exits or 1, self.now)
        except ValueError as error:
            return str(error)
        return None


def _require_whole_prompts(trainer: Mapping[str, Any], exits: int, world_size: int) -> None:
    """Raises ValueError where a rank's share of a generation batch is no whole prompts."""
    size, accumulation, steps, generation, samples = (
        trainer.get(name, _default("grpo", name))
        for name in (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "steps_per_generation",
            "generation_batch_size",
            "num_generations",
        )
    )
    if generation is not None:
        steps, rest = divmod(generation, size * world_size)
        if rest:
            raise ValueError(
                f"generation_batch_size {generation} is no multiple of per_device_train_batch_size {size} x "
                f"{world_size} ranks"
            )
    plan_batches(size, steps or accumulation, samples, exits, world_size)


def _default(kind: str, name: str) -> Any:
    field = trainer_fields(kind).get(name)
    return None if field is None else field.default
