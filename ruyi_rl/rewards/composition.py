"""From what each function gave to one reward a completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rewards.scored import Scored, State

Range = Sequence[float] | None
"""[lowest, highest], or no limits."""


@dataclass(frozen=True)
class Composition:
    """How the functions of a group make one reward."""

    weights: tuple[float, ...]
    clips: tuple[Range, ...]
    """Of each function's rewards, before its weight."""
    clip: Range = None
    """Of the sum."""

    @classmethod
    def of(cls, options: RewardOptions, names: Sequence[str]) -> Composition:
        """The composition of the functions `names` of a `reward` group."""
        functions = [options.functions[name] for name in names]
        weights = tuple(float(function.weight) for function in functions)
        return cls(weights, tuple(function.clip for function in functions), options.clip)


@dataclass(frozen=True)
class Composed:
    """Rewards of a batch."""

    columns: torch.Tensor
    """(rows, functions) what each function puts into the sum before its weight; NaN where it has nothing to say."""
    rewards: torch.Tensor
    """(rows,); NaN: the completion is left out of the baseline and of the loss."""


def compose(rewards: torch.Tensor, states: torch.Tensor, composition: Composition) -> Composed:
    """r_i = clip(Σ_f w_f · clip_f(r_if)), with TRL's nansum over the functions that have an opinion.

    A function behind a closed gate adds 0 and counts as scored. A completion is left out where a function whose weight
    is not 0 failed, or could not be asked because its gate failed, and where no such function scored: a failure is not
    a 0. A function of weight 0 is only watched: it neither scores a completion nor spoils it.

    Args:
        rewards: (rows, functions) floating point; read where the state is SCORED.
        states: (rows, functions) integers, see `State`.
        composition: of the functions, in the order of the columns.
    """
    scored, closed = states == State.SCORED, states == State.CLOSED
    columns = rewards.masked_fill(~scored, torch.nan)
    columns = torch.stack(
        [column if clip is None else column.clamp(*clip) for column, clip in zip(columns.T, composition.clips)], dim=1
    ).masked_fill(closed, 0.0)
    weights = torch.tensor(composition.weights, dtype=rewards.dtype, device=rewards.device)
    counts = weights != 0
    failed = (states == State.FAILED) | (states == State.UNDECIDED)
    left_out = (failed & counts).any(dim=1) | ~((scored | closed) & counts).any(dim=1)
    total = (columns * weights).nansum(dim=1)
    if composition.clip is not None:
        total = total.clamp(*composition.clip)
    return Composed(columns, total.masked_fill(left_out, torch.nan))


def state_tensor(scored: Scored) -> torch.Tensor:
    """(rows, functions) int64, see `State`."""
    return torch.tensor(scored.states, dtype=torch.int64).reshape(len(scored.states), len(scored.names))


def reward_tensor(scored: Scored) -> torch.Tensor:
    """(rows, functions) float32; NaN where a function gave no number."""
    rows = [[torch.nan if reward is None else reward for reward in row] for row in scored.rewards]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(scored.names))


def states_of(rewards: torch.Tensor) -> torch.Tensor:
    """(rows, functions) the states of functions that only give numbers and NaN: NaN is no opinion, as in TRL."""
    return torch.where(rewards.isnan(), State.ABSTAINED, State.SCORED)


def composed_rewards(options: RewardOptions, scored: Scored) -> list[float | None]:
    """One reward a completion as in training; None: it would be left out."""
    found = compose(reward_tensor(scored), state_tensor(scored), Composition.of(options, scored.names))
    return [None if math.isnan(reward) else reward for reward in found.rewards.tolist()]


def function_rewards(scored: Scored, name: str) -> list[float | None]:
    """One function's own rewards; 0 behind a closed gate, None where it gave no number."""
    column = scored.names.index(name)
    return [
        0.0 if states[column] is State.CLOSED else rewards[column]
        for states, rewards in zip(scored.states, scored.rewards, strict=True)
    ]
