"""What a reward function returns, made safe for the trainer."""

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any


class RewardError(Exception):
    """A reward function failed; the message names the function, its file and line."""


@dataclass
class RewardCounts:
    """How many completions of each kind a function has seen since it was loaded."""

    scored: int = 0
    """Got a finite number."""
    abstained: int = 0
    """The function itself gave None."""
    failures: dict[str, int] = field(default_factory=dict)
    """Kind -> completions that got None for it: `nan`, `infinite`, `not_a_number`, `timeout`, `crash`."""

    def fail(self, kind: str, completions: int = 1) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + completions


def clean_rewards(name: str, returned: Any, expected: int, counts: RewardCounts) -> list[float | None]:
    """One finite float or None a completion.

    Args:
        name: of the function, for the message.
        returned: what it returned: a list, a tuple, or a numpy array or tensor of shape (expected,).
        expected: number of completions.
        counts: added to.

    Raises:
        RewardError: where it returned no sequence, or one of another length.
    """
    if hasattr(returned, "tolist"):
        returned = returned.tolist()
    if not isinstance(returned, Sequence) or not isinstance(returned, Sized) or isinstance(returned, (str, bytes)):
        raise RewardError(f"{name} returned {type(returned).__name__}, not a list of one number or None a completion")
    if len(returned) != expected:
        raise RewardError(f"{name} returned {len(returned)} rewards for {expected} completions")
    return [_clean(value, counts) for value in returned]


def _clean(value: Any, counts: RewardCounts) -> float | None:
    if value is None:
        counts.abstained += 1
        return None
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)):
        counts.fail("not_a_number")
        return None
    if not math.isfinite(value):
        counts.fail("nan" if math.isnan(value) else "infinite")
        return None
    counts.scored += 1
    return float(value)
