"""The metrics that the report knows: their names for readers, and what each one means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One key of `metrics.jsonl`."""

    key: str
    title: str
    meaning: str
    share: bool = False
    """Whether it is a share in 0..1, shown in percent."""
    noisy: bool = True
    """Whether its running mean says more than its values."""


OF_EXITS = (
    Metric("reward", "Reward", "mean reward of a step's completions"),
    Metric(
        "eval/pass_rate",
        "Held-out pass rate",
        "right answers to problems that are in no training row; bars: ± 1 standard error",
        True,
    ),
    Metric("loss", "Loss", "the exit's own loss"),
    Metric("mean_token_accuracy", "Token accuracy", "share of tokens that the exit would have chosen itself", True),
    Metric("completions/mean_length", "Completion length", "mean tokens of a completion"),
    Metric("completions/clipped_ratio", "Cut completions", "share that ran into the length limit", True),
    Metric("entropy", "Entropy", "of the next token, in nats: how undecided the exit is"),
    Metric("kl", "KL", "distance from the reference policy, in nats a token"),
    Metric(
        "sampling/sampling_logp_difference/mean",
        "Engine mismatch",
        "mean difference of a token's log-prob between rollout engine and trainer",
    ),
    Metric(
        "sampling/effective_sample_size",
        "Effective sample size",
        "share of the completions that importance weights leave",
        True,
    ),
    Metric("dead_groups", "Dead groups", "share of groups whose rewards are all equal, which teach nothing", True),
    Metric("clip_ratio/region_mean", "Clip share", "share of tokens whose update was clipped", True),
    Metric("unscored", "Unscored completions", "share that no reward function could score", True),
    Metric("reward_std", "Reward spread", "standard deviation of a step's rewards"),
    Metric("rollout/tokens_per_second", "Rollout speed", "tokens per second of the exit's engines"),
)
"""Read from `<exit>/<key>`, in the order in which they are shown."""
OF_TRAINING = (
    Metric("learning_rate", "Learning rate", "as the schedule has it", noisy=False),
    Metric("grad_norm", "Gradient norm", "before clipping"),
    Metric("loss", "Loss, all exits", "what the optimiser minimises"),
    Metric("step_time", "Step time", "seconds of a step"),
    Metric("skipped_updates", "Skipped updates", "so far: those whose loss or gradient was not finite", noisy=False),
)
"""Of the training as a whole."""
HIDDEN = ("time/", "num_tokens", "total_flos")
"""Beginnings of keys that are no curves: phases have a bar, counts only grow."""
