"""`curves.png`: a metric per exit over the steps of a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_curves(
    rows: Sequence[Mapping[str, Any]], exits: Sequence[str], metrics: Sequence[str], path: Path, title: str
) -> bool:
    """One panel a metric, one line an exit: each log's value faint, its running mean strong.

    Args:
        rows: as in `metrics.jsonl`; a second phase's steps are drawn after the first's.
        metrics: read from `<exit>/<metric>`; one that no row has gets no panel.
        path: the PNG to write.

    Returns:
        Whether anything was there to draw.
    """
    shown = [metric for metric in metrics if any(f"{exit}/{metric}" in row for row in rows for exit in exits)]
    if not shown:
        return False
    figure = Figure(figsize=(5.5 * len(shown), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for number, exit in enumerate(exits):
            steps, values = curve(rows, f"{exit}/{metric}")
            colour = f"C{number}"
            panel.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            panel.plot(steps, running_mean(values), color=colour, linewidth=1.8, label=exit)
        panel.set_xlabel("optimiser step")
        panel.set_ylabel(metric)
        panel.grid(alpha=0.25)
        panel.legend(title="exit", frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    return True


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of `key`; the steps of a later phase go on after the last of the phase before."""
    ends: dict[int, int] = {}
    for row in rows:
        ends[row["phase"]] = max(ends.get(row["phase"], 0), row["step"])
    steps, values = [], []
    for row in rows:
        if row.get(key) is not None:
            steps.append(row["step"] + sum(end for phase, end in ends.items() if phase < row["phase"]))
            values.append(row[key])
    return steps, values


def running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Mean of each value and those before it, over a window of `share` of all values, at least 1."""
    width = max(1, round(share * len(values)))
    return [sum(values[max(0, end - width) : end]) / min(width, end) for end in range(1, len(values) + 1)]
