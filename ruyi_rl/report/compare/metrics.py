"""What is compared of a run: pass rates before and after, benchmarks, seconds, or any number of its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruyi_rl.report.summary_values import found_values


@dataclass(frozen=True)
class Metric:
    """A column of the comparison."""

    label: str
    paths: tuple[tuple[str | None, str], ...]
    """Pairs of dotted paths, before and after, in `summary.json`; the first that is there counts. `*`: the exit."""
    share: bool = True
    """Whether it is shown in percent."""

    def values(self, summary: Mapping[str, Any]) -> dict[str, tuple[float | None, float]]:
        """Exit -> value before, where there is one, and after. What is of the whole run stands under an empty name."""
        for before, after in self.paths:
            if found := {"/".join(key): value for key, value in found_values(summary, after).items()}:
                first = found_values(summary, before) if before else {}
                earlier = {"/".join(key): value for key, value in first.items()}
                return {exit: (earlier.get(exit), value) for exit, value in found.items()}
        return {}


PASS = Metric("pass rate", (("exits.*.pass_before", "exits.*.pass_after"), (None, "exits.*.pass")))
GREEDY = Metric("greedy", (("exits.*.greedy_before", "exits.*.greedy_after"), (None, "exits.*.greedy")))
LOSS = Metric("loss", (("exits.*.loss_first", "exits.*.loss_last"),), share=False)
SECONDS = Metric("seconds", ((None, "seconds"),), share=False)
OF_BENCHMARKS = ("pass@1", "greedy")
"""What is compared of each benchmark of an evaluation."""


def default_metrics(summaries: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """What these summaries hold: the run's own rates, else the losses; benchmarks; seconds."""
    rates = [metric for metric in (PASS, GREEDY) if any(metric.values(summary) for summary in summaries)]
    if all(summary.get("benchmarks") for summary in summaries):
        rates = []  # the run's own data is one of the benchmarks
    benchmarks = _benchmarks(summaries)
    return [*(rates or benchmarks or [LOSS]), *(benchmarks if rates else []), SECONDS]


def chosen_metrics(paths: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """The metrics of `compare.metrics`; a value that is a share by its name is shown in percent."""
    words = ("pass", "greedy", "truncated", "accuracy", "share", "pass_rate", "value")

    def is_share(path: str) -> bool:
        last = path.rpartition(".")[2]
        return last.startswith(words) and not last.endswith("standard_error")

    return [Metric(path.removeprefix("exits.*."), ((None, path),), share=is_share(path)) for path in paths]


def _benchmarks(summaries: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """A column for each benchmark's sampled and greedy score, and for each task of the harness."""
    metrics: dict[str, Metric] = {}
    for summary in summaries:
        for name in summary.get("benchmarks") or {}:
            for kind in OF_BENCHMARKS:
                path = f"benchmarks.{name}.exits.*.{kind}.value"
                if found_values(summary, path):
                    label = f"{name} {kind}"
                    metrics.setdefault(label, Metric(label, ((None, path),)))
        for task in summary.get("harness") or {}:
            metrics.setdefault(task, Metric(task, ((None, f"harness.{task}.exits.*.value"),)))
    return list(metrics.values())
