"""What reward functions log, fitted to the run's own metrics and table of completions."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

TRAINERS_METRICS = frozenset(
    [
        *("phase", "step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens", "step_time"),
        *("reward", "reward_std", "frac_reward_zero_std"),
        *("policy_loss", "aux_loss", "kl", "entropy", "entropy_coef", "cispo_clip_ratio"),
    ]
)
TRAINERS_GROUPS = frozenset(
    ["rewards", "completions", "rollout", "sampling", "clip_ratio", "tools", "vespo", "eval", "train", "logged", "time"]
)
"""What stands before the first `/` of a metric of the trainer's, besides the names of exits."""
TRAINERS_COLUMNS = frozenset(["step", "prompt", "completion", "advantage", "exit", "image", "images"])
_ASIDE = "logged/"


def metric_name(name: str, exits: Collection[str]) -> str:
    """The name under which a plugin's metric is reported: its own, or `logged/<name>` where the trainer has that."""
    taken = name in TRAINERS_METRICS or name.partition("/")[0] in TRAINERS_GROUPS.union(exits)
    return _ASIDE + name if taken else name


def column_name(name: str, functions: Collection[str]) -> str:
    """The same of a column in the table of completions, which has one for each reward function."""
    return _ASIDE + name if name in TRAINERS_COLUMNS.union(functions) else name


def of_one_type(values: Sequence[Any]) -> list[Any]:
    """A column whose values, but for None, have one type, as tables (Arrow) need it: texts, truths or numbers.

    Anything else becomes its JSON, and texts beside it stay as they are; so the column may be extended and fitted
    again.
    """
    types = {type(value) for value in values if value is not None}
    if len(types) <= 1 and types <= {str, bool, int, float}:
        return list(values)
    if types <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
