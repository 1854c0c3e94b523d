"""What a run's folder holds, read for its report: of a running, failed or finished run alike. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Any

import yaml

from ruyi_rl.pipeline import ORDER
from ruyi_rl.processes import has_ended
from ruyi_rl.run_folder import RUNNING, Manifest, StageFolder

KILLED = "killed"
"""Status of a stage that says it is running while no process holds the run."""
LISTED = (
    *("summary.json", "metrics.jsonl", "completions.jsonl", "reward_failures.jsonl", "curves.png", "history.json"),
    *("history.png", "routing.png", "matrices.json", "config.yaml", "manifest.json", "error.txt"),
)
"""Files of a stage that the report links to, where they are."""

OF_BENCHMARKS = ("*/results.json", "*/routing.json", "*/routing.png")
"""The same in the folders of an evaluation's benchmarks."""


@dataclass(frozen=True)
class StageRecord:
    """What one stage has left so far."""

    name: str
    """Name of its folder."""
    manifest: Manifest
    status: str
    summary: Mapping[str, Any]
    """Empty until the stage is done."""
    rows: list[dict[str, Any]]
    """Of `metrics.jsonl`."""
    config: str
    """`config.yaml` as it stands there, secrets hidden; "" where there is none."""
    files: list[str] = field(default_factory=list)
    """Those of `LISTED` and `OF_BENCHMARKS` that are there, relative to the stage's folder."""
    completions: Path | None = None
    """`completions.jsonl`, where there is one."""


@dataclass(frozen=True)
class RunRecord:
    """A run's folder."""

    path: Path
    stages: list[StageRecord]
    """In the order in which they follow each other."""
    config: Mapping[str, Any]
    """The newest stage's; empty where none can be read."""

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)


def read_run(path: Path) -> RunRecord:
    """Reads all stages of a run; what a kill or another version has left unreadable is left out."""
    manifests = {name: StageFolder(path / name).manifest() for name in stage_names(path)}
    configs = {name: _config(path / name) for name in manifests}
    newest = max(manifests, key=lambda name: manifests[name].started, default=None)
    config = configs[newest][1] if newest else {}
    listed = [stage for stage in config.get("stages") or [] if isinstance(stage, str)]
    names = sorted(manifests, key=lambda name: (*_place(manifests[name].stage, listed), manifests[name].started))
    alive = _is_alive(path)
    stages = [_stage(path / name, manifests[name], configs[name][0], alive) for name in names]
    return RunRecord(path, stages, config)


def stage_names(path: Path) -> list[str]:
    """Names of a run's folders that a stage has written a manifest in; none where `path` is no run's."""
    return sorted(file.parent.name for file in path.glob("*/manifest.json") if StageFolder(file.parent).manifest())


def runs_beside(path: Path) -> list[str]:
    """Names of the other runs in the same folder."""
    if not path.parent.is_dir():
        return []
    return sorted(other.name for other in path.parent.iterdir() if other != path and stage_names(other))


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one after another; none if there is no file. A line cut by a kill is left out."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _stage(folder: Path, manifest: Manifest, config: str, alive: bool) -> StageRecord:
    status = KILLED if manifest.status == RUNNING and not alive else manifest.status
    return StageRecord(
        name=folder.name,
        manifest=manifest,
        status=status,
        summary=_summary(folder),
        rows=[row for row in json_lines(folder / "metrics.jsonl") if {"phase", "step"} <= row.keys()],
        config=config,
        files=[name for name in LISTED if (folder / name).is_file()]
        + [str(path.relative_to(folder)) for pattern in OF_BENCHMARKS for path in sorted(folder.glob(pattern))],
        completions=folder / "completions.jsonl" if (folder / "completions.jsonl").is_file() else None,
    )


def _summary(folder: Path) -> Mapping[str, Any]:
    try:
        found = StageFolder(folder).summary()
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """A stage's config as text and as values."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", {}
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return text, {}
    return text, values if isinstance(values, dict) else {}


def _place(stage: str, listed: list[str]) -> tuple[float, int]:
    """A stage's place among those that a config lists; another stands behind those that it usually follows."""
    usual = {name: place for place, name in enumerate(ORDER)}
    last = usual.get(stage, len(ORDER))
    if stage in listed:
        return listed.index(stage), last
    return max((place + 0.5 for place, name in enumerate(listed) if usual.get(name, 0) < last), default=-1.0), last


def _is_alive(path: Path) -> bool:
    """Whether the process that last held the run may still live; one of another host may."""
    try:
        pid, _, host = (path / ".lock").read_text().partition(" ")
    except OSError:
        return True
    return not (pid.isdigit() and host == gethostname() and has_ended(int(pid)))
