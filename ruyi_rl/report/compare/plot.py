"""`compare.png`: every metric per exit over the groups of a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ruyi_rl.report.compare.metrics import Metric
from ruyi_rl.report.compare.output import override_text
from ruyi_rl.report.compare.table import Comparison, Group, short_keys
from ruyi_rl.report.history_plot import COLOURS, MARKERS

SPREAD = 0.4
"""Share of a group's width over which the exits stand side by side."""
WIDTH = 0.9
"""Inches for each group."""
TICK = 16
"""Characters of an override in a line below the axis."""
PANELS = 6
"""Most metrics that are drawn."""


def draw_comparison(comparison: Comparison, path: Path, title: str) -> bool:
    """One panel a metric, one column a group, one mark an exit with its standard error; white inside: before.

    Args:
        path: the PNG to write.

    Returns:
        Whether anything was there to draw.
    """
    drawn = {label for group in comparison.groups for label, exit in group.cells if exit}
    metrics = [metric for metric in comparison.metrics if metric.label in drawn][:PANELS]
    if not metrics:
        return False
    count = len(comparison.groups)
    width = min(16.0, max(4.5, 1.5 + WIDTH * count))
    columns = max(1, min(len(metrics), int(16 // width)))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(width * columns, 4.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for metric, panel in zip(metrics, panels):
        for number, exit in enumerate(comparison.exits):
            _draw_exit(panel, comparison.groups, metric, exit, number, len(comparison.exits))
        panel.set_title(f"{metric.label}, %" if metric.share else metric.label, fontsize=10)
        ticks = [tick(group, comparison.keys) for group in comparison.groups]
        panel.set_xticks(range(count), ticks, fontsize=8 if count < 10 else 7, rotation=0 if count < 10 else 60)
        panel.set_xlabel(", ".join(short_keys(comparison.keys).values()))
        panel.grid(axis="y", alpha=0.3)
        panel.margins(x=0.5 / max(1, count))
    for panel in panels:
        panel.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="exit", loc="outside right upper", frameon=False)
    before = any(cell.before is not None for group in comparison.groups for cell in group.cells.values())
    figure.suptitle(title + (" · white inside: before" if before else ""), fontsize=11)
    figure.savefig(path, dpi=110)
    return True


def _draw_exit(panel: Axes, groups: Sequence[Group], metric: Metric, exit: str, number: int, exits: int) -> None:
    scale = 100 if metric.share else 1
    shift = SPREAD * (number - (exits - 1) / 2) / max(1, exits - 1)
    style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": ""}
    found = [
        (place + shift, cell) for place, group in enumerate(groups) if (cell := group.cells.get((metric.label, exit)))
    ]
    panel.errorbar(
        [place for place, _ in found],
        [scale * cell.mean for _, cell in found],
        yerr=[scale * (cell.standard_error or 0.0) for _, cell in found],
        capsize=3,
        label=exit,
        **style,
    )
    before = [(place, scale * cell.before) for place, cell in found if cell.before is not None]
    panel.plot([place for place, _ in before], [value for _, value in before], markerfacecolor="white", **style)


def tick(group: Group, keys: Sequence[str]) -> str:
    """A group's overrides, a line each."""
    texts = [override_text(group.overrides[key]) for key in keys]
    return "\n".join(line for text in texts for line in textwrap.wrap(text, TICK)[:3])
