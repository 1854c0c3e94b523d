"""What the harness found, as the numbers of a summary: pure functions of its result dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1", "f1")
"""A task's main metric is the first of these that it has, else its own first one. `acc_norm` stands first because a
choice's probability falls with its length."""
FILTERS = ("flexible-extract", "custom-extract", "none")
"""Of a metric's ways to read an answer, the first of these that it has, else its own first one."""
DROPPED = ("samples", "configs", "pretty_env_info")
"""Long parts of the results that are not kept."""
Z = 1.959964
"""Quantile of the normal distribution for an interval of 95 %."""
TAIL = 0.025
"""Chance beyond either of its ends."""


def reported_tasks(results: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """The asked tasks and groups; in the place of a tag, which has no figure of its own, the tasks that it stands for.

    Args:
        results: what `simple_evaluate` returns for these tasks.
    """
    found, groups = results["results"], results.get("group_subtasks", {})
    inside = {child for children in groups.values() for child in children}
    names = [name for name in asked if name in found]
    others = [name for name in found if name not in inside and name not in names]
    return names + others


def main_metric(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """(metric, filter) of the figure that stands for a task; None where it has no number.

    Args:
        values: a task's results: `acc,none`, `acc_stderr,none`, `alias` …
    """
    keys = [tuple(key.split(",", 1)) for key, value in values.items() if "," in key and _is_number(value)]
    keys = [(metric, filter) for metric, filter in keys if not metric.endswith("_stderr")]
    if not keys:
        return None
    metrics = [metric for metric, _ in keys]
    metric = next((name for name in METRICS if name in metrics), metrics[0])
    filters = [filter for name, filter in keys if name == metric]
    return metric, next((name for name in FILTERS if name in filters), filters[0])


def exit_scores(results: Mapping[str, Any], asked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Task -> `{"metric", "value", "standard_error", "low", "high", "problems"}` of one exit.

    The interval is the normal one; shares are cut at 0 and 1. Where all questions are answered alike, that would claim
    certainty, and the bound is Clopper and Pearson's, as of `ruyi_rl.benchmarks.bootstrap.estimate`. Where the harness
    gives no standard error (a group of which one part has none), there is no interval.
    """
    scores = {}
    for name in reported_tasks(results, asked):
        values = results["results"][name]
        if (found := main_metric(values)) is None:
            continue
        metric, filter = found
        value, error = values[f"{metric},{filter}"], values.get(f"{metric}_stderr,{filter}")
        error = error if _is_number(error) and not math.isnan(error) else None
        low, high = _interval(float(value), error, _problems(results, name))
        scores[name] = {
            "metric": metric if filter == "none" else f"{metric}, {filter}",
            "value": float(value),
            "standard_error": error,
            "low": low,
            "high": high,
            "problems": _problems(results, name),
        }
    return scores


def by_task(exits: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """`summary["harness"]`: task -> `{"metric": …, "exits": {exit: {"value": …}}}`.

    Args:
        exits: exit -> what `exit_scores` gives.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for exit, scores in exits.items():
        for task, score in scores.items():
            entry = tasks.setdefault(task, {"metric": score["metric"], "exits": {}})
            entry["exits"][exit] = {key: value for key, value in score.items() if key != "metric"}
    return tasks


def kept_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's own results without their long parts."""
    return {key: value for key, value in results.items() if key not in DROPPED}


def _problems(results: Mapping[str, Any], name: str) -> int:
    """Questions of a task, or of all tasks of a group."""
    counts, children = results.get("n-samples", {}), results.get("group_subtasks", {}).get(name)
    if name in counts:
        return counts[name]["effective"]
    return sum(_problems(results, child) for child in children or ())


def _interval(value: float, error: float | None, problems: int) -> tuple[float | None, float | None]:
    if error is None:
        return None, None
    if error == 0 and value in (0.0, 1.0) and problems:
        surely = TAIL ** (1 / problems)
        return surely * value, surely * value + 1 - surely
    return _share(value - Z * error, value), _share(value + Z * error, value)


def _share(bound: float, value: float) -> float:
    return min(max(bound, 0.0), 1.0) if 0.0 <= value <= 1.0 else bound


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
