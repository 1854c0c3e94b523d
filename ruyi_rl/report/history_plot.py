"""`history.png`: pass rate of every exit and size of the expanded one, stage by stage."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ruyi_rl.report.batch import byte_size
from ruyi_rl.report.history import RECOVERED

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart."""
MARKERS = "osD^vPX"
"""The same exits once more, for print without colour."""
SPREAD = 0.16
"""Share of a stage's width over which the exits stand side by side, so that no error bar covers another."""


def draw_history(history: Mapping[str, Any], path: Path, title: str) -> bool:
    """Two panels, one column a stage.

    Above, pass rates with their standard errors: filled where the stage measured the exit itself, white inside where
    the value is another stage's on the same function, a cross where it was measured in another way. Below, bytes and
    parameters of the first expanded exit, or where none is, of the shallowest.

    Args:
        history: what `ruyi_rl.stages.history.history` gives.
        path: the PNG to write.

    Returns:
        Whether anything was there to draw.
    """
    rows = history["rows"]
    if not rows:
        return False
    exits = list(dict.fromkeys(row["exit"] for row in rows))
    sized = (history["expanded"] or exits)[0]
    named = {row["stage"] for row in rows}
    plain = dict.fromkeys(row["stage"].removesuffix(RECOVERED) for row in rows)
    # A recovery has a column of its own, which only the exit that was recovered fills.
    stages = [name for stage in plain for name in (stage, f"{stage}{RECOVERED}") if name in named]
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for number, exit in enumerate(exits):
        shift = SPREAD * (number - (len(exits) - 1) / 2) / max(1, len(exits) - 1)
        own = [row for row in rows if row["exit"] == exit]
        _draw_rates(above, own, [stages.index(row["stage"]) + shift for row in own], number)
    _legends(above, rows, exits)
    above.set_ylabel("held-out pass rate, %\n(± 1 standard error)")
    above.set_ylim(bottom=0)
    above.grid(axis="y", alpha=0.3)
    size = 9 if len(stages) < 8 else 8
    _draw_sizes(below, [row for row in rows if row["exit"] == sized], stages, size)
    below.set_ylabel(f"branch of {sized}, bytes\n(number of parameters)")
    below.set_xticks(range(len(stages)), [tick(stage) for stage in stages], fontsize=size)
    below.set_xlabel("after stage")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)
    return True


def _measured(row: Mapping[str, Any]) -> bool:
    return row["pass_rate"] is not None and not math.isnan(row["pass_rate"])


def _by_itself(row: Mapping[str, Any]) -> bool:
    return row["measured_by"] == row["stage"].removesuffix(RECOVERED)


def _draw_rates(panel: Axes, rows: Sequence[Mapping[str, Any]], places: Sequence[float], number: int) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    # The line ends where nothing comparable is known: what lies between is not guessed.
    line = [100 * row["pass_rate"] if _measured(row) and row["comparable"] else math.nan for row in rows]
    panel.plot(places, line, color=colour, linewidth=1.4, alpha=0.6)
    for place, row in zip(places, rows):
        if not _measured(row):
            continue
        panel.errorbar(
            place,
            100 * row["pass_rate"],
            yerr=100 * (row["standard_error"] or 0.0),
            color=colour,
            marker=marker if row["comparable"] else "x",
            markerfacecolor=colour if _by_itself(row) else "white",
            markersize=7,
            capsize=3.5,
            zorder=3,
        )


def _legends(panel: Axes, rows: Sequence[Mapping[str, Any]], exits: Sequence[str]) -> None:
    """The exits above the panels, and below them the marks that occur."""

    def mark(label: str, marker: str, **style: Any) -> Line2D:
        return Line2D([], [], marker=marker, label=label, **{"color": "0.35", "linestyle": "", **style})

    names = [
        mark(exit, MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], linestyle="-")
        for number, exit in enumerate(exits)
    ]
    panel.legend(handles=names, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(5, len(exits)))
    measured, marks = [row for row in rows if _measured(row)], []
    if any(not _by_itself(row) for row in measured):
        marks.append(mark("white inside: measured at another stage, the same function", "o", markerfacecolor="white"))
    if not all(row["comparable"] for row in measured):
        marks.append(mark("measured in another way", "x"))
    if marks:
        panel.figure.legend(handles=marks, frameon=False, loc="outside lower center", ncols=2, fontsize=9)


def _draw_sizes(panel: Axes, rows: Sequence[Mapping[str, Any]], stages: Sequence[str], size: int) -> None:
    sizes = [row["bytes"] for row in rows]
    bars = panel.bar([stages.index(row["stage"]) for row in rows], sizes, width=0.6, color="0.75", edgecolor="0.35")
    labels = [f"{byte_size(row['bytes'])}\n({count(row['parameters'])})" for row in rows]
    panel.bar_label(bars, labels, padding=2, fontsize=size)
    panel.margins(y=0.35)
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(lambda size, _: byte_size(int(size)))


def tick(stage: str) -> str:
    """A stage's name on lines of at most 12 characters, broken after a sign where there is one."""
    return textwrap.fill(stage.replace("_", "_ ").replace("/", "/ "), 12).replace("_ ", "_").replace("/ ", "/")


def count(parameters: int) -> str:
    """`1.7 B`, `35.4 M` or `812 k`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return f"{parameters}"
