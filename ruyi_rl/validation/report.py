"""`stage=report`: what can be known of it beforehand."""

from __future__ import annotations

from pathlib import Path

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.html.records import runs_beside, stage_names
from ruyi_rl.validation.values import require

SHOWN_RUNS = 5
"""Most runs that a refusal lists."""


def check_report(config: RunConfig) -> None:
    """Refuse a report of what is no run.

    Raises:
        Refusal: the first thing that is wrong.
    """
    asked = max(config.num_processes, ranks.world_size())
    require("num_processes", asked, asked == 1, "1: stage=report runs in one process")
    folder = Path(config.run_dir)
    if stage_names(folder):
        return
    if (folder / "manifest.json").is_file():
        raise Refusal("run_dir", f"{folder} is one stage of a run", f"run_dir={folder.parent}")
    others = runs_beside(folder)
    listed = f": {', '.join(others[:SHOWN_RUNS])}{' …' if len(others) > SHOWN_RUNS else ''}" if others else ""
    raise Refusal("run_dir", f"{folder} holds no run", f"name=<a run>{listed}; or run_dir=<its folder>")
