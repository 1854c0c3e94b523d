"""`-m`: one process a job; what fails or is killed takes nothing along, and the same command goes on with it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from ruyi_rl.cli.compose import Compositions, ConfigSource, compose_config, to_run_config
from ruyi_rl.cli.launch import is_rank
from ruyi_rl.cli.sweep.devices import visible_gpus
from ruyi_rl.cli.sweep.display import SweepDisplay
from ruyi_rl.cli.sweep.jobs import (
    Job,
    check_folders,
    check_job,
    hidden_words,
    split_sweep,
    sweep_folder,
    sweep_jobs,
    sweep_name,
    swept_keys,
)
from ruyi_rl.cli.sweep.local import Launch, launch_basic, launch_joblib, room
from ruyi_rl.cli.sweep.process import SweepStop
from ruyi_rl.cli.sweep.record import DONE, FAILED, REFUSED, SweepRecord
from ruyi_rl.cli.sweep.search import Search, check_stage, metric_of, open_search, result
from ruyi_rl.cli.sweep.settings import SweepSettings, sweep_settings
from ruyi_rl.cli.sweep.submitted import check_submitted, launch_submitted
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.console import run_console
from ruyi_rl.run_folder import locked, require_writable


def run_sweep(overrides: list[str], source: ConfigSource, flags: list[str]) -> int:
    """Run every job of a sweep that is not done, each in a process of its own.

    Args:
        overrides: the command's overrides, with several values a key.
        source: where the configuration comes from.
        flags: options such as `--config-dir` that each job needs too.

    Returns:
        The exit status: 0; 1 where a job is not done; 128 + the signal that stopped the sweep.

    Raises:
        Refusal: every job is refused, two would write in one place, the sweep cannot be launched, or is itself a rank.
    """
    if is_rank() and os.environ["WORLD_SIZE"] != "1":
        problem = f"a launcher has made this one of {os.environ['WORLD_SIZE']} ranks, for which every job would wait"
        raise Refusal("-m", problem, "without the launcher, num_processes=n: each job starts its own ranks")
    settings, rest = sweep_settings(overrides, source)
    command = ["python", "-m", "ruyi_rl", "-m", *flags, *overrides]
    if settings.search is not None:
        return run_search(settings, rest, source, flags, command)
    jobs = checked_jobs(sweep_jobs(rest), source)
    name = sweep_name(hidden_words(rest, jobs), swept_keys(rest), first_stage(jobs))
    return run_jobs(jobs, name, settings, flags, shlex.join(hidden_words(command, jobs)))


def checked_jobs(jobs: list[Job], source: ConfigSource) -> list[Job]:
    """The jobs with their configurations.

    Raises:
        Refusal: all of them are refused, or two would write in one place.
    """
    known: Compositions = {}
    for job in jobs:
        check_job(job, source, known)
    refusals = [job.refusal for job in jobs if job.refusal is not None]
    if len(refusals) == len(jobs):
        raise refusals[0]
    check_folders(jobs)
    return jobs


def first_stage(jobs: Sequence[Job]) -> str:
    return next(job.config.stage.name for job in jobs if job.config is not None)


def run_jobs(jobs: list[Job], name: str, settings: SweepSettings, flags: list[str], command: str) -> int:
    """Run what is not done of these jobs; see `run_sweep`."""
    folder = sweep_folder(settings.folder, name)
    todo = [job for job in jobs if not job.done and job.refusal is None]
    check_launch(todo, settings)
    require_writable(folder)
    console = run_console()
    with locked(folder):
        record = SweepRecord(folder, command, name)
        for job in jobs:
            record.add(job)
        record.write()
        display = SweepDisplay(console, record, live=settings.launcher != "basic")
        stop = SweepStop(lambda line: display.say(line, style="yellow"))
        display.announce()
        with stop, display:
            launch_jobs(todo, Launch(record, display, stop, flags), settings)
        display.close()
        return exit_status(record, stop)


def run_search(
    settings: SweepSettings, overrides: list[str], source: ConfigSource, flags: list[str], command: list[str]
) -> int:
    """Run trials until the study has as many as it is to have; see `run_sweep`."""
    options = settings.search
    assert options is not None
    shared = Job(0, [override.input_line for override in split_sweep(overrides)[0]], [])
    shared.config = plain = to_run_config(compose_config(shared.overrides, source))
    check_stage(plain)
    metric, seed = metric_of(options, plain), options.sampler.seed
    also = {"metric": metric, "direction": options.direction, "sampler": settings.sampler, "seed": seed}
    name = sweep_name(hidden_words(overrides, [shared]), swept_keys(overrides), plain.stage.name, also)
    folder = sweep_folder(settings.folder, name)
    require_writable(folder)
    with locked(folder):
        record = SweepRecord(folder, shlex.join(hidden_words(command, [shared])), name, metric=metric)
        search = open_search(options, settings.sampler, overrides, folder, plain.seed if seed is None else seed)
        record.take_over(search.ended())
        display = SweepDisplay(run_console(), record, live=settings.launcher != "basic", total=search.trials)
        stop = SweepStop(lambda line: display.say(line, style="yellow"))
        display.announce()
        with stop, display:
            run_trials(search, Launch(record, display, stop, flags), settings, source, metric)
        search.write_best(folder)
        display.close()
        display.best(search.best())
        return exit_status(record, stop)


def run_trials(search: Search, launch: Launch, settings: SweepSettings, source: ConfigSource, metric: str) -> None:
    """Ask, run and tell, a batch at a time."""
    batch = search.options.n_jobs or getattr(settings.launching, "n_jobs", 1)
    given_up: set[int] = set()
    known: Compositions = {}
    while not launch.stop.requested:
        jobs = search.next(batch if batch > 0 else len(os.sched_getaffinity(0)), given_up)
        if not jobs:
            return
        for job in jobs:
            launch.record.add(check_job(job, source, known))
        refusals = [job.refusal for job in jobs if job.refusal is not None]
        if len(refusals) == len(search.study.trials):  # whatever is drawn next, it would be refused too
            raise refusals[0]
        launch.record.write()
        # Two trials may have the same values: one run then serves both.
        runs = {job.config.run_dir: job for job in reversed(jobs) if job.config is not None and not job.done}
        todo = [job for job in jobs if job in runs.values()]
        check_launch(todo, settings)
        launch_jobs(todo, launch, settings)
        failed = 0
        for job in jobs:
            if job.config is not None and not job.done:
                check_job(job, source, known)
            ended = launch.record.jobs[job.number]
            if job.done:
                value = result(job.config, metric)
                launch.record.change(job.number, status=DONE, exit_status=0, value=value)
                search.tell(job, value)
            elif ended.status in (FAILED, REFUSED):
                failed += 1
                search.tell(job, None)
            else:  # killed or interrupted: the same command goes on with it
                given_up.add(job.number)
        if failed > search.options.max_failure_rate * len(jobs):
            launch.display.say(f"{failed} of {len(jobs)} trials failed: hydra.sweeper.max_failure_rate", style="yellow")
            return


def check_launch(jobs: Sequence[Job], settings: SweepSettings) -> None:
    """Refuse what the launcher cannot do with these jobs, before any of them starts."""
    if settings.launcher == "joblib":
        room(jobs, settings.launching, visible_gpus(os.environ))
    elif settings.launcher.startswith("submitit"):
        check_submitted(jobs, settings)


def launch_jobs(jobs: Sequence[Job], launch: Launch, settings: SweepSettings) -> None:
    """Run these jobs by the chosen launcher."""
    if not jobs:
        return
    if settings.launcher == "basic":
        launch_basic(jobs, launch)
    elif settings.launcher == "joblib":
        launch_joblib(jobs, launch, settings.launching)
    else:
        launch_submitted(jobs, launch, settings)


def exit_status(record: SweepRecord, stop: SweepStop) -> int:
    """0; 1 where a job is not done; 128 + the signal where one stopped the sweep."""
    if all(job.status == DONE for job in record.jobs.values()):
        return 0
    return 1 if stop.number is None else 128 + stop.number
