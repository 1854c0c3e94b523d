"""What reward functions have given."""

from collections.abc import Sequence
from dataclasses import dataclass, field


class RewardError(Exception):
    """A reward function is of no use; the message names it, and its file and line where they are known."""


@dataclass
class RewardCounts:
    """How many completions of each kind a function has seen."""

    scored: int = 0
    """Got a finite number."""
    abstained: int = 0
    """The function itself gave None."""
    failures: dict[str, int] = field(default_factory=dict)
    """Kind of failure -> completions that got None for it."""

    def add(self, rewards: Sequence[float | None], failures: Sequence[str]) -> None:
        """Add a call: its rewards, and the kinds of its failures."""
        scored = sum(reward is not None for reward in rewards)
        self.scored += scored
        self.abstained += len(rewards) - scored - len(failures)
        for kind in failures:
            self.failures[kind] = self.failures.get(kind, 0) + 1
