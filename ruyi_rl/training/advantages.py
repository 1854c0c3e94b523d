"""Advantages of a family: an exit's completions are compared with the same exit's completions to the same prompt."""

from __future__ import annotations

import torch

from ruyi_rl.training.options import ADVANTAGE_SCALES

EPSILON = 1e-4


def group_advantages(
    rewards: torch.Tensor, prompt_ids: torch.Tensor, exit_ids: torch.Tensor, scale: str = "group"
) -> torch.Tensor:
    """Centre rewards inside their group, and scale them.

    `A_i = (r_i - mean of its group) / (spread + 1e-4)` (GRPO: DeepSeekMath, arXiv 2402.03300, eq. 3 ff.; unscaled:
    Dr. GRPO, arXiv 2503.20783). Spreads are standard deviations with Bessel's correction, as in TRL.

    Args:
        rewards: (rows,) floating point; NaN marks a completion without a reward: its advantage is 0 and the others'
            baseline leaves it out.
        prompt_ids: (rows,) integers; rows of one prompt share one.
        exit_ids: (rows,) integers; rows of one exit share one.
        scale: `group`: the spread of the (prompt, exit) group. `exit`: the spread of all of the exit's rewards.
            `none`: no division. `pooled`: group and spread are the prompt's completions of all exits together, which
            rewards deep exits for being deep; it is there to compare against.

    Returns:
        (rows,), the dtype of `rewards`.

    Raises:
        ValueError: an unknown scale.
    """
    if scale not in ADVANTAGE_SCALES:
        raise ValueError(f"scale must be one of {', '.join(ADVANTAGE_SCALES)}, not {scale!r}")
    exit_of_group = torch.zeros_like(exit_ids) if scale == "pooled" else exit_ids
    groups = _label(prompt_ids, exit_of_group)
    centred = rewards - _mean(rewards, groups)
    if scale in ("group", "pooled"):
        centred = centred / (_spread(rewards, groups) + EPSILON)
    elif scale == "exit":
        centred = centred / (_spread(rewards, _label(exit_ids)) + EPSILON)
    return torch.nan_to_num(centred, nan=0.0)


def normalized_advantages(
    rewards: torch.Tensor, weights: torch.Tensor, prompt_ids: torch.Tensor, exit_ids: torch.Tensor
) -> torch.Tensor:
    """GDPO's order (arXiv 2601.05242): scale each reward function inside its group, sum, then scale over the exit.

    Args:
        rewards: (rows, functions); NaN where a function gave none.
        weights: (functions,).
        prompt_ids: (rows,).
        exit_ids: (rows,).

    Returns:
        (rows,); 0 for a row that no function scored.
    """
    groups = _label(prompt_ids, exit_ids)
    scaled = torch.stack(
        [(column - _mean(column, groups)) / (_spread(column, groups) + EPSILON) for column in rewards.T], dim=1
    )
    total = (scaled * weights).nansum(dim=1)
    total = total.masked_fill(torch.isnan(rewards).all(dim=1), torch.nan)
    exits = _label(exit_ids)
    return torch.nan_to_num((total - _mean(total, exits)) / (_spread(total, exits) + EPSILON), nan=0.0)


def dead_groups(rewards: torch.Tensor, prompt_ids: torch.Tensor, exit_ids: torch.Tensor) -> torch.Tensor:
    """(rows,) bool: whether a row's (prompt, exit) group has no spread, so that it teaches nothing."""
    # Fewer than two scored completions have no spread either: theirs is NaN.
    return ~(_spread(rewards, _label(prompt_ids, exit_ids)) > 1e-8)


def _label(*columns: torch.Tensor) -> torch.Tensor:
    """(rows,) int64: rows that agree in every column share a number, counted from 0."""
    return torch.unique(torch.stack(columns, dim=1), dim=0, return_inverse=True)[1]


def _sum(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(int(groups.max()) + 1, dtype=values.dtype, device=values.device)
    return total.index_add_(0, groups, values)[groups]


def _mean(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    scored = ~torch.isnan(values)
    return _sum(values.masked_fill(~scored, 0), groups) / _sum(scored.to(values.dtype), groups)


def _spread(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each row's group over its scored values; NaN for fewer than two, as Bessel's is."""
    scored = ~torch.isnan(values)
    squares = ((values - _mean(values, groups)) ** 2).masked_fill(~scored, 0)
    count = _sum(scored.to(values.dtype), groups)
    return torch.sqrt(_sum(squares, groups) / (count - 1))
