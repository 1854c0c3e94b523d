"""Running the tools, and the family that `generate` and `serve` read. Importing this module imports no torch."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.failure import StageFailed
from ruyi_rl.pipeline import ORDER
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.worker import RolloutFailed
from ruyi_rl.run_folder import DONE, StageFolder

SHOWN_RUNS = 5
"""Most runs that a refusal lists."""


def run_tool(config: RunConfig) -> None:
    """Runs the tool that `stage` names; `serve` with `launch` does not return: the server takes this process over.

    Raises:
        Refusal: what only the family's weights or tokenizer could tell.
        StageFailed: the rollout back end gave up.
    """
    try:
        import_module(f"ruyi_rl.stages.{config.stage.name}").run(config)
    except RolloutFailed as error:
        raise StageFailed(f"{config.stage.name} failed: {error}") from error


def find_family(config: RunConfig) -> Path:
    """Folder of the family that a tool reads: `start_from`, else that of the run's furthest finished stage.

    Whatever config the run was trained with: that it lies in the run's folder is enough.

    Raises:
        Refusal: the run has none.
    """
    if config.start_from is not None:
        return Path(config.start_from)
    run, order = Path(config.run_dir), stage_order(config.stages)
    finished = finished_families(run, order)
    if finished:
        return finished[-1]
    manifests = {stage: StageFolder(run / stage).manifest() for stage in order}
    begun = ", ".join(f"{stage} is {manifest.status}" for stage, manifest in manifests.items() if manifest)
    other = runs_beside(run, order)
    there = f" ({', '.join(other[:SHOWN_RUNS])}{' …' if len(other) > SHOWN_RUNS else ''})" if other else ""
    raise Refusal(
        "run_dir",
        f"{run} holds no finished family" + (f": {begun}" if begun else ""),
        "first python -m ruyi_rl stage=grpo with the same options; "
        f"or name=<another run>{there}, or start_from=<folder of a family>",
    )


def stage_order(stages: list[str]) -> list[str]:
    """All stages, as the pipeline has them in order; those that it leaves out may have been run by hand."""
    usual = sorted(stages, key=ORDER.index)
    return list(ORDER) if stages == usual else [stage for stage in ORDER if stage not in stages] + stages


def finished_families(run: Path, order: list[str]) -> list[Path]:
    """Folders of the stages that are done and hold a family, in order."""
    folders = [StageFolder(run / stage) for stage in order]
    return [
        folder.path
        for folder in folders
        if (manifest := folder.manifest()) and manifest.status == DONE and folder.holds_family()
    ]


def runs_beside(run: Path, order: list[str]) -> list[str]:
    """Names of the other runs in the same folder that have a finished family."""
    if not run.parent.is_dir():
        return []
    return sorted(path.name for path in run.parent.iterdir() if path != run and finished_families(path, order))
