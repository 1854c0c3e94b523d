"""Launchers through submitit: SLURM's queue, or processes of this machine that do the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ruyi_rl.cli.sweep.jobs import Job
from ruyi_rl.cli.sweep.local import Launch
from ruyi_rl.cli.sweep.options import SubmititLocal, SubmititSlurm
from ruyi_rl.cli.sweep.process import PARENT, POLL_SECONDS, last_message, outcome
from ruyi_rl.cli.sweep.record import KILLED, RUNNING
from ruyi_rl.cli.sweep.settings import SweepSettings
from ruyi_rl.processes import has_ended
from ruyi_rl.refusal import Refusal

if TYPE_CHECKING:
    import submitit

SLURM = "submitit_slurm"
LOOK_SECONDS = {SLURM: 5.0, "submitit_local": 0.2}
"""Between two looks at the jobs."""
SHARED = {each.name for each in fields(SubmititLocal)} - {"submitit_folder"}
"""Parameters that submitit knows under one name everywhere; the others are SLURM's."""


@dataclass
class SubmittedJob:
    """What a task of the queue runs: the job's command in a process of its own. Picklable."""

    command: list[str]
    log: str
    sweep: int | None = None
    """Process of this machine with which the job ends; None: a queue's job goes on without the sweep."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> int:
        """Waits for the process; returns its exit status, 128 + the signal's number where one ended it."""
        variables = rank_variables()
        rank = variables.get("RANK", "0")
        log = self.log if rank == "0" else f"{self.log.removesuffix('.log')}-rank-{rank}.log"
        with open(log, "ab") as file:
            # Out of reach of the queue's own signals, which end a process that does not know them.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **variables, PARENT: str(os.getpid())},
                start_new_session=True,
            )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)
        while self.process.poll() is None:
            if self.sweep is not None and has_ended(self.sweep):
                self._pass_on(signal.SIGTERM)
                self.sweep = None
            time.sleep(POLL_SECONDS)
        return self.process.returncode if self.process.returncode >= 0 else 128 - self.process.returncode

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit when the job's time is nearly up or another job needs its place: the same again."""
        import submitit

        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            # Not by wait(): this interrupts the call that waits, and may hold its lock.
            while not has_ended(self.process.pid):
                time.sleep(POLL_SECONDS)
        return submitit.helpers.DelayedSubmission(SubmittedJob(self.command, self.log, self.sweep))

    def _pass_on(self, number: int, frame: FrameType | None = None) -> None:
        if self.process is not None and not has_ended(self.process.pid):
            self.process.send_signal(number)


def rank_variables() -> dict[str, str]:
    """The environment of this task as a rank, by the names that torchrun uses; none for a job of one task."""
    import submitit

    task = submitit.JobEnvironment()
    if task.num_tasks == 1:
        return {}
    distributed = submitit.helpers.TorchDistributedEnvironment()
    return {
        "RANK": str(distributed.rank),
        "WORLD_SIZE": str(distributed.world_size),
        "LOCAL_RANK": str(distributed.local_rank),
        "LOCAL_WORLD_SIZE": str(distributed.local_world_size),
        "GROUP_RANK": str(task.node),
        "GROUP_WORLD_SIZE": str(task.num_nodes),
        "MASTER_ADDR": distributed.master_addr,
        "MASTER_PORT": str(distributed.master_port),
    }


def check_submitted(jobs: Sequence[Job], settings: SweepSettings) -> None:
    """Refuse what the queue would take and the jobs would die of.

    Raises:
        Refusal: submitit or SLURM is missing, or the tasks are not what the jobs expect.
    """
    options: SubmititLocal = settings.launching
    try:
        import submitit  # noqa: F401 - whether it is there
    except ImportError:
        raise Refusal("hydra/launcher", "submitit is not installed", "pip install 'ruyi_rl[sweep]'") from None
    if settings.launcher == SLURM and (missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]):
        raise Refusal(
            "hydra/launcher", f"no {' and no '.join(missing)} here: this is no SLURM login node", "joblib, or basic"
        )
    tasks = options.tasks_per_node * options.nodes
    if settings.launcher != SLURM and options.nodes > 1:
        raise Refusal(
            "hydra.launcher.nodes", f"{options.nodes} of this one machine", "1, or hydra/launcher=submitit_slurm"
        )
    for job in jobs:
        if tasks > 1 and job.ranks not in (1, options.tasks_per_node):
            problem = f"{job.ranks}, and {options.tasks_per_node} tasks on each node are ranks by themselves"
            raise Refusal("num_processes", problem, "leave it out, or hydra.launcher.tasks_per_node=1")
        ranks = max(job.ranks, options.tasks_per_node)
        if options.gpus_per_node and ranks > options.gpus_per_node:
            problem = f"{options.gpus_per_node}, for {ranks} ranks on each node"
            raise Refusal("hydra.launcher.gpus_per_node", problem, "a GPU for each rank")
    if isinstance(options, SubmititSlurm) and options.gpus_per_task and options.tasks_per_node > 1:
        problem = "each rank chooses its GPU of all of its node's, and would see one"
        raise Refusal("hydra.launcher.gpus_per_task", problem, "gpus_per_node")


