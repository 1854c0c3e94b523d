"""What a training's evaluations say: each exit's best so far, and whether one has fallen too far below it.

Pure decisions; importing this module imports no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ruyi_rl.report.history import rate


@dataclass(frozen=True)
class Rates:
    """One exit's held-out rates after an optimiser step."""

    step: int
    """0: before the training."""
    pass_rate: float
    """NaN where nothing could be judged."""
    standard_error: float
    """Of `pass_rate`, over problems."""
    greedy: float

    @classmethod
    def of(cls, step: int, score: Mapping[str, Any]) -> Rates:
        """From an `ExitScore` as a dict."""
        return cls(step, score["pass_rate"], score["standard_error"], score["greedy"])

    def __str__(self) -> str:
        return f"{rate(self.pass_rate, self.standard_error)} at step {self.step}"


@dataclass(frozen=True)
class Best:
    """The best evaluations so far. Of equal ones the earliest is the best."""

    exits: Mapping[str, Rates] = field(default_factory=dict)
    """Exit -> its rates where its own pass rate was highest."""
    mean: Mapping[str, Rates] = field(default_factory=dict)
    """Exit -> its rates where the mean pass rate over all exits was highest; one step for all."""

    def after(self, now: Mapping[str, Rates]) -> Best:
        """The best once these rates, of every exit at one step, have come."""
        own = {name: rates for name, rates in now.items() if _better(rates.pass_rate, self.exits.get(name))}
        higher = _higher(mean_rate(now), mean_rate(self.mean))
        return Best({**self.exits, **own}, dict(now) if higher else self.mean)

    def kept(self, keep_best: str) -> Mapping[str, Rates]:
        """Exit -> the rates by which its family is kept, for `keep_best` of `exit` or `mean`."""
        return self.exits if keep_best == "exit" else self.mean

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Best:
        """What `as_json` gave."""
        return cls(*({name: Rates(**rates) for name, rates in stored[key].items()} for key in ("exits", "mean")))


@dataclass(frozen=True)
class Fall:
    """An exit that has fallen below its best by more than is allowed."""

    exit: str
    best: Rates
    now: Rates

    @property
    def drop(self) -> float:
        """Of the pass rate."""
        return self.best.pass_rate - self.now.pass_rate

    @property
    def standard_error(self) -> float:
        """Of `drop`, as if both measurements were independent; those of one run share their problems, so less."""
        return math.hypot(self.best.standard_error, self.now.standard_error)


def falls(best: Best, now: Mapping[str, Rates], max_drop: float | None) -> list[Fall]:
    """The exits that are more than `max_drop` below their best, in their order; None allows every fall."""
    if max_drop is None:
        return []
    found = [Fall(name, best.exits[name], rates) for name, rates in now.items() if name in best.exits]
    return [fall for fall in found if fall.drop > max_drop]


def mean_rate(rates: Mapping[str, Rates]) -> float:
    """Mean pass rate over exits; NaN where one of them has none, or there are no exits."""
    return statistics.fmean(each.pass_rate for each in rates.values()) if rates else math.nan


def stop_message(fallen: list[Fall], max_drop: float, kept: Mapping[str, Path | None]) -> str:
    """Why the run stops, where the best families are, and what to change, since the same command would stop again.

    Args:
        fallen: at least one.
        kept: exit -> folder of its family at its best; None where it was not kept.
    """
    lines = []
    for fall in fallen:
        place = f"kept in {kept[fall.exit]}" if kept.get(fall.exit) else "not kept; keep_best=exit keeps it"
        lines.append(
            f"{fall.exit}: held-out pass rate {fall.now}, {100 * fall.drop:.1f} points below its best of {fall.best} "
            f"(that family: {place})."
        )
    lines.append(f"evaluation.max_drop={max_drop:g} stops the run there.")
    noise = max(fall.standard_error for fall in fallen)
    if 2 * noise > max_drop:
        lines.append(
            f"The difference of two measurements has a standard error of up to {100 * noise:.1f} points: more "
            "evaluation.problems or samples tell a fall from noise."
        )
    start = next((folder for folder in kept.values() if folder is not None), None)
    lines.append(
        "The same command stops again at once. evaluation.max_drop=null, or a higher one, goes on from here; another "
        "name with a lower learning_rate starts over"
        + (f", from the best family with start_from={start}." if start else ".")
    )
    return " ".join(lines)


def _better(value: float, than: Rates | None) -> bool:
    return _higher(value, math.nan if than is None else than.pass_rate)


def _higher(value: float, than: float) -> bool:
    """Whether `value` is a number, and higher than another one, if that is one."""
    return not math.isnan(value) and not value <= than
