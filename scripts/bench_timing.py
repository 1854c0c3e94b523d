"""Timing contestants against each other, in turn, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def in_turn(
    contestants: Mapping[str, Callable[[], int]], rounds: int, baseline: str
) -> dict[str, tuple[list[float], list[float]]]:
    """Units per second and ratio to the baseline, round by round; who begins changes with the round.

    Args:
        contestants: name -> what to run, returning the units (tokens, answers, programs) it made.
        baseline: one of the names.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            units = contestants[name]()
            speeds[name].append(units / (time.perf_counter() - start))
    return {name: (own, [a / b for a, b in zip(own, speeds[baseline])]) for name, own in speeds.items()}
