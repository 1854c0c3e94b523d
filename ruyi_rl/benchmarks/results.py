"""From judged answers to the metrics of a benchmark, each with its interval, and to the differences between exits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from ruyi_rl.benchmarks.bootstrap import estimate, finite, paired_difference, resamples
from ruyi_rl.benchmarks.cost import teraflops
from ruyi_rl.benchmarks.majority import LEAST, count_votes, majority_at_k
from ruyi_rl.benchmarks.pass_at_k import pass_at_k, powers_of_two
from ruyi_rl.benchmarks.routes import routes
from ruyi_rl.benchmarks.verdicts import Answered, Attempt
from ruyi_rl.evaluation import Measured

COMPARED = ("greedy", "pass@1")
"""Metrics whose differences between exits are told."""


def benchmark_result(
    measured: Mapping[str, Measured],
    parameters: Mapping[str, int],
    pass_at: Sequence[int] | None,
    draws: int,
    seed: int,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What a benchmark's summary holds.

    Args:
        measured: exit -> its answers to the same problems, shallowest exit first.
        parameters: exit -> parameters that a token passes through, where they are known.
        pass_at: each k; None: the powers of two up to the samples that every problem has.
        draws: of the bootstrap.
        seed: of the bootstrap, and of the half that routing thresholds are chosen on.
        beat: called as the work gets on: votes on many answers take their time.

    Returns:
        `problems`, `samples`, `exits` (exit -> metric -> `value`, `low`, `high`, and plain figures; `maj@k` only where
        the judge tells answers), `differences` and, where exits can be compared, `routing`. All is JSON: a value that
        is not known is None.
    """
    counts = [len(problem.samples) for each in measured.values() for problem in each.problems]
    samples = min(counts, default=0)
    ks = list(pass_at) if pass_at is not None else powers_of_two(max(samples, 1))
    problems = max((len(each.problems) for each in measured.values()), default=0)
    weights = resamples(problems, draws, seed) if problems else np.zeros((draws, 0), dtype=np.float32)
    values = {exit: metric_values(each.problems, ks, beat) for exit, each in measured.items()}
    exits = {
        exit: {metric: estimate(column, weights).as_json() for metric, column in values[exit].items()}
        | plain_figures(each, parameters.get(exit))
        for exit, each in measured.items()
    }
    found = {"problems": problems, "samples": samples, "exits": exits, "differences": differences(values, weights)}
    routing = routes({exit: each.problems for exit, each in measured.items()}, parameters, weights, seed)
    return found | ({"routing": routing} if routing else {})


def metric_values(
    problems: Sequence[Answered], ks: Sequence[int], beat: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """Metric -> (problems,) shares, NaN where a problem has none: `greedy`, `pass@k` and, if answers are told, `maj@k`.

    Samples that the judge failed on are left out, so that a problem may have too few for a k.
    """
    judged = [[sample for sample in problem.samples if sample.right is not None] for problem in problems]
    found = {"greedy": np.array([_share(problem.greedy) for problem in problems])}
    for k in ks:
        rates = [pass_at_k(len(each), sum(sample.right for sample in each), k) for each in judged]
        found[f"pass@{k}"] = np.array(rates)
    votes = []
    for each in judged:
        told = any(sample.answer is not None for sample in each)
        answers, right = [sample.answer or "" for sample in each], [sample.right for sample in each]
        votes.append(count_votes(answers, right) if told else None)
        beat()
    if any(votes):
        for k in (k for k in ks if k >= LEAST):
            found[f"maj@{k}"] = np.array([math.nan if each is None else majority_at_k(each, k) for each in votes])
    return found


def plain_figures(measured: Measured, parameters: int | None) -> dict[str, float | int | None]:
    """Figures without an interval: `mean_tokens` and `truncated` of a sample, `seconds`, `cost` in TFLOP an answer,
    `failures`."""
    score = asdict(measured.score)
    tokens = [problem.prompt_tokens + sample.tokens for problem in measured.problems for sample in problem.samples]
    cost = teraflops(parameters, sum(tokens) / len(tokens)) if tokens and parameters is not None else None
    kept = {key: finite(score[key]) for key in ("mean_tokens", "truncated", "seconds")}
    return kept | {"cost": cost, "failures": score["failures"]}


def differences(values: Mapping[str, Mapping[str, np.ndarray]], weights: np.ndarray) -> list[dict[str, Any]]:
    """Every deeper exit less every shallower one, on the same problems."""
    found = []
    for shallow, deep in combinations(values, 2):
        for metric in COMPARED:
            if metric in values[deep] and len(values[deep][metric]) == len(values[shallow][metric]):
                gap = paired_difference(values[deep][metric], values[shallow][metric], weights)
                if gap.value is not None:
                    found.append({"exits": [deep, shallow], "metric": metric, **gap.as_json()})
    return found


def problem_rows(measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """One row a problem: of each exit the samples that are right and that were judged, and its greedy answer."""
    rows: dict[int, dict[str, Any]] = {}
    for exit, each in measured.items():
        for problem in each.problems:
            judged = [sample.right for sample in problem.samples if sample.right is not None]
            row = rows.setdefault(problem.problem, {"problem": problem.problem, "exits": {}})
            row["exits"][exit] = {
                "right": sum(judged),
                "judged": len(judged),
                "greedy": problem.greedy and problem.greedy.right,
                "greedy_tokens": problem.greedy and problem.greedy.tokens,
                "greedy_log_prob": problem.greedy and problem.greedy.log_prob,
                "prompt_tokens": problem.prompt_tokens,
            }
    return [rows[problem] for problem in sorted(rows)]


def _share(attempt: Attempt | None) -> float:
    return math.nan if attempt is None or attempt.right is None else float(attempt.right)
