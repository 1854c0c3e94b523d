"""The runs that are compared, as their folders and a sweep's record tell of them. Imports no torch."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ruyi_rl.cli.sweep.record import FILE, JobRecord, read_sweep
from ruyi_rl.pipeline import ORDER
from ruyi_rl.refusal import Refusal
from ruyi_rl.run_folder import DONE, RUNNING, StageFolder


@dataclass
class ComparedRun:
    """One run."""

    name: str
    folder: str | None
    """None: a job that was refused before it had one."""
    stage: str | None
    """The stage whose result is compared; None: none has begun."""
    seed: int | None = None
    values: dict[str, Any] = field(default_factory=dict)
    """What decides the result: config key -> value, the seed left out."""
    swept: dict[str, str] = field(default_factory=dict)
    """What a sweep gave it: override -> value, the seed left out."""
    summary: dict[str, Any] | None = None
    """None: there is no result."""
    status: str = DONE
    message: str | None = None
    """Why there is no result."""
    sweep: Path | None = None
    """Folder of the sweep that it is a job of, absolute."""


def find_runs(sources: Sequence[str], stage: str | None) -> list[ComparedRun]:
    """The runs of sweep folders, run folders, stage folders and patterns of them, each result once, in order.

    Args:
        stage: whose results; None: what a sweep asked for, else the furthest stage that has begun.

    Raises:
        Refusal: nothing there, or a folder without a run.
    """
    found: dict[tuple[Path, str | None], ComparedRun] = {}
    for source in sources:
        paths = [Path(source)] if Path(source).exists() else [Path(path) for path in sorted(glob.glob(source))]
        runs = [run for path in paths for run in _runs_in(path, stage)]
        if not runs:
            problem = "holds no sweep and no run" if paths else "is no folder, and no folder fits it"
            raise Refusal("runs", f"{source} {problem}", "a sweep folder, run folders, or a pattern such as runs/lr-*")
        for run in runs:
            place = Path(run.folder).resolve() if run.folder else (run.sweep or Path()) / run.name
            found.setdefault((place, run.stage), run)
    return list(found.values())


def sweep_of(sources: Sequence[str]) -> Path | None:
    """The one sweep folder that is compared; None where it is anything else."""
    return Path(sources[0]) if len(sources) == 1 and (Path(sources[0]) / FILE).is_file() else None


def _runs_in(path: Path, stage: str | None, below: bool = True) -> list[ComparedRun]:
    if (path / FILE).is_file():
        jobs, working = read_sweep(path)
        return [_job_run(job, working, path.resolve(), stage) for job in jobs]
    if (path / "manifest.json").is_file():
        return [_run(path.parent, path.name)]
    if _stages(path):
        return [_run(path, stage)]
    # A folder of sweeps or runs, such as multirun or runs.
    return [run for each in sorted(path.glob("*/")) for run in _runs_in(each, stage, False)] if below else []


def _stages(folder: Path) -> list[str]:
    """Stages that have begun in a run's folder, in order."""
    return [stage for stage in ORDER if (folder / stage / "manifest.json").is_file()]


def _last_stage(folder: Path) -> str | None:
    """The stage that the pipeline of a run ends with, begun or not; None: none has begun."""
    begun = _stages(folder)
    file = folder / begun[-1] / "config.yaml" if begun else folder
    stored = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return (stored.get("stages") or begun or [None])[-1]


def _job_run(job: JobRecord, working: Path, sweep: Path, stage: str | None) -> ComparedRun:
    """The run of a sweep's job."""
    pairs = [line.lstrip("+").partition("=") for line in job.overrides]
    swept = {key: value for key, _, value in pairs if key != "seed"}
    name = f"job {job.job}" + (f" ({' '.join(job.overrides)})" if job.overrides else "")
    if job.run_dir is None:
        return ComparedRun(name, None, job.stage, swept=swept, sweep=sweep, status=job.status, message=job.message)
    folder = working / job.run_dir
    run = _run(folder, stage or (job.stage if job.stage in ORDER else _last_stage(folder)))
    run.swept, run.sweep, run.name = swept, sweep, name
    if run.summary is None:
        run.status = job.status if job.status != DONE else run.status
        run.message = job.message or run.message
    return run


def _run(folder: Path, stage: str | None) -> ComparedRun:
    """A run by its folder: its result, or why it has none."""
    begun = _stages(folder)
    stage = stage or (begun[-1] if begun else None)
    run = ComparedRun(folder.name, str(folder), stage)
    if stage not in begun:
        run.status, run.message = "not begun", f"{stage} has not begun"
        return run
    place = StageFolder(folder / str(stage))
    manifest = place.manifest()
    if manifest is None:
        run.status, run.message = "unreadable", f"{place.path}/manifest.json is of another version"
        return run
    run.seed, run.status = manifest.seed, manifest.status
    run.values = {key: value for key, value in manifest.decided_by.items() if key != "seed"}
    if manifest.status == DONE and (place.path / "summary.json").is_file():
        run.summary = place.summary()
        if "start_from" in run.summary:
            run.values["start_from"] = without_seed(str(run.summary["start_from"]), manifest.seed)
    elif manifest.status == RUNNING:
        run.message = "it is running, or was killed"
    else:
        run.message = manifest.message
    return run


def without_seed(path: str, seed: int) -> str:
    """A path whose numbers that are the seed's are `*`: runs of several seeds start from families of several seeds."""
    return re.sub(rf"(?<!\d){seed}(?!\d)", "*", path)
