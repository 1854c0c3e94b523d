"""Routing between exits, told of the greedy answers of a benchmark: `routing.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ruyi_rl.benchmarks.bootstrap import estimate
from ruyi_rl.benchmarks.cost import teraflops
from ruyi_rl.benchmarks.verdicts import Answered
from ruyi_rl.routing import (
    Policy,
    best_policy,
    cheapest_right,
    confidence_policies,
    oracle_frontier,
    seeded_half,
    single_exits,
)

LEAST_PROBLEMS = 4
"""Fewer make no two halves."""
CURVE = 100
"""Most points of a curve."""


def routes(
    answered: Mapping[str, Sequence[Answered]], parameters: Mapping[str, int], weights: np.ndarray, seed: int
) -> dict[str, Any] | None:
    """What routing could give over the problems that every exit has a judged greedy answer to.

    Args:
        answered: exit -> its problems, all the same.
        parameters: exit -> parameters that a token passes through.
        weights: (draws, problems) of the bootstrap.
        seed: draws the half of the problems that thresholds are chosen on.

    Returns:
        `problems`; `exits`: each alone, `accuracy` and `cost` in TFLOP a problem; `cheapest_right`: exit -> problems
        that it is the cheapest right one for, and `none`; `oracle`: `accuracy` with its interval and `cost`;
        `frontier`: the oracle's points, cheapest first; `confidence`: see `_confidence`, None where log-probs are not
        known. None where there are fewer than two exits, or nothing is known of their answers or cost.
    """
    if len(answered) < 2 or any(exit not in parameters for exit in answered):
        return None
    # An expanded exit may cost more than a deeper one.
    exits = sorted(answered, key=parameters.__getitem__)
    rows = list(zip(*(answered[exit] for exit in exits), strict=True))
    kept = [
        index for index, row in enumerate(rows) if all(each.greedy and each.greedy.right is not None for each in row)
    ]
    if not kept:
        return None
    rows = [rows[index] for index in kept]
    right = np.array([[each.greedy.right for each in row] for row in rows])
    cost = np.array(
        [
            [teraflops(parameters[exit], each.prompt_tokens + each.greedy.tokens) for exit, each in zip(exits, row)]
            for row in rows
        ]
    )
    log_probs = [[each.greedy.log_prob for each in row] for row in rows]
    known = all(value is not None for row in log_probs for value in row)
    solvers, frontier = cheapest_right(right, cost), oracle_frontier(right, cost)
    solved = estimate(right.any(axis=1).astype(float), weights[:, kept])
    return {
        "problems": len(rows),
        "exits": {exit: asdict(point) for exit, point in zip(exits, single_exits(right, cost), strict=True)},
        "cheapest_right": {
            name: int((solvers == index).sum()) for name, index in zip([*exits, "none"], [*range(len(exits)), -1])
        },
        "oracle": {"accuracy": solved.as_json(), "cost": frontier[-1].cost},
        "frontier": [asdict(point) for point in thinned(frontier)],
        "confidence": _confidence(exits, right, cost, np.array(log_probs), seed)
        if known and len(rows) >= LEAST_PROBLEMS
        else None,
    }


def _confidence(
    exits: Sequence[str], right: np.ndarray, cost: np.ndarray, confidence: np.ndarray, seed: int
) -> dict[str, Any]:
    """The rule on the half that its thresholds were not chosen on.

    Returns:
        `problems`: how many thresholds were `chosen_on` and `reported_on`; `exits`: each alone on the latter; `curve`:
        the rules, cheapest first; `chosen`: of these the cheapest that was as accurate as the best single exit where it
        was chosen, with the `shares` of the problems that each exit answers; `best_exit`: that exit's name.
    """
    half = seeded_half(len(right), seed)
    policies = confidence_policies(right, cost, confidence, half)
    alone = single_exits(right[half], cost[half])
    best = max(range(len(exits)), key=lambda index: (alone[index].accuracy, -alone[index].cost))
    chosen = best_policy(policies, alone[best].accuracy)
    rest = single_exits(right[~half], cost[~half])
    return {
        "signal": "mean log-probability of the greedy answer's tokens",
        "problems": {"chosen_on": int(half.sum()), "reported_on": int((~half).sum())},
        "exits": {exit: asdict(point) for exit, point in zip(exits, rest, strict=True)},
        "best_exit": exits[best],
        "chosen": _told(exits, chosen) | {"shares": dict(zip(exits, map(float, chosen.shares), strict=True))},
        "curve": [_told(exits, policy) for policy in thinned(policies)],
    }


def _told(exits: Sequence[str], policy: Policy) -> dict[str, Any]:
    thresholds = {exit: _threshold(value) for exit, value in zip(exits, policy.thresholds)}
    return {"thresholds": thresholds, **asdict(policy.found), "chosen_on": asdict(policy.chosen_on)}


def _threshold(value: float) -> float | str:
    """Infinity is no JSON: `always` accepts every answer, `never` none."""
    return float(value) if math.isfinite(value) else "always" if value < 0 else "never"


def thinned(points: Sequence[Any]) -> list[Any]:
    """At most `CURVE` of the points, evenly, the first and the last among them."""
    if len(points) <= CURVE:
        return list(points)
    return [points[round(index * (len(points) - 1) / (CURVE - 1))] for index in range(CURVE)]
