"""Timing contestants against each other, in turn, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


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


def keep_memory() -> None:
    """Lets glibc keep what this process has freed, for all contestants: else each tensor of more than 32 MB is made of
    new pages, and the kernel is timed instead of the contestant."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def phases_in_turn(
    contestants: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Contestant -> phase -> seconds of each round; who begins changes with the round.

    Args:
        contestants: name -> what to run, returning the seconds of each of its phases.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for phase, seconds in contestants[name]().items():
                found[name].setdefault(phase, []).append(seconds)
    return found


@dataclass(frozen=True)
class Spread:
    """Of the rounds' values."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.lowest:.3f} - {self.highest:.3f})"
