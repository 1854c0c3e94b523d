"""What is reported of each exit's rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from trl.trainer.utils import nanstd

from ruyi_rl.training.advantages import dead_groups


def rollout_metrics(
    rewards: torch.Tensor,
    rewards_per_function: torch.Tensor,
    function_names: Sequence[str],
    lengths: torch.Tensor,
    truncated: torch.Tensor,
    prompt_ids: torch.Tensor,
    exit_ids: torch.Tensor,
) -> dict[int, dict[str, float]]:
    """Means over one generation batch of all ranks.

    Args:
        rewards: (rows,); NaN where no function gave one.
        rewards_per_function: (rows, functions).
        function_names: the functions' names.
        lengths: (rows,) completion lengths in tokens.
        truncated: (rows,) 1 where a completion ran into the limit.
        prompt_ids, exit_ids: (rows,).

    Returns:
        Exit id -> metric -> value: `reward`, `reward_std`, `rewards/<function>/mean`, `completions/mean_length`,
        `completions/clipped_ratio`, `dead_groups` (share of groups without spread, which teach nothing) and `unscored`
        (share of completions without a reward).
    """
    dead = dead_groups(rewards, prompt_ids, exit_ids).float()
    metrics = {}
    for exit in exit_ids.unique().tolist():
        rows = exit_ids == exit
        metrics[exit] = {
            "reward": rewards[rows].nanmean().item(),
            "reward_std": nanstd(rewards[rows]).item(),
            **{
                f"rewards/{name}/mean": rewards_per_function[rows, index].nanmean().item()
                for index, name in enumerate(function_names)
            },
            "completions/mean_length": lengths[rows].mean().item(),
            "completions/clipped_ratio": truncated[rows].mean().item(),
            "dead_groups": dead[rows].mean().item(),
            "unscored": rewards[rows].isnan().float().mean().item(),
        }
    return metrics
