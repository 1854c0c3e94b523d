"""A reward pool in this process, for tests of what uses one: the same contract, threads instead of processes."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ruyi_rl.rewards.options import RewardFunctionOptions, RewardOptions
from ruyi_rl.rewards.pool import RewardFailure, Scores
from ruyi_rl.rewards.results import RewardError


class FakePool:
    """Calls a function of one completion and its columns.

    Args:
        function: (completion, row of columns) -> number or None; raises `Kind` to fail with a kind.
        delay: longest time that a call takes, in seconds.
    """

    def __init__(self, name, function, limits, delay=0.0):
        self.name = self.__name__ = name
        self.function, self.limits, self.delay = function, limits, delay
        self.calls, self.closed, self.broken = [], False, None
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(4)

    def start(self):
        if self.broken:
            raise RewardError(self.broken)

    def score(self, completions, columns, groups=None):
        self.start()
        rows = len(completions)
        assert groups is None or len(groups) == rows
        with self._lock:
            self.calls.append((list(completions), dict(columns), groups))
        time.sleep(random.random() * self.delay)
        scores = Scores([None] * rows, metrics={f"{self.name}/rows": [float(rows)]})
        scores.extra[f"{self.name}/seen"] = [f"{self.name}: {completion}" for completion in completions]
        for row, completion in enumerate(completions):
            cut = {key: value[row] if isinstance(value, list) else value for key, value in columns.items()}
            try:
                scores.rewards[row] = self.function(completion, cut)
            except Kind as kind:
                scores.failures.append(RewardFailure(row, str(kind), f"at {completion}", "plugin.py:7"))
        scores.seconds = 0.25
        return scores

    def submit(self, completions, columns, groups=None):
        return self._threads.submit(self.score, completions, columns, groups)

    def close(self):
        self.closed = True
        self._threads.shutdown(cancel_futures=True)

    @property
    def asked(self):
        return [completion for completions, _, _ in self.calls for completion in completions]


class Kind(Exception):
    """A failure of a kind."""


def group_of(delay=0.0, pass_at=1.0, judge=None, clip=None, scale=None, **functions):
    """Options, and what makes the fake pools: name -> (function, fields of `RewardFunctionOptions`)."""
    pools = {}

    def make(name, path, kwargs, limits):
        pools[name] = FakePool(name, functions[name][0], limits, delay)
        return pools[name]

    options = RewardOptions(
        functions={name: RewardFunctionOptions(path=f"{name}.py", **fields) for name, (_, fields) in functions.items()},
        pass_at=pass_at,
        judge=judge,
        clip=clip,
        scale=scale,
    )
    return options, make, pools
