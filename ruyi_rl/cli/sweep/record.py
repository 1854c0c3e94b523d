"""`sweep.json`: the jobs of a sweep, how each ended and why. Imports no torch."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruyi_rl.refusal import Refusal
from ruyi_rl.run_folder import write_json

if TYPE_CHECKING:
    from ruyi_rl.cli.sweep.jobs import Job

FILE = "sweep.json"
WAITING, RUNNING, DONE, FAILED, KILLED, INTERRUPTED, REFUSED = (
    *("waiting", "running", "done", "failed", "killed", "interrupted", "refused"),
)
"""What a job may be; `refused`: by the sweep itself, for good."""


@dataclass
class JobRecord:
    """One job in `sweep.json`."""

    job: int
    overrides: list[str]
    """Those that differ between jobs, without secrets."""
    stage: str | None
    run_dir: str | None
    """As configured, relative to the working folder; None: the job was refused."""
    log: str
    """File beside `sweep.json`."""
    status: str = WAITING
    exit_status: int | None = None
    """Of the last attempt; 128 + the signal's number where one ended it."""
    message: str | None = None
    """Why it is not done."""
    seconds: float = 0.0
    """Wall seconds of all attempts that this sweep started."""
    queue_id: str | None = None
    """In a cluster's queue."""
    value: float | None = None
    """What a search optimises."""


@dataclass
class SweepRecord:
    """`sweep.json`, written anew with every change. Safe to call from several threads."""

    folder: Path
    command: str
    """As typed, without secrets."""
    name: str
    """By what its jobs are: see `sweep_name`."""
    jobs: dict[int, JobRecord] = field(default_factory=dict)
    metric: str | None = None
    """Of a search."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._earlier = stored_jobs(self.folder, self.name)

    def add(self, job: Job) -> JobRecord:
        """The job's record, with what an earlier start of the sweep knew of it."""
        config, overrides = job.config, [job.redaction.text(word) for word in job.swept]
        record = JobRecord(
            job.number,
            overrides,
            config.stage.name if config else None,
            config.run_dir if config else None,
            f"job-{job.number}.log",
        )
        # Typed in another order the same jobs have other numbers; trials of a search may be the same but for theirs.
        same = [each for each in self._earlier if sorted(each.overrides) == sorted(overrides)]
        if (earlier := min(same, key=lambda each: each.job != job.number, default=None)) is not None:
            record.seconds, record.exit_status, record.value = earlier.seconds, earlier.exit_status, earlier.value
            record.queue_id, record.log = earlier.queue_id, earlier.log
        if job.refusal is not None:
            record.status, record.message, record.exit_status = REFUSED, job.redaction.text(str(job.refusal)), 2
        elif job.done:
            record.status, record.exit_status = DONE, 0
        self.jobs[job.number] = record
        return record

    def take_over(self, numbers: set[int]) -> None:
        """Keeps what an earlier start recorded of these jobs."""
        self.jobs |= {job.job: job for job in self._earlier if job.job in numbers}

    def change(self, number: int, **values: Any) -> None:
        """Changes a job's record on the disk."""
        with self._lock:
            for name, value in values.items():
                setattr(self.jobs[number], name, value)
            self._write()

    def write(self) -> None:
        with self._lock:
            self._write()

    def _write(self) -> None:
        value = {
            "command": self.command,
            "name": self.name,
            # Relative, so that a tree of runs can be moved as a whole.
            "working_folder": os.path.relpath(Path.cwd(), self.folder),
            **({"metric": self.metric} if self.metric else {}),
            "jobs": [asdict(self.jobs[number]) for number in sorted(self.jobs)],
        }
        write_json(self.folder / FILE, value)


def stored_jobs(folder: Path, name: str) -> list[JobRecord]:
    """The jobs that `sweep.json` in this folder names; none where there is no such file.

    Raises:
        Refusal: the file is not one that a sweep has written, or it is another sweep's.
    """
    if not (folder / FILE).is_file():
        return []
    jobs, _ = read_sweep(folder)
    stored = json.loads((folder / FILE).read_text())
    # By the hash at its end: what stands before it follows from the jobs that are not refused.
    if stored.get("name", name).rpartition("-")[2] != name.rpartition("-")[2]:
        problem = f"{folder} holds another sweep: {stored['command']}"
        raise Refusal("hydra.sweep.dir", problem, f"another folder, or none: multirun/{name}; what is done stays done")
    return jobs


def read_sweep(folder: Path) -> tuple[list[JobRecord], Path]:
    """The jobs of a sweep, and the folder that their `run_dir` is relative to.

    Raises:
        Refusal: there is no `sweep.json` that a sweep has written.
    """
    names = {each.name for each in fields(JobRecord)}
    try:
        stored = json.loads((folder / FILE).read_text())
        jobs = [JobRecord(**{name: value for name, value in job.items() if name in names}) for job in stored["jobs"]]
        working = stored["working_folder"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Refusal(str(folder / FILE), "is no record of a sweep", "another folder") from None
    return jobs, Path(os.path.normpath(folder / working)) if not _is_here(folder, working) else Path()


def _is_here(folder: Path, working: str) -> bool:
    """Whether a sweep's working folder is this process's, so that its runs have the names that were typed."""
    return (folder / working).resolve() == Path.cwd().resolve()
