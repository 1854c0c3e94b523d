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
"""What a job may be."""


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
    jobs: dict[int, JobRecord] = field(default_factory=dict)
    metric: str | None = None
    """Of a search."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._earlier = {tuple(job.overrides): job for job in stored_jobs(self.folder)}

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
        if (earlier := self._earlier.get(tuple(overrides))) is not None:
            record.seconds, record.exit_status, record.value = earlier.seconds, earlier.exit_status, earlier.value
            record.queue_id = earlier.queue_id
        if job.refusal is not None:
            record.status, record.message, record.exit_status = REFUSED, job.redaction.text(str(job.refusal)), 2
        elif job.done:
            record.status, record.exit_status = DONE, 0
        self.jobs[job.number] = record
        return record

    def take_over(self, numbers: set[int]) -> None:
        """Keeps what an earlier start recorded of these jobs."""
        self.jobs |= {job.job: job for job in self._earlier.values() if job.job in numbers}

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
            # Relative, so that a tree of runs can be moved as a whole.
            "working_folder": os.path.relpath(Path.cwd(), self.folder),
            **({"metric": self.metric} if self.metric else {}),
            "jobs": [asdict(self.jobs[number]) for number in sorted(self.jobs)],
        }
        write_json(self.folder / FILE, value)


def stored_jobs(folder: Path) -> list[JobRecord]:
    """The jobs that `sweep.json` in this folder names; none where there is no such file.

    Raises:
        Refusal: the file is not one that a sweep has written.
    """
    return read_sweep(folder)[0] if (folder / FILE).is_file() else []


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
