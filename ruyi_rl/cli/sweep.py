"""`-m`: one process a job, one job after another; a job that fails does not stop the others."""

from __future__ import annotations

import signal
import subprocess
import sys

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import ValueType

from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config
from ruyi_rl.cli.overrides import parse_overrides
from ruyi_rl.config import RunConfig
from ruyi_rl.redaction import Redaction
from ruyi_rl.refusal import Refusal
from ruyi_rl.validation import validate

INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a job that was told to stop: the sweep stops with it."""


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """The jobs of a sweep: every combination of the values, the last override varying fastest.

    Args:
        overrides: Hydra overrides, some with several values: `a=1,2`, `a=choice(1,2)`, `a=range(1,4)`.

    Returns:
        One list of overrides a job.
    """
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.is_interval_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            raise Refusal(
                override.key_or_group, "this kind of sweep cannot be enumerated", "a=1,2, choice() or range()"
            )
    plain = [override.input_line for override in parsed if not override.is_sweep_override()]
    (sweeps,) = BasicSweeper.split_arguments(
        [override for override in parsed if override.is_sweep_override()], max_batch_size=None
    )
    return [plain + job for job in sweeps]


def run_sweep(overrides: list[str], source: ConfigSource, flags: list[str]) -> int:
    """Run every job of a sweep in a process of its own; refuse the sweep if any of its jobs is refused.

    Args:
        overrides: the command's overrides, with several values a key.
        source: where the configuration comes from.
        flags: options such as `--config-dir` that each job needs too.

    Returns:
        The exit status: 0, or 1 where a job failed. Prints one line a job.
    """
    jobs = sweep_jobs(overrides)
    configs = [to_run_config(compose_config(job, source)) for job in jobs]
    owners: dict[str, int] = {}
    for number, config in enumerate(configs, 1):
        validate(config)
        key, path = written(config)
        other = number if path is None else owners.setdefault(path, number)
        if other != number:
            default = "leave name and run_dir to the defaults" if key == "name" else f"leave {key} out"
            raise Refusal(
                key, f"jobs {other} and {number} would both write {path}", f"{default}, or let it hold the swept values"
            )
    width = len(str(len(jobs)))
    shown = [Redaction.of_command(job).text(" ".join(job)) for job in jobs]
    results = []
    for number, job in enumerate(jobs, 1):
        print(f"job {number:>{width}}/{len(jobs)}: {shown[number - 1]}", flush=True)
        results.append(_run_job([sys.executable, "-m", "ruyi_rl", *flags, *job]))
        if results[-1] in INTERRUPTED:
            break
    for number, (words, status) in enumerate(zip(shown, results), 1):
        outcome = "done" if status == 0 else f"failed with status {status}"
        print(f"job {number:>{width}}/{len(jobs)} {outcome}: {words}")
    if results[-1] in INTERRUPTED:
        return results[-1]
    return int(any(results))


def written(config: RunConfig) -> tuple[str, str | None]:
    """The key that decides where a job writes, and the path there that no other job may write; None: none."""
    if config.stage.name == "generate":
        return "generate.output", config.generate.output
    if config.stage.name == "serve":
        return "serve.output", config.serve.output
    if config.stage.name == "export":
        return "export.output", config.export.output
    if config.stage.name == "check_reward":
        return "check_reward.output", config.check_reward.output
    if config.stage.name == "new_reward":
        return "name", config.name
    return "name", None if config.stage.name == "overview" else config.run_dir


def _run_job(command: list[str]) -> int:
    """The exit status of one job. SIGINT and SIGTERM are passed on, and the job is given the time to save."""
    with subprocess.Popen(command) as process:
        previous = {
            number: signal.signal(number, lambda received, frame: process.send_signal(received))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            status = process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return status if status >= 0 else 128 - status
