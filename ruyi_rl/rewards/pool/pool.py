"""One reward function, served by worker processes."""

from __future__ import annotations

import os
import pickle
import sys
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.check import check_function
from ruyi_rl.rewards.paths import RewardPath
from ruyi_rl.rewards.pool.batch import Batch, units
from ruyi_rl.rewards.pool.process import Plugin
from ruyi_rl.rewards.pool.scheduler import Scheduler
from ruyi_rl.rewards.pool.scores import PoolLimits, Scores
from ruyi_rl.rewards.pool.values import described


class RewardPool:
    """One reward function, served by worker processes; use it in a `with` block, or `close()` it.

    The workers are started as there is work for them, reused, and killed where they overrun their limits; then the
    chunk of completions that they worked on is cut in parts until the samples at fault are found, and those alone fail.
    A plugin is called several times for one batch, and again for samples of a chunk that failed.

    Args:
        name: of the reward, in messages.
        path: a Python file (looked up from the working folder, then among the shipped plugins), `file.py:function`, or
            a dotted name.
        kwargs: passed to the function at every call; they win over a column of the same name.
        limits: what its workers may use.

    Raises:
        Refusal: where the path leads to no function, the keyword arguments do not fit it or cannot be sent to another
            process, or where this system is not Linux, whose means of control the workers need.
    """

    def __init__(self, name: str, path: str, kwargs: Mapping[str, Any] | None = None, limits: PoolLimits | None = None):
        if sys.platform != "linux":
            raise Refusal(name, f"rewards run in worker processes, which need Linux, not {sys.platform}", "Linux")
        self.name = self.__name__ = name
        self.limits = limits or PoolLimits()
        kwargs = dict(kwargs or {})
        check_function("path", path, kwargs)
        place = RewardPath.parse(path)
        file = str(place.find()) if place.file else ""
        if file:
            path = f"{file}:{place.function}" if place.function else file
        try:
            pickled = pickle.dumps(kwargs, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise Refusal("kwargs", f"cannot be sent to a worker: {described(error)}", "plain data") from error
        memory = int(self.limits.memory_gb * 2**30)
        told = {"timeout": self.limits.timeout, "scope": self.limits.scope}
        plugin = Plugin(path, file, pickled, memory, told, os.getcwd())
        self._process = os.getpid()
        self._scheduler = Scheduler(name, plugin, self.limits, self.limits.workers or default_workers())
        # Also where nobody closes it: when it is collected as garbage, and at the end of the interpreter.
        self._close = weakref.finalize(self, _close, self._scheduler, self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start one worker now, unless there is one, and wait until it is ready.

        Raises:
            RewardError: the plugin cannot be imported, or its `_start` raises; the message says why and where.
        """
        self._check_process()
        started: Future[None] = Future()
        started.set_running_or_notify_cancel()
        self._scheduler.submit(started)
        started.result()

    def score(
        self, completions: Sequence[Any], columns: Mapping[str, Any], groups: Sequence[Hashable] | None = None
    ) -> Scores:
        """Score completions; may be called from several threads at a time.

        Args:
            completions: strings or lists of chat messages.
            columns: further arguments of the function, by name. A list or tuple with one value a completion is cut as
                the completions are; anything else is passed whole. `log_extra` and `log_metric` are the workers' own.
                `trainer_state` arrives as a namespace of its fields.
            groups: one key a completion; for scope `group`, equal keys are scored in one call.

        Raises:
            RewardError: no worker could be started: the plugin cannot be imported, or its `_start` raises.
            ValueError: scope `group` without one group a completion.
            RuntimeError: the pool is closed, or was made in another process.
        """
        batch = self._submitted(completions, columns, groups)
        try:
            return batch.future.result()
        except BaseException:
            self._scheduler.cancel(batch)
            raise

    def submit(
        self, completions: Sequence[Any], columns: Mapping[str, Any], groups: Sequence[Hashable] | None = None
    ) -> Future[Scores]:
        """The same without waiting; what `score` raises of its own, the future raises."""
        return self._submitted(completions, columns, groups).future

    def listen(self, beat: Callable[[], None]) -> None:
        """Has `beat` called, in another thread, whenever a worker has answered or its samples are to be tried again."""
        self._scheduler.beat = beat

    def close(self) -> None:
        """End all workers and everything they started; calls that are not answered raise RuntimeError."""
        self._close()

    def _submitted(self, completions, columns, groups) -> Batch:
        self._check_process()
        batch = Batch(completions, columns, units(len(completions), self.limits.scope, groups))
        if batch.finished:
            batch.finish()
        else:
            self._scheduler.submit(batch)
        return batch

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(f"the pool of reward {self.name!r} belongs to the process that made it")


def default_workers() -> int:
    """The cores that this process may use, divided by the ranks on this machine; at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _close(scheduler: Scheduler, process: int) -> None:
    # A forked child has a copy of the pool, but not its thread, and the workers are not its own.
    if os.getpid() == process:
        scheduler.close()
