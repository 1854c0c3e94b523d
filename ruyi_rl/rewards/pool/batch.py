"""One call of the pool: its completions cut into chunks, and the answers put together in their order."""

from __future__ import annotations

import itertools
import pickle
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

from ruyi_rl.rewards.pool.replies import Answer
from ruyi_rl.rewards.pool.scores import RewardFailure, Scores
from ruyi_rl.rewards.pool.values import Failed, described

PARTS = 16
"""Parts of a chunk that has failed. Not two: a part that hangs again costs a deadline and a worker, one that does not
costs next to nothing."""
GIVEN = ("log_extra", "log_metric")
"""Arguments that the worker makes itself."""

_numbers = itertools.count()

Unit = tuple[int, ...]
"""Indices of completions that one call must hold together."""


@dataclass(frozen=True)
class Chunk:
    """What one call of a worker gets."""

    batch: Batch
    units: tuple[Unit, ...]
    retried: bool = False
    """Whether it is a single unit that has already ended a worker, which was not a fresh one."""

    @property
    def indices(self) -> list[int]:
        return [index for unit in self.units for index in unit]

    def parts(self) -> list[Chunk]:
        """The same units in smaller chunks."""
        size = -(-len(self.units) // PARTS)
        starts = range(0, len(self.units), size)
        return [Chunk(self.batch, self.units[start : start + size]) for start in starts]


class Batch:
    """One call of the pool.

    Args:
        completions: one a sample.
        columns: name -> a list of one value a completion, which is cut as they are, or anything else, passed whole.
        units: indices that must stay together; each completion in one of them.
    """

    def __init__(self, completions: Sequence[Any], columns: Mapping[str, Any], units: Sequence[Unit]):
        self.number = next(_numbers)
        self.future: Future[Scores] = Future()
        self.future.set_running_or_notify_cancel()
        self.cancelled = False
        self.whole: dict[str, bytes] = {}
        self.untouched = len(completions)
        """Completions that no worker has had yet."""
        self._columns: dict[str, list[Any]] = {}
        self._units = deque(units)
        self._parts: deque[Chunk] = deque()
        self._open = len(completions)
        self._scores = Scores([None] * len(completions))
        self._metrics: list[tuple[int, dict[str, list[float]]]] = []
        self._started = time.monotonic()
        for name, values in {**columns, "completions": list(completions)}.items():
            if name in GIVEN:
                continue
            if isinstance(values, (list, tuple)) and len(values) == len(completions):
                # A copy of the list: the caller may go on with its own.
                self._columns[name] = list(values)
                continue
            try:
                self.whole[name] = pickle.dumps(_portable(name, values), pickle.HIGHEST_PROTOCOL)
            except Exception as error:  # noqa: BLE001 - whatever the value's own code raises
                failed = Failed("unpicklable", f"column {name!r} cannot be pickled: {described(error)}")
                self._fail([index for unit in self._units for index in unit], failed)
                self._units.clear()
                self.untouched = 0
                return

    @property
    def waiting(self) -> int:
        """Completions that no worker has now."""
        return self.untouched + sum(len(part.indices) for part in self._parts)

    @property
    def finished(self) -> bool:
        return self._open == 0

    def take(self, size: int) -> Chunk | None:
        """The next chunk, of about `size` completions; what is to be tried again comes first."""
        if self._parts:
            return self._parts.popleft()
        units: list[Unit] = []
        while self._units and (not units or size > 0):
            units.append(self._units.popleft())
            size -= len(units[-1])
            self.untouched -= len(units[-1])
        return Chunk(self, tuple(units)) if units else None

    def message(self, chunk: Chunk, with_whole: bool) -> bytes:
        """A chunk as it is sent to a worker.

        Raises:
            Failed: `unpicklable`, with the column's name.
        """
        indices, columns = chunk.indices, {}
        for name, values in self._columns.items():
            try:
                columns[name] = pickle.dumps([values[index] for index in indices], pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                raise Failed("unpicklable", f"column {name!r} cannot be pickled: {described(error)}") from error
        request = {"batch": self.number, "count": len(indices), "columns": columns}
        return pickle.dumps(request | ({"whole": self.whole} if with_whole else {}), pickle.HIGHEST_PROTOCOL)

    def answered(self, chunk: Chunk, answer: Answer) -> None:
        """Take in what a worker gave for a chunk."""
        indices, scores = chunk.indices, self._scores
        for index, reward in zip(indices, answer.rewards, strict=True):
            scores.rewards[index] = reward
        scores.failures += [replace(failure, index=indices[failure.index]) for failure in answer.failures]
        for column, values in answer.extra.items():
            logged = scores.extra.setdefault(column, [None] * len(scores.rewards))
            for index, value in zip(indices, values, strict=True):
                logged[index] = value
        self._metrics.append((indices[0], answer.metrics))
        self._open -= len(indices)

    def failed(self, chunk: Chunk, failed: Failed, again: bool = False) -> None:
        """A chunk has failed as a whole: it is tried again in parts, or given up where it has none.

        Args:
            again: try a single unit once more.
        """
        if len(chunk.units) > 1:
            self._parts.extendleft(reversed(chunk.parts()))
        elif again:
            self._parts.appendleft(Chunk(self, chunk.units, retried=True))
        else:
            self._fail(chunk.indices, failed)

    def finish(self) -> None:
        """Give the scores to who waits for them."""
        scores = self._scores
        scores.failures.sort(key=lambda failure: failure.index)
        for _, metrics in sorted(self._metrics, key=lambda found: found[0]):
            for name, values in metrics.items():
                scores.metrics.setdefault(name, []).extend(values)
        scores.seconds = time.monotonic() - self._started
        if not self.future.done():
            self.future.set_result(scores)

    def _fail(self, indices: Sequence[int], failed: Failed) -> None:
        self._scores.failures += [RewardFailure(index, failed.kind, failed.message, failed.place) for index in indices]
        self._open -= len(indices)


def units(count: int, scope: str, groups: Sequence[Hashable] | None) -> list[Unit]:
    """Which completions one call must hold together.

    Args:
        count: completions.
        scope: `sample`, `group` or `batch`.
        groups: one key a completion, for `group`; equal keys belong together wherever they stand.

    Raises:
        ValueError: no groups, or another number of them.
    """
    if scope == "sample":
        return [(index,) for index in range(count)]
    if scope == "batch":
        return [tuple(range(count))] if count else []
    if groups is None or len(groups) != count:
        given = "none" if groups is None else len(groups)
        raise ValueError(f"scope=group needs one group a completion: {given} for {count}")
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return [tuple(indices) for indices in members.values()]


def _portable(name: str, value: Any) -> Any:
    """`trainer_state` without its class, which would make every worker import the trainer's library and torch."""
    return SimpleNamespace(**vars(value)) if name == "trainer_state" and is_dataclass(value) else value
