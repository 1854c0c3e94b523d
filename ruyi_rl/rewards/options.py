"""`reward`: which plugins score a completion, and how. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RewardFunctionOptions:
    """One reward function."""

    path: str = ""
    """A Python file (`rewards/math_answer.py`, looked up from the working folder, then among the shipped ones),
    `file.py:function`, or a dotted name such as `trl.rewards.think_format_reward`."""
    weight: float = 1.0
    """Its weight in the sum."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments passed at every call."""
    timeout: float = 10.0
    """Seconds that one sample may take; the worker of one that takes longer is killed."""
    workers: int | None = None
    """Worker processes of each rank, started as there is work for them. None: by the machine's cores."""
    memory_gb: float = 4.0
    """GiB that a worker, and all that it starts, may hold."""
    scope: str = "sample"
    """What a call must hold together: `sample` (each sample for itself: calls may be cut anywhere), `group` (all
    completions of a prompt and exit, for rewards that compare them) or `batch` (all that a rank has generated)."""
    gate: str | None = None
    """Another function of this group: this one is asked only where that one passed (its reward is `pass_at` or more);
    elsewhere it counts as 0. A weight of 0 makes that one a gate and nothing else."""
    gate_on: str = "passed"
    """`passed`, or `failed`: asked only where the gate did not pass."""
    clip: list[float] | None = None
    """[lowest, highest] of its rewards, before the weight."""
    on_error: str = "exclude"
    """`exclude`: a sample that it fails on is left out, counted and kept; `stop`: the run stops at once."""
    max_failure_share: float = 0.2
    """The run stops when more than this share of its last 512 samples failed (once there are 64). 1: never."""


@dataclass
class RewardOptions:
    """The `reward` group."""

    name: str = "math"
    """Short name."""
    functions: dict[str, RewardFunctionOptions] = field(default_factory=dict)
    """Name -> reward function; the reward is their weighted sum."""
    judge: str | None = None
    """The function whose reward >= `pass_at` means "solved" in evaluations. None: the only one, or else the weighted
    sum."""
    pass_at: float = 1.0
    """Reward from which a completion counts as solved, for the judge and for gates."""
    clip: list[float] | None = None
    """[lowest, highest] of the weighted sum."""
    scale: str | None = None
    """`sum_then_normalize` or `normalize_then_sum`: TRL's `multi_objective_aggregation`. None: the trainer's own."""
