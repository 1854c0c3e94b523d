"""Measured scores beside those that the Ruyi2 report gives. Importing this module imports no torch.

The report measured with OpenCompass. The harness asks in other words, scores choices by their log-likelihood where
OpenCompass reads an answer, and takes other parts of some benchmarks: differences of several points come from that.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

FILE = Path(__file__).parent / "published_scores.json"
AVERAGE = "average"


@dataclass(frozen=True)
class PublishedScores:
    """What `published_scores.json` holds."""

    source: str
    models: Mapping[str, Mapping[str, float]]
    """Model -> benchmark -> score, percent; and its `average`."""
    measured_by: Mapping[str, Mapping[str, list[str]]]
    """Benchmark -> `harness`: tasks, or `benchmark`: choices of that group; the first that is measured counts."""
    unreported: Mapping[str, Mapping[str, list[str]]]
    """As `measured_by`: of benchmarks that belong to these, but have no reported score."""
    families: list[Mapping[str, Any]]
    """Families that were published: `hidden_size`, and `exits`: position k -> model."""
    stock: list[Mapping[str, Any]]
    """Stock models that were measured beside them: `hidden_size`, `num_hidden_layers`, `model`."""

    def harness_tasks(self) -> list[str]:
        """All tasks of the harness that are named."""
        return [
            task for each in (*self.measured_by.values(), *self.unreported.values()) for task in each.get("harness", ())
        ]

    def models_of(self, hidden_size: int, exits: Mapping[str, int]) -> dict[str, str]:
        """Exit -> model that its score is to be compared with, told by the family's shape; {} where there is none.

        Args:
            exits: exit name -> position k, the last one at the last layer.
        """
        positions = {str(k): name for name, k in exits.items()}
        for family in self.families:
            if family["hidden_size"] == hidden_size and positions.keys() == family["exits"].keys():
                return {positions[k]: model for k, model in family["exits"].items()}
        last, k = list(exits.items())[-1]
        known = {(each["hidden_size"], each["num_hidden_layers"]): each["model"] for each in self.stock}
        model = known.get((hidden_size, k + 1))
        return {last: model} if model else {}


@functools.cache
def published_scores() -> PublishedScores:
    """The reported scores."""
    return PublishedScores(**json.loads(FILE.read_text()))


def beside_published(
    summary: Mapping[str, Any], models: Mapping[str, str], published: PublishedScores
) -> dict[str, dict[str, Any]]:
    """Exit -> `{"model", "benchmarks": {name: {"measured", "reported", "by"}}, "average": {"measured", "reported"}}`.

    All values are shares. The averages are over the benchmarks that were measured, both of them.

    Args:
        summary: of `stage=eval`, with `harness` and `benchmarks`.
        models: exit -> model, as `models_of` gives it.
    """
    found = {}
    for exit, model in models.items():
        rows = {}
        for name, by in published.measured_by.items():
            if (value := _measured(summary, exit, by)) is not None:
                rows[name] = {"measured": value[1], "reported": published.models[model][name] / 100, "by": value[0]}
        if rows:
            means = {key: statistics.fmean(row[key] for row in rows.values()) for key in ("measured", "reported")}
            found[exit] = {"model": model, "benchmarks": rows, AVERAGE: means}
    return found


def _measured(summary: Mapping[str, Any], exit: str, by: Mapping[str, list[str]]) -> tuple[str, float] | None:
    """(task, share) of the first that was measured: greedy answers of our own benchmarks."""
    for task in by.get("harness", ()):
        score = summary.get("harness", {}).get(task, {}).get("exits", {}).get(exit)
        if score is not None:
            return task, score["value"]
    for name in by.get("benchmark", ()):
        score = summary.get("benchmarks", {}).get(name, {}).get("exits", {}).get(exit)
        if score is not None and score["greedy"]["value"] is not None:
            return name, score["greedy"]["value"]
    return None


def published_table(found: Mapping[str, Mapping[str, Any]], source: str) -> Table:
    """Measured and reported percentages side by side, one row a benchmark, two columns an exit."""
    table = Table(title="beside the reported scores, percent", title_justify="left")
    table.add_column("benchmark", style="bold")
    for exit, values in found.items():
        table.add_column(escape(exit), justify="right")
        table.add_column(escape(values["model"]), justify="right", style="dim")
    benchmarks = dict.fromkeys(name for values in found.values() for name in values["benchmarks"])
    for name in benchmarks:
        table.add_row(name, *_cells([values["benchmarks"].get(name) for values in found.values()]))
    table.add_section()
    table.add_row(f"mean of these {len(benchmarks)}", *_cells([values[AVERAGE] for values in found.values()]))
    table.caption, table.caption_justify = f"measured (less reported) and reported: {source}", "left"
    return table


def _cells(scores: list[Mapping[str, float] | None]) -> list[str]:
    cells = []
    for score in scores:
        if score is None:
            cells += ["", ""]
            continue
        measured, reported = 100 * score["measured"], 100 * score["reported"]
        cells += [f"{measured:.2f} ({measured - reported:+.2f})", f"{reported:.2f}"]
    return cells
