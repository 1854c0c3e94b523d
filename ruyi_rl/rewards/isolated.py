"""A reward function to call by hand: isolated, bounded in time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from ruyi_rl.rewards.paths import RewardPath
from ruyi_rl.rewards.pool import PoolLimits, RewardFailure, RewardPool
from ruyi_rl.rewards.results import RewardCounts


def load_reward(path: str, timeout: float = 10.0, scope: str = "sample", **kwargs: Any) -> IsolatedReward:
    """A reward function in worker processes, as a run uses it.

    Args:
        path: a Python file (looked up from the working folder, then among the shipped plugins), `file.py:function`, or
            a dotted name.
        timeout: seconds that one sample may take.
        scope: `batch` for a function that compares completions: it gets those of a call together.
        kwargs: passed to the function at every call.

    Raises:
        Refusal: where the path leads to no function that takes these keyword arguments, or `timeout` is impossible.
        RewardError: where the plugin cannot be imported, or its `_start` raises.
    """
    place = RewardPath.parse(path)
    name = place.function or Path(place.file or path).stem
    pool = RewardPool(name, path, kwargs, PoolLimits(timeout=timeout, scope=scope))
    try:
        pool.start()
    except BaseException:
        pool.close()
        raise
    return IsolatedReward(pool)


class IsolatedReward:
    """Calls a reward function; use it in a `with` block, or `close()` it.

    Attributes:
        counts: how many completions of each kind it has seen.
        failures: of the last call, one a failed completion.
    """

    def __init__(self, pool: RewardPool):
        self._pool, self.__name__ = pool, pool.name
        self.counts = RewardCounts()
        self.failures: list[RewardFailure] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        """One finite float a completion; None where the function abstained or failed. Columns that are lists of one
        value a completion are cut with them."""
        scores = self._pool.score(completions, columns)
        self.failures = scores.failures
        self.counts.add(scores.rewards, [failure.kind for failure in scores.failures])
        return scores.rewards

    def close(self) -> None:
        """End the workers and everything they started."""
        self._pool.close()
