"""Dynamic exit, offline: what routing between exits could give, told from answers that every exit has given already.

Arrays are (problems, exits), exits in the order in which they are tried, the cheapest first: `right` bool, `cost` TFLOP
of the greedy answer, `confidence` the mean log-probability of its tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POLICIES = 4096
"""Most thresholds, over all exits, that are tried."""
LEVELS = 64
"""Most thresholds of one exit."""


@dataclass(frozen=True)
class Point:
    """What a way of answering reaches."""

    accuracy: float
    """Share of the problems."""
    cost: float
    """Mean TFLOP a problem, over all exits that were tried."""


@dataclass(frozen=True)
class Policy:
    """A confidence rule: an exit's answer is accepted where its confidence is at least its threshold."""

    thresholds: tuple[float, ...]
    """One for every exit but the last, whose answer is always accepted."""
    chosen_on: Point
    """On the problems that the thresholds were chosen on."""
    found: Point
    """On the others."""
    shares: tuple[float, ...]
    """Of these others: the share that each exit answers."""


def single_exits(right: np.ndarray, cost: np.ndarray) -> list[Point]:
    """Each exit alone."""
    return [Point(float(a), float(c)) for a, c in zip(right.mean(axis=0), cost.mean(axis=0), strict=True)]


def cheapest_right(right: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(problems,) the exit whose right answer costs least; -1 where none is right."""
    cheapest = np.where(right, cost, np.inf).argmin(axis=1)
    return np.where(right.any(axis=1), cheapest, -1)


def oracle_frontier(right: np.ndarray, cost: np.ndarray) -> list[Point]:
    """The best accuracy for each cost, where each problem is given to one exit by someone who knows the verdicts.

    It begins with every problem at the exit that is cheapest for it, right or not, and pays for one more right answer
    at a time, the cheapest first. The last point is the oracle: every problem that any exit solves is solved, and the
    others cost as little as they can.
    """
    problems = np.arange(len(right))
    base = cost.argmin(axis=1)
    needed = cheapest_right(right, cost)
    solved = right[problems, base]
    bought = (needed >= 0) & ~solved
    prices = np.sort((cost[problems, needed] - cost[problems, base])[bought])
    accuracies = (solved.sum() + np.arange(len(prices) + 1)) / len(right)
    costs = (cost[problems, base].sum() + np.concatenate(([0.0], prices.cumsum()))) / len(right)
    return [Point(float(a), float(c)) for a, c in zip(accuracies, costs, strict=True)]


def answering_exits(confidence: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """(problems,) the exit that answers: the first whose confidence is at least its threshold, else the last."""
    accepted = np.column_stack([confidence[:, :-1] >= np.asarray(thresholds), np.ones(len(confidence), dtype=bool)])
    return accepted.argmax(axis=1)


def routed(right: np.ndarray, cost: np.ndarray, confidence: np.ndarray, thresholds: Sequence[float]) -> Point:
    """The rule's accuracy, and its cost: each exit that was tried has given a whole answer, which is paid for. One
    whose answer the rule never accepts is not tried."""
    exits, problems = answering_exits(confidence, thresholds), np.arange(len(right))
    paid = np.where(np.isposinf([*thresholds, 0.0]), 0.0, cost).cumsum(axis=1)
    return Point(float(right[problems, exits].mean()), float(paid[problems, exits].mean()))


def candidate_thresholds(confidence: np.ndarray) -> list[list[float]]:
    """For every exit but the last: accept all, nothing, or above quantiles of its confidence."""
    deciding = confidence.shape[1] - 1
    levels = max(2, min(LEVELS, int(POLICIES ** (1 / max(1, deciding)) + 1e-9)))
    inner = np.quantile(confidence[:, :-1], np.arange(1, levels - 1) / (levels - 1), axis=0) if levels > 2 else None
    return [
        sorted({-np.inf, np.inf, *([] if inner is None else map(float, inner[:, exit]))}) for exit in range(deciding)
    ]


def pareto(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other is as cheap as and better than, cheapest first."""
    order = sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].accuracy))
    kept: list[int] = []
    for index in order:
        if not kept or points[index].accuracy > points[kept[-1]].accuracy:
            kept.append(index)
    return kept


def confidence_policies(
    right: np.ndarray, cost: np.ndarray, confidence: np.ndarray, chosen_on: np.ndarray
) -> list[Policy]:
    """The rules that are Pareto-optimal on one part of the problems, with what they reach on the rest; cheapest first.

    Args:
        chosen_on: (problems,) bool, the part that thresholds are chosen on; neither it nor the rest is empty.
    """
    here, there = chosen_on, ~chosen_on
    rules = list(itertools.product(*candidate_thresholds(confidence[here])))
    points = [routed(right[here], cost[here], confidence[here], rule) for rule in rules]
    return [
        Policy(
            rules[index],
            points[index],
            routed(right[there], cost[there], confidence[there], rules[index]),
            tuple(
                np.bincount(answering_exits(confidence[there], rules[index]), minlength=right.shape[1])
                / max(1, there.sum())
            ),
        )
        for index in pareto(points)
    ]


def best_policy(policies: Sequence[Policy], least: float) -> Policy:
    """The cheapest rule that was as accurate as `least` where it was chosen; else the most accurate one."""
    return next((rule for rule in policies if rule.chosen_on.accuracy >= least), policies[-1])


def seeded_half(problems: int, seed: int) -> np.ndarray:
    """(problems,) bool: half of them, rounded down, drawn by the seed."""
    chosen = np.zeros(problems, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(problems)[: problems // 2]] = True
    return chosen
