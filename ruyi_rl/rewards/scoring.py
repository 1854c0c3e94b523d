"""All functions of a `reward` group on a batch of completions. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from ruyi_rl import ranks
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.batch import Scoring
from ruyi_rl.rewards.check import gate_order
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rewards.pool import PoolLimits, RewardPool
from ruyi_rl.rewards.results import RewardError
from ruyi_rl.rewards.scored import Scored

MakePool = Callable[[str, str, Mapping[str, Any], PoolLimits], RewardPool]


class RewardScorer:
    """The functions of a `reward` group, each in its pool of worker processes; a context manager.

    Args:
        options: a group that `check_reward` has passed.
        make_pool: makes the pool of a function from its name, path, keyword arguments and limits.
        beat: called with every answer of a worker, in whatever thread.
    """

    def __init__(
        self, options: RewardOptions, make_pool: MakePool = RewardPool, beat: Callable[[], None] | None = None
    ):
        self.options = options
        self.names = tuple(options.functions)
        self._pools: dict[str, RewardPool] = {}
        with ExitStack() as stack:
            for name, function in options.functions.items():
                limits = PoolLimits(function.timeout, function.workers, function.memory_gb, function.scope)
                pool = make_pool(name, function.path, function.kwargs, limits)
                stack.callback(pool.close)
                if beat is not None:
                    pool.listen(beat)
                self._pools[name] = pool
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers; may be called twice."""
        self._open.close()

    def start(self) -> None:
        """Starts a worker of each function, so that what cannot run is found now.

        Raises:
            Refusal: a plugin that cannot be imported, or whose `_start` raises.
        """
        for name, pool in self._pools.items():
            try:
                pool.start()
            except RewardError as error:
                raise Refusal(f"reward.functions.{name}", str(error), "a plugin that starts on this machine") from error

    @property
    def functions(self) -> list[ScoredFunction]:
        """Each function by itself, as TRL calls one."""
        return [ScoredFunction(name, pool) for name, pool in self._pools.items()]

    @property
    def judges(self) -> tuple[str, ...]:
        """The functions that decide whether a problem is solved: the judge, or all where none is named.

        A group of one function is judged by it. Of several without a judge their sum decides, as in training.
        """
        if self.options.judge is not None:
            return (self.options.judge,)
        return self.names

    def score(
        self,
        completions: Sequence[Any],
        columns: Mapping[str, Any],
        groups: Sequence[Hashable] | None = None,
        only: Collection[str] | None = None,
    ) -> Scored:
        """Scores a batch and waits for it.

        Args:
            completions: (rows,) strings or chats.
            columns: what the functions get besides; a list with one value a completion is cut with them.
            groups: (rows,) label of what belongs together under `scope=group`; None: all are one group.
            only: functions to ask; those that their gates read are asked too. None: all.

        Raises:
            RewardError: a function cannot be asked at all (its workers do not start).
        """
        rows = len(completions)
        per_row = {
            key: value for key, value in columns.items() if isinstance(value, (list, tuple)) and len(value) == rows
        }
        shared = {key: value for key, value in columns.items() if key not in per_row}
        scoring = self.begin(per_row, shared, groups if groups is not None else [0] * rows, only)
        scoring.add(range(rows), completions)
        return scoring.result()

    def begin(
        self,
        columns: Mapping[str, Sequence[Any]],
        shared: Mapping[str, Any],
        groups: Sequence[Hashable],
        only: Collection[str] | None = None,
    ) -> Scoring:
        """A batch whose completions come in parts; the arguments are as in `score`.

        Args:
            columns: (rows,) each, known before the completions are.
            shared: what every call gets as it is.
        """
        names = set(self.names if only is None else only)
        for name in gate_order(self.options.functions)[::-1]:
            gate = self.options.functions[name].gate
            if name in names and gate is not None:
                names.add(gate)
        functions = {name: self.options.functions[name] for name in self.names if name in names}
        return Scoring(functions, self._pools, self.options.pass_at, columns, shared, groups)


def check_start(options: RewardOptions) -> None:
    """Starts every function once on rank 0, long before it is needed.

    Raises:
        Refusal: on every rank, see `RewardScorer.start`.
    """

    def start() -> None:
        with RewardScorer(options) as scorer:
            scorer.start()

    ranks.on_rank_zero(start)


class ScoredFunction:
    """One function of TRL's signature, isolated; what it logs is left."""

    def __init__(self, name: str, pool: RewardPool):
        self.__name__, self._pool = name, pool

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        return self._pool.score(completions, columns).rewards
