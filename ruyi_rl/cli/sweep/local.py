"""Launchers on this machine: one job after another, or several at a time with devices of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ruyi_rl.cli.sweep.devices import (
    THREADS,
    VISIBLE,
    DevicePool,
    jobs_at_once,
    threads_per_rank,
    visible_gpus,
)
from ruyi_rl.cli.sweep.display import LogTail, SweepDisplay
from ruyi_rl.cli.sweep.jobs import Job
from ruyi_rl.cli.sweep.options import JoblibLauncher
from ruyi_rl.cli.sweep.process import SweepStop, last_message, outcome, run_job
from ruyi_rl.cli.sweep.record import RUNNING, SweepRecord
from ruyi_rl.refusal import Refusal


@dataclass
class Launch:
    """What every launcher is given."""

    record: SweepRecord
    display: SweepDisplay
    stop: SweepStop
    flags: Sequence[str] = ()
    """Options such as `--config-dir` that each job needs too."""

    def command(self, job: Job) -> list[str]:
        return [sys.executable, "-m", "ruyi_rl", *self.flags, *job.overrides]

    def log(self, job: Job) -> Path:
        return self.record.folder / self.record.jobs[job.number].log

    def begin_log(self, job: Job) -> int:
        """Appends the job's command to its log; returns the log's size."""
        with open(self.log(job), "a") as file:
            file.write(f"$ {job.command(['python', *self.command(job)[1:]])}\n")
        return self.log(job).stat().st_size


def launch_basic(jobs: Sequence[Job], launch: Launch) -> None:
    """One job after another; what each prints is shown."""
    for job in jobs:
        if launch.stop.requested:
            return
        attend(job, launch, {}, shown=True)


def launch_joblib(jobs: Sequence[Job], launch: Launch, options: JoblibLauncher) -> None:
    """Several jobs at a time, each a process that sees GPUs of its own, or computes with its share of the cores.

    Raises:
        Refusal: a job needs more GPUs than there are; joblib is not installed.
    """
    from joblib import Parallel, delayed

    gpus = visible_gpus(os.environ)
    at_once, needs = room(jobs, options, gpus)
    pool, cores = DevicePool(gpus), len(os.sched_getaffinity(0))
    if at_once < min(options.n_jobs, len(jobs)):
        each = min(need for need in needs if need)
        launch.display.say(f"{at_once} at a time, not {options.n_jobs}: {len(gpus)} GPUs, and {each} for each job")

    def run(job: Job, need: int) -> None:
        with pool.borrowed(need, lambda: launch.stop.requested) as devices:
            if devices is None:
                return
            variables = {VISIBLE: ",".join(devices)} if need else {}
            if THREADS not in os.environ:
                variables[THREADS] = str(threads_per_rank(cores, at_once, job.ranks))
            attend(job, launch, variables)

    # Threads: each only waits for its process.
    Parallel(n_jobs=at_once, backend="threading", pre_dispatch="all", batch_size=1)(
        delayed(run)(job, need) for job, need in zip(jobs, needs)
    )


def room(jobs: Sequence[Job], options: JoblibLauncher, gpus: Sequence[str]) -> tuple[int, list[int]]:
    """How many jobs run at a time, and the GPUs of each.

    Raises:
        Refusal: a job needs more GPUs than there are, or names them itself; joblib is not installed.
    """
    try:
        import joblib  # noqa: F401 - whether it is there
    except ImportError:
        raise Refusal("hydra/launcher", "joblib is not installed", "pip install 'ruyi_rl[sweep]'") from None
    if options.gpus_per_job is not None and options.gpus_per_job < 0:
        raise Refusal("hydra.launcher.gpus_per_job", f"{options.gpus_per_job} GPUs", "0 or more")
    needs = [job.ranks if options.gpus_per_job is None else options.gpus_per_job for job in jobs]
    needs = needs if gpus or options.gpus_per_job else [0] * len(jobs)
    at_once = jobs_at_once(options.n_jobs, len(jobs), needs, len(gpus), len(os.sched_getaffinity(0)))
    if at_once > 1 and any(job.config is not None and job.config.rollout.devices for job in jobs):
        problem = "names GPUs, which jobs that run at the same time would share"
        raise Refusal("rollout.devices", problem, "leave it out: servers see their job's GPUs; or n_jobs=1")
    return at_once, needs


def attend(job: Job, launch: Launch, variables: dict[str, str], shown: bool = False) -> None:
    """Runs a job in a process of its own and records how it ended.

    Args:
        variables: of its environment, besides this process's.
        shown: show what it prints.
    """
    record, log = launch.record.jobs[job.number], launch.log(job)
    start, earlier, begun = launch.begin_log(job), record.seconds, time.monotonic()
    launch.record.change(job.number, status=RUNNING, message=None, exit_status=None)
    launch.display.started(record)
    status = run_job(launch.command(job), log, variables, launch.stop, LogTail(log) if shown else lambda: None)
    message = last_message(log, start, status)
    launch.record.change(
        job.number,
        status=outcome(status),
        exit_status=status,
        message=message and job.redaction.text(message),
        seconds=round(earlier + time.monotonic() - begun, 1),
    )
    launch.display.ended(record)
