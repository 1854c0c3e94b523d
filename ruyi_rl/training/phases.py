"""Where the wall time of a training goes: seconds per phase, in the metrics and in the summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

PHASES = ("rollout", "reward", "old_log_probs", "reference", "update", "sync", "evaluation", "save", "other")
"""Generation; rewards waited for after it; the policy's and the reference's log-probs of what was generated; forward,
backward and optimiser step; weights to the rollout back end; held-out rates in between (`evaluation.every`), with all
that these take; checkpoints; the rest, such as data and logs."""
_PREFIX = "time/"


class PhaseClock:
    """Adds up wall seconds per phase. Each second belongs to exactly one: a phase inside another pauses the outer one.

    So what `take` returns sums to the time since the `take` before, or since the clock was made.

    Args:
        now: seconds of a clock that never goes back.
        settle: called at every border before the clock is read, so that a phase waits for what it has put on a device's
            queue, and the next does not; None: nothing is. A step has few borders, none between its micro-batches, and
            its log waits for the loss and the gradients' norm anyway.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, settle: Callable[[], None] | None = None):
        self._now, self._settle = now, settle
        self._open = ["other"]
        self._seconds: dict[str, float] = {}
        self._since = now()
        self.listener: Callable[[str], None] = lambda name: None
        """Told the phase that begins at a border."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Context whose time belongs to `name`.

        Raises:
            ValueError: no such phase.
        """
        _check(name)
        self._border()
        self._open.append(name)
        self.listener(name)
        try:
            yield
        except BaseException:
            # What has failed may have left a queue that never empties.
            self._border(settled=True)
            raise
        else:
            self._border()
        finally:
            self._open.pop()
            self.listener(self._open[-1])

    def turn_to(self, name: str) -> None:
        """From now on, time outside all contexts belongs to `name`; at first it is `other`'s.

        Raises:
            ValueError: no such phase.
        """
        _check(name)
        self._border()
        self._open[0] = name
        self.listener(self._open[-1])

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call, 0 for one that was seen only before it."""
        self._border()
        seconds = self._seconds
        self._seconds = dict.fromkeys(seconds, 0.0)
        return seconds

    def _border(self, settled: bool = False) -> None:
        if self._settle is not None and not settled:
            self._settle()
        now, phase = self._now(), self._open[-1]
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now


def in_phase(name: str) -> Callable:
    """Decorates a method of an object that has a `PhaseClock` as `phases`: its time belongs to `name`.

    Raises:
        ValueError: no such phase.
    """
    _check(name)

    def decorated(method: Callable) -> Callable:
        @wraps(method)
        def timed(self, *args, **kwargs):
            with self.phases(name):
                return method(self, *args, **kwargs)

        return timed

    return decorated


def phase_metrics(seconds: Mapping[str, float]) -> dict[str, float]:
    """What `PhaseClock.take` returned, as metrics `time/<phase>`."""
    return {f"{_PREFIX}{name}": value for name, value in seconds.items()}


def phase_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Phase -> `seconds` over all rows of `metrics.jsonl` and `share` of their sum; without what took no time."""
    totals = {name: sum(row.get(f"{_PREFIX}{name}") or 0.0 for row in rows) for name in PHASES}
    whole = sum(totals.values())
    return {name: {"seconds": value, "share": value / whole} for name, value in totals.items() if value > 0}


def _check(name: str) -> None:
    if name not in PHASES:
        raise ValueError(f"no phase {name!r}; there are {', '.join(PHASES)}")
