"""One batch of completions on its way through the functions of a group. Importing this module imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ruyi_rl.rewards.check import gate_order
from ruyi_rl.rewards.options import RewardFunctionOptions
from ruyi_rl.rewards.pool import RewardPool, Scores
from ruyi_rl.rewards.scored import Failure, Scored, State


@dataclass
class _Answer:
    """What one function gave for some rows."""

    rewards: list[float | None]
    states: list[State]
    failures: list[Failure] = field(default_factory=list)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


class Scoring:
    """One batch on its way through the functions; made by `RewardScorer.begin`.

    Functions of `scope` sample and group are asked as soon as their rows are there, a gated one as soon as its gate has
    decided; those of scope batch, and those that a gate of that scope decides on, when all rows are there.
    """

    def __init__(
        self,
        functions: Mapping[str, RewardFunctionOptions],
        pools: Mapping[str, RewardPool],
        pass_at: float,
        columns: Mapping[str, Sequence[Any]],
        shared: Mapping[str, Any],
        groups: Sequence[Hashable],
    ):
        self._functions, self._pools, self._pass_at = functions, pools, pass_at
        self._columns = {name: list(values) for name, values in columns.items()}
        self._shared, self._groups = shared, groups
        self._completions: list[Any] = [None] * len(groups)
        self._added: set[int] = set()
        self._late: set[str] = set()
        for name in gate_order(functions):
            function = functions[name]
            if function.scope == "batch" or function.gate in self._late:
                self._late.add(name)
        self._parts: list[tuple[list[int], dict[str, Future[_Answer]]]] = []
        self._asked: list[Future[Scores]] = []
        self._cancelled = False
        self.spans: list[tuple[float, float]] = []
        """(start, end) on the monotonic clock of every call that has ended."""

    def add(self, rows: Sequence[int], completions: Sequence[Any], **columns: Sequence[Any]) -> None:
        """Takes completions, and columns that come with them, and has them scored in the background.

        Args:
            rows: their places in the batch, each taken once. Under `scope=group` whole groups.

        Raises:
            ValueError: a row that was taken already.
        """
        rows = list(rows)
        if repeated := self._added.intersection(rows):
            raise ValueError(f"rows {sorted(repeated)} were added twice")
        self._added.update(rows)
        for name, values in columns.items():
            self._columns.setdefault(name, [None] * len(self._groups))
            for row, value in zip(rows, values, strict=True):
                self._columns[name][row] = value
        for row, completion in zip(rows, completions, strict=True):
            self._completions[row] = completion
        futures: dict[str, Future[_Answer]] = {}
        for name in gate_order(self._functions):
            if name not in self._late:
                futures[name] = self._begin(name, rows, futures)
        self._parts.append((rows, futures))

    @property
    def missing(self) -> list[int]:
        """Rows that were not added yet."""
        return [row for row in range(len(self._groups)) if row not in self._added]

    def differing(self, completions: Sequence[Any]) -> list[int]:
        """Rows that were added with another completion than these (rows,)."""
        return [row for row, own in enumerate(self._completions) if own != completions[row]]

    def result(self) -> Scored:
        """Waits for all functions.

        Raises:
            ValueError: rows are missing.
            RewardError: a function cannot be asked at all.
            CancelledError: after `cancel`.
        """
        if missing := self.missing:
            raise ValueError(f"rows {missing[:8]} … have no completion yet ({len(missing)} of {len(self._groups)})")
        rows = list(range(len(self._groups)))
        whole: dict[str, Future[_Answer]] = {}
        # Those that wait for nothing but the rows go first: the others' results are waited for.
        order = gate_order(self._functions)
        order.sort(key=lambda name: name not in self._late or self._functions[name].gate is not None)
        for name in order:
            if name in self._late:
                whole[name] = self._begin(name, rows, whole)
            else:
                whole[name] = _done(_scattered([(part, futures[name].result()) for part, futures in self._parts], rows))
        return _scored({name: whole[name].result() for name in self._functions}, len(rows))

    def cancel(self) -> None:
        """Gives the batch up: nothing more is begun, and what waits for a worker is taken back."""
        self._cancelled = True
        for future in list(self._asked):
            future.cancel()

    def overlapped(self, moment: float) -> float:
        """Seconds before `moment` in which at least one call was under way."""
        total, covered = 0.0, float("-inf")
        for start, end in sorted(self.spans):
            total += max(0.0, min(end, moment) - max(start, covered))
            covered = max(covered, end)
        return total

    def _begin(self, name: str, rows: list[int], settled: Mapping[str, Future[_Answer]]) -> Future[_Answer]:
        gate = self._functions[name].gate
        if gate is None:
            # An error belongs to the result: where completions arrive, one rank alone must not raise.
            everyone = partial(self._ask, name, rows, range(len(rows)))
            return _then(_done([State.SCORED] * len(rows)), everyone)
        return _then(settled[gate], partial(self._behind, name, rows))

    def _behind(self, name: str, rows: list[int], gate: _Answer) -> Future[_Answer]:
        """Asks a gated function for the rows that its gate lets through."""
        on = self._functions[name].gate_on
        states = [behind_gate(state, reward, on, self._pass_at) for state, reward in zip(gate.states, gate.rewards)]
        return self._ask(name, rows, [at for at, state in enumerate(states) if state is State.SCORED], states)

    def _ask(self, name: str, rows: list[int], positions: Sequence[int], states: list[State]) -> Future[_Answer]:
        """Asks a function for the rows at `positions`; the others keep their state."""
        unasked = _Answer([None] * len(rows), list(states))
        if not positions:
            return _done(unasked)
        if self._cancelled:
            raise CancelledError
        asked = [rows[at] for at in positions]
        columns = {key: [values[row] for row in asked] for key, values in self._columns.items()}
        started = time.monotonic()
        future = self._pools[name].submit(
            [self._completions[row] for row in asked],
            {**columns, **self._shared},
            [self._groups[row] for row in asked],
        )
        future.add_done_callback(lambda _: self.spans.append((started, time.monotonic())))
        self._asked.append(future)

        def read(scores: Scores) -> Future[_Answer]:
            everywhere = range(len(rows))
            return _done(_scattered([(everywhere, unasked), (positions, _answer(name, scores))], everywhere))

        return _then(future, read)


def behind_gate(state: State, reward: float | None, gate_on: str, pass_at: float) -> State:
    """What a gate makes of a gated function: SCORED means that it is to be asked.

    Args:
        state, reward: of the gate.
        gate_on: `passed` or `failed`.
    """
    if state in (State.FAILED, State.UNDECIDED):
        return State.UNDECIDED
    if state is State.ABSTAINED:
        # Without an opinion it has not passed; but neither has it said that the answer is worth 0.
        return State.SCORED if gate_on == "failed" else State.ABSTAINED
    passed = state is State.SCORED and reward >= pass_at
    return State.SCORED if passed == (gate_on == "passed") else State.CLOSED


def _answer(name: str, scores: Scores) -> _Answer:
    failures = [
        Failure(failure.index, name, failure.kind, failure.message, failure.place) for failure in scores.failures
    ]
    failed = {failure.index for failure in failures}
    states = [
        State.FAILED if row in failed else State.ABSTAINED if reward is None else State.SCORED
        for row, reward in enumerate(scores.rewards)
    ]
    rewards = [reward if state is State.SCORED else None for reward, state in zip(scores.rewards, states)]
    return _Answer(rewards, states, failures, scores.extra, scores.metrics, scores.seconds)


def _scattered(pieces: Sequence[tuple[Sequence[int], _Answer]], rows: Sequence[int]) -> _Answer:
    """Answers for parts of a batch as one for the whole; where two speak of a row the later one counts."""
    # By place and not by arrival, so that what is logged does not depend on which came first.
    pieces = sorted(pieces, key=lambda piece: min(piece[0], default=0))
    whole = _Answer([None] * len(rows), [State.ABSTAINED] * len(rows))
    for places, answer in pieces:
        for at, place in enumerate(places):
            whole.rewards[place], whole.states[place] = answer.rewards[at], answer.states[at]
        for failure in answer.failures:
            place = places[failure.index]
            whole.failures.append(Failure(place, failure.function, failure.kind, failure.message, failure.place))
        for column, values in answer.extra.items():
            logged = whole.extra.setdefault(column, [None] * len(rows))
            for place, value in zip(places, values, strict=True):
                logged[place] = value
        for metric, values in answer.metrics.items():
            whole.metrics.setdefault(metric, []).extend(values)
        whole.seconds += answer.seconds
    whole.failures.sort(key=lambda failure: failure.index)
    return whole


def _scored(answers: Mapping[str, _Answer], rows: int) -> Scored:
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}
    for answer in answers.values():
        for column, values in answer.extra.items():
            before = extra.get(column, [None] * rows)
            extra[column] = [old if new is None else new for old, new in zip(before, values, strict=True)]
        for metric, values in answer.metrics.items():
            metrics.setdefault(metric, []).extend(values)
    return Scored(
        names=tuple(answers),
        rewards=[list(row) for row in zip(*(answer.rewards for answer in answers.values()))],
        states=[list(row) for row in zip(*(answer.states for answer in answers.values()))],
        failures=[failure for answer in answers.values() for failure in answer.failures],
        extra=extra,
        metrics=metrics,
        seconds={name: answer.seconds for name, answer in answers.items()},
    )


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _then(first: Future[Any], step: Callable[[Any], Future[Any]]) -> Future[Any]:
    """The future of what `step` begins with the first one's result; an error of either is its error."""
    second: Future[Any] = Future()

    def settle(following: Future[Any]) -> None:
        error = CancelledError() if following.cancelled() else following.exception()
        if error is not None:
            second.set_exception(error)
        else:
            second.set_result(following.result())

    def begin(done: Future[Any]) -> None:
        try:
            following = step(done.result())
        except BaseException as error:  # noqa: BLE001  whoever waits for the second future must get it
            second.set_exception(error)
        else:
            following.add_done_callback(settle)

    first.add_done_callback(begin)
    return second
