"""The harness's scores as a table of tasks and exits. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from ruyi_rl.report.history import ERROR


def harness_table(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a task, one column an exit: percent ± standard error.

    Args:
        tasks: `summary["harness"]`.
    """
    table = Table(title=f"lm-evaluation-harness {ERROR}", title_justify="left")
    table.add_column("task", style="bold")
    table.add_column("metric")
    table.add_column("problems", justify="right")
    exits = list(dict.fromkeys(exit for task in tasks.values() for exit in task["exits"]))
    for exit in exits:
        table.add_column(escape(exit), justify="right")
    for name, task in tasks.items():
        problems = max(score["problems"] for score in task["exits"].values())
        cells = (_cell(task["exits"].get(exit)) for exit in exits)
        table.add_row(escape(name), escape(task["metric"]), f"{problems:,}", *cells)
    return table


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    value, error = score["value"], score["standard_error"]
    if not 0.0 <= value <= 1.0:  # a perplexity, say
        return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + " %"