def executor(settings: SweepSettings, folder: Path) -> submitit.AutoExecutor:
    """Submitit's executor with the launcher's parameters; without those that are not set."""
    import submitit

    options, cluster = settings.launching, settings.launcher.removeprefix("submitit_")
    given = {name: value for name, value in asdict(options).items() if value not in (None, {})}
    place = given.pop("submitit_folder", str(folder / ".submitit" / "%j"))
    retries = {f"{cluster}_max_num_timeout": given.pop("max_num_timeout")} if cluster == "slurm" else {}
    found = submitit.AutoExecutor(folder=place, cluster=cluster, **retries)
    try:
        found.update_parameters(**{name if name in SHARED else f"{cluster}_{name}": v for name, v in given.items()})
    except (NameError, ValueError, AssertionError) as error:
        raise Refusal("hydra.launcher", " ".join(str(error).split()), "see submitit's parameters") from None
    return found


def launch_submitted(jobs: Sequence[Job], launch: Launch, settings: SweepSettings) -> None:
    """Hands the jobs to the queue, as one array, and waits until all have ended.

    A SLURM job that an earlier start of the sweep has left in the queue is waited for and not submitted again.
    """
    queue = executor(settings, launch.record.folder)
    running = {} if settings.launcher != SLURM else _still_queued(jobs, launch, settings)
    fresh = [job for job in jobs if job.number not in running]
    starts = {job.number: launch.begin_log(job) for job in fresh}
    if fresh:
        # What the shell sends on Ctrl-C would end submitit's own processes, and so the jobs, within a second.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            sweep = None if settings.launcher == SLURM else os.getpid()
            functions = [SubmittedJob(launch.command(job), str(launch.log(job).absolute()), sweep) for job in fresh]
            with submitit_environment():
                submitted = queue.submit_array(functions)
        finally:
            signal.signal(signal.SIGINT, previous)
        running |= {job.number: each for job, each in zip(fresh, submitted)}
    by_number = {job.number: job for job in jobs}
    for number, each in running.items():
        launch.record.change(number, status=RUNNING, message=None, queue_id=each.job_id)
        launch.display.started(launch.record.jobs[number])
    begun, told = time.monotonic(), 0
    while running:
        if launch.stop.count > told:
            told = launch.stop.count
            for each in running.values():
                _cancel(each, settings.launcher)
        for number in [number for number, each in running.items() if each.done()]:
            _end(by_number[number], running.pop(number), launch, starts.get(number, 0), time.monotonic() - begun)
        if told > 1:
            return
        time.sleep(LOOK_SECONDS[settings.launcher])


def submitit_environment() -> Any:
    """Context without the variables of a queue's job that this process itself may be."""
    import submitit

    return submitit.helpers.clean_env()


def _still_queued(jobs: Sequence[Job], launch: Launch, settings: SweepSettings) -> dict[int, Any]:
    """Number -> submitit's job of those that an earlier start has submitted and that have not ended."""
    import submitit

    place = settings.launching.submitit_folder or str(launch.record.folder / ".submitit" / "%j")
    tasks = list(range(settings.launching.tasks_per_node * settings.launching.nodes))
    known = {job.number: launch.record.jobs[job.number].queue_id for job in jobs}
    found = {
        number: submitit.SlurmJob(folder=place, job_id=queue_id, tasks=tasks)
        for number, queue_id in known.items()
        if queue_id is not None
    }
    return {number: job for number, job in found.items() if not job.done(force_check=True)}


def _cancel(job: Any, launcher: str) -> None:
    """Tells a job to stop, which gives it the time to save."""
    if launcher == SLURM:
        job.cancel(check=False)
    else:
        # Submitit's own cancel() kills after a second; the controller, whose process the id is, passes SIGTERM on.
        os.kill(int(job.job_id), signal.SIGTERM)


def _end(job: Job, submitted: Any, launch: Launch, start: int, seconds: float) -> None:
    """Records how a submitted job ended."""
    import submitit

    record = launch.record.jobs[job.number]
    try:
        statuses = submitted.results()
        status = next((each for each in statuses if each), 0)
        message, state = last_message(launch.log(job), start, status), outcome(status)
    except submitit.core.utils.UncompletedJobError as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        status, state, message = None, KILLED, f"{submitted.state}: {said[0]}" if said else submitted.state
    launch.record.change(
        job.number,
        status=state,
        exit_status=status,
        message=message and job.redaction.text(message),
        seconds=round(record.seconds + seconds, 1),
        queue_id=None,
    )
    launch.display.ended(record)
