"""Worker processes that call a reward function, and are killed where it does not behave.

The pool's side: `RewardPool` (a function's public face) hands `Batch`es to a `Scheduler` (one thread), which cuts them
into chunks as `Pace` advises and sends these to `WorkerProcess`es. Each of those is a `guard` (a process that watches
and cleans up) with a `worker` (the process that calls the plugin).
"""

from ruyi_rl.rewards.pool.scores import KINDS, PoolLimits, RewardFailure, Scores

__all__ = ["KINDS", "PoolLimits", "RewardFailure", "RewardPool", "Scores"]


def __getattr__(name: str):
    # Late: the workers import this package too, and must not wait for what only the pool's side needs.
    if name == "RewardPool":
        from ruyi_rl.rewards.pool.pool import RewardPool

        return RewardPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
