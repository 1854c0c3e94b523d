"""`stage=compare`: what can be known of it before any run is read."""

from __future__ import annotations

from pathlib import Path

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import ORDER
from ruyi_rl.refusal import Refusal
from ruyi_rl.validation.folders import require_folder
from ruyi_rl.validation.values import require, require_choice


def check_compare(config: RunConfig) -> None:
    """Refuse a comparison of nothing, or of a stage that there is not."""
    ranks_asked = max(config.num_processes, ranks.world_size())
    require("num_processes", ranks_asked, ranks_asked == 1, "1: stage=compare runs in one process")
    compared_sources(config)
    if config.compare.stage is not None:
        require_choice("compare.stage", config.compare.stage, ORDER)
    if config.compare.metrics is not None:
        require("compare.metrics", config.compare.metrics, bool(config.compare.metrics), "one path or more; null")
    if config.compare.output is not None:
        require_folder("compare.output", Path(config.compare.output).expanduser())


def compared_sources(config: RunConfig) -> list[str]:
    """The folders and patterns that `runs` names.

    Raises:
        Refusal: it names none.
    """
    runs = [config.runs] if isinstance(config.runs, str) else config.runs
    if not isinstance(runs, list) or not runs or not all(isinstance(each, str) and each for each in runs):
        raise Refusal("runs", f"{config.runs!r} names no runs", "runs=multirun/<sweep>, runs='runs/lr-*' or runs=[a,b]")
    return [str(Path(each).expanduser()) for each in runs]
