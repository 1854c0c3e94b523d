"""What is reported of each exit's rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from trl.trainer.utils import nanstd

from ruyi_rl.rewards.failures import Share, counted
from ruyi_rl.rollout.worker import ExitStatistics
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
        rewards: (rows,); NaN where a completion is left out.
        rewards_per_function: (rows, functions); NaN where a function gave none, 0 behind a closed gate.
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


def failure_metrics(shares: Sequence[Share], exits: Sequence[str]) -> dict[str, float]:
    """`rewards/<function>/failures/<kind>`, and the same for each exit, of all ranks; nothing where there are none."""
    found = {}
    for prefix, exit in (("", None), *((f"{name}/", name) for name in exits)):
        for function, kinds in counted(shares, exit).items():
            for kind, number in kinds.items():
                found[f"{prefix}rewards/{function}/failures/{kind}"] = float(number)
    return found


@dataclass(frozen=True)
class Mismatch:
    """Sums of a comparison of the trainer's log-probs with the engine's; each (exits,)."""

    differences: torch.Tensor
    """Sum of |difference| over tokens."""
    largest: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor
    """Sum over completions of the sequence weight exp(Σ_t (trainer - engine))."""
    squares: torch.Tensor
    """Sum of the squared sequence weights."""
    rows: torch.Tensor

    def over(self, accelerator) -> Mismatch:
        """The same over all ranks."""
        sums = torch.stack([self.differences, self.tokens, self.weights, self.squares, self.rows])
        differences, tokens, weights, squares, rows = accelerator.reduce(sums, "sum")
        largest = accelerator.gather(self.largest[None]).amax(0)
        return Mismatch(differences, largest, tokens, weights, squares, rows)

    def metrics(self) -> list[dict[str, float]]:
        """Per exit: mean and largest |difference| of a token's log-prob, and the effective sample size of the
        completions as a share of their number, (Σw)² / (n Σw²) (Kong 1992)."""
        means = self.differences / self.tokens.clamp(min=1)
        effective = self.weights**2 / (self.rows * self.squares)
        return [
            {
                "sampling/sampling_logp_difference/mean": mean,
                "sampling/sampling_logp_difference/max": largest,
                "sampling/effective_sample_size": share,
            }
            for mean, largest, share in zip(means.tolist(), self.largest.tolist(), effective.tolist())
        ]


def engine_mismatch(
    policy: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, exit_ids: torch.Tensor, exits: int
) -> Mismatch:
    """Compare the trainer's log-probs of sampled tokens with the engine's.

    Args:
        policy: (rows, length) the trainer's.
        sampled: (rows, length) the engine's; NaN where it gave none, which is left out.
        mask: (rows, length) 1 for completion tokens.
        exit_ids: (rows,).
        exits: number of exits.
    """
    known = mask.bool() & ~sampled.isnan()
    difference = torch.where(known, policy - sampled, 0.0).double()
    weights = difference.sum(1).exp()

    def per_exit(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(exits, dtype=torch.float64).index_add_(0, exit_ids, values.double())

    largest = torch.stack([difference[exit_ids == exit].abs().max() for exit in range(exits)])
    return Mismatch(
        per_exit(difference.abs().sum(1)),
        largest,
        per_exit(known.sum(1)),
        per_exit(weights),
        per_exit(weights**2),
        per_exit(torch.ones_like(weights)),
    )


def worker_metrics(statistics: Sequence[Mapping[str, ExitStatistics]]) -> dict[str, dict[str, float]]:
    """Exit -> metrics of its workers over one generation batch.

    Args:
        statistics: each rank's, exit -> statistics. Ranks work at the same time, so tokens add up and the longest
            time counts.
    """
    metrics = {}
    for exit in dict.fromkeys(exit for rank in statistics for exit in rank):
        ranks = [rank[exit] for rank in statistics if exit in rank]
        tokens, seconds = sum(rank.tokens for rank in ranks), max(rank.seconds for rank in ranks)
        metrics[exit] = {
            "rollout/tokens_per_second": tokens / seconds if seconds else 0.0,
            "rollout/seconds": seconds,
            "rollout/sync_seconds": max(rank.sync_seconds for rank in ranks),
            "rollout/failures": float(sum(rank.failures for rank in ranks)),
        }
    return metrics
