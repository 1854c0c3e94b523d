"""What came of a batch of completions. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class State(IntEnum):
    """What came of one function on one completion."""

    SCORED = 0
    """It gave a finite number."""
    ABSTAINED = 1
    """It gave None, or its gate did: no opinion."""
    FAILED = 2
    """It raised, hung, gave NaN …"""
    CLOSED = 3
    """Its gate kept it from being asked: it counts as 0."""
    UNDECIDED = 4
    """Not asked, because its gate failed."""


@dataclass(frozen=True)
class Failure:
    """One function failed on one completion."""

    index: int
    """Of the completion in the batch."""
    function: str
    kind: str
    """`exception`, `timeout`, `crash`, `memory`, `nan`, `infinite`, `wrong_length`, `wrong_type`, `unpicklable`."""
    message: str
    place: str
    """`file.py:12`, or empty."""


@dataclass(frozen=True)
class Scored:
    """What all functions gave for a batch; rows are completions, columns the functions in the order of `names`."""

    names: tuple[str, ...]
    rewards: list[list[float | None]]
    """(rows, functions): a number where the state is SCORED, else None."""
    states: list[list[State]]
    """(rows, functions)."""
    failures: list[Failure]
    """By function, then by row."""
    extra: dict[str, list[Any]]
    """Column -> (rows,) what the functions logged, None where nothing."""
    metrics: dict[str, list[float]]
    """Name -> what the functions logged."""
    seconds: dict[str, float]
    """Function -> seconds of its workers."""
