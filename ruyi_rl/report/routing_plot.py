"""`routing.png`: accuracy against cost of the exits alone, the oracle and the confidence rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ruyi_rl.report.benchmark_table import flop_unit
from ruyi_rl.report.history_plot import COLOURS, MARKERS


def draw_routing(routing: Mapping[str, Any], path: Path, title: str) -> None:
    """Draws what `ruyi_rl.benchmarks.routes.routes` gives.

    The confidence rule is drawn on the half of the problems that it was not chosen on, and the exits alone on these
    too, white inside; the oracle and the filled marks are of all problems.

    Args:
        path: the PNG to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    factor, unit = flop_unit(point["cost"] for point in routing["exits"].values())
    panel.plot(
        *_line(routing["frontier"], factor), color="0.35", linestyle="--", linewidth=1.4, label="oracle frontier"
    )
    if routing["confidence"] is not None:
        rule = routing["confidence"]
        held = rule["problems"]["reported_on"]
        panel.plot(
            *_line(rule["curve"], factor),
            color="black",
            marker=".",
            markersize=4,
            linewidth=1.2,
            label=f"confidence rule (on {held} other problems, as what is white inside)",
        )
        panel.plot(
            factor * rule["chosen"]["cost"],
            100 * rule["chosen"]["accuracy"],
            color="black",
            marker="*",
            markersize=14,
            linestyle="",
            label="its chosen thresholds",
        )
    for number, (exit, point) in enumerate(routing["exits"].items()):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 9,
            "linestyle": "",
            "zorder": 3,
        }
        panel.plot(factor * point["cost"], 100 * point["accuracy"], label=f"{exit} alone", **style)
        if routing["confidence"] is not None:
            there = routing["confidence"]["exits"][exit]
            panel.plot(factor * there["cost"], 100 * there["accuracy"], markerfacecolor="white", **style)
    panel.set_xlabel(f"cost, {unit} a problem")
    panel.set_ylabel("problems solved, %")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)


def _line(points: Sequence[Mapping[str, float]], factor: float) -> tuple[list[float], list[float]]:
    """Costs, and accuracies in percent, cheapest first: what is chosen on one half may be in another order here."""
    ordered = sorted((factor * point["cost"], 100 * point["accuracy"]) for point in points)
    return [cost for cost, _ in ordered], [accuracy for _, accuracy in ordered]
