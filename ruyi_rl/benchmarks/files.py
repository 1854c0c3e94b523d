"""The files on this machine that decide a measurement, as hashes. Importing this module imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ruyi_rl.benchmarks.asked import asked_benchmarks
from ruyi_rl.benchmarks.options import REFERENCE
from ruyi_rl.config import RunConfig
from ruyi_rl.data.files import locate
from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.options import RewardOptions
from ruyi_rl.rewards.paths import RewardPath

WHOLE = 64 * 2**20
"""Bytes of the largest file that is known by its content; a larger one is known by its size and time."""
TASK_FILES = (".yaml", ".yml", ".py", ".json", ".jsonl")
"""Ends of the names of what a folder of the harness's tasks holds."""


def evaluation_files(config: RunConfig) -> str:
    """Hash of all files that decide `stage=eval`, the family's apart: equal content on two machines is equal."""
    benchmarks = [
        each for asked in asked_benchmarks(config) for each in measured_files(asked.options.data, asked.options.reward)
    ]
    return files_hash([*benchmarks, *given_files(config), *task_files(config)])


def measured_files(data: DataOptions, reward: RewardOptions) -> Iterator[Path]:
    """A benchmark's rows and its reward functions, those that are files here."""
    if data.source == "rows":
        try:
            found = locate(data)
        except Refusal:
            return  # the stage says so itself, where it needs them
        yield from (*found.train, *found.test)
    for function in reward.functions.values():
        place = RewardPath.parse(function.path)
        file = place.find() if place.file else None
        if file is not None:
            yield file


def given_files(config: RunConfig) -> list[Path]:
    """The file of `eval.completions`."""
    given = config.eval.completions
    return [Path(given)] if given not in (None, REFERENCE) and Path(given).is_file() else []


def task_files(config: RunConfig) -> list[Path]:
    """The harness's own tasks, where `eval.harness` asks for some."""
    harness = config.eval.harness
    if not harness.tasks or harness.include_path is None:
        return []
    return sorted(each for each in Path(harness.include_path).rglob("*") if each.suffix in TASK_FILES)


def files_hash(files: Iterable[Path]) -> str:
    """Twelve hexadecimal digits that change with any file, or with their order."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        if status.st_size <= WHOLE:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]
