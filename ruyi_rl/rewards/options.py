"""`reward`: which plugins score a completion. Importing this module imports no torch."""

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


@dataclass
class RewardOptions:
    """The `reward` group."""

    name: str = "math"
    """Short name."""
    functions: dict[str, RewardFunctionOptions] = field(default_factory=dict)
    """Name -> reward function; the reward is their weighted sum."""
    judge: str | None = None
    """The function whose reward >= `pass_at` means "solved" in evaluations. None: the first one."""
    pass_at: float = 1.0
    """Reward from which a completion counts as solved."""
