"""What `hydra.…` may say of a sweep, by the names of Hydra's own plugins. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

CLOCK = "${now:"
"""In Hydra's own `hydra.sweep.dir`, which changes with every start; here the name follows from the command."""


@dataclass
class BasicLauncher:
    """`hydra/launcher=basic`: one job after another."""


@dataclass
class JoblibLauncher:
    """`hydra/launcher=joblib`: several jobs at a time on this machine."""

    n_jobs: int = -1
    """Jobs at a time; -1: as many as there are cores, or GPUs for them; -2: one core less, and so on."""
    gpus_per_job: int | None = None
    """GPUs that a job sees; None: one for each of its ranks; 0: every job sees all of them."""


@dataclass
class SubmititLocal:
    """`hydra/launcher=submitit_local`: what `submitit_slurm` does, in processes of this machine, all jobs at once."""

    submitit_folder: str | None = None
    """Where submitit keeps its files; `%j` is the job's id. None: `<sweep folder>/.submitit/%j`."""
    timeout_min: int = 60
    """Minutes that a job may take."""
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    tasks_per_node: int = 1
    """Above 1, or on several nodes, every task is a rank of the job."""
    mem_gb: float | None = None
    """Memory on each node."""
    nodes: int = 1
    name: str = "ruyi_rl"
    """The job's name in the queue."""
    stderr_to_stdout: bool = False


@dataclass
class SubmititSlurm(SubmititLocal):
    """`hydra/launcher=submitit_slurm`: each job is one of a SLURM array."""

    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    cpus_per_gpu: int | None = None
    gpus_per_task: int | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    account: str | None = None
    signal_delay_s: int = 120
    """Seconds before its time is up in which a job saves itself."""
    max_num_timeout: int = 0
    """How often a job whose time is up goes back into the queue, to go on where it was saved."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Any other `#SBATCH` parameter: `{mail-type: END}`."""
    array_parallelism: int = 256
    """Most jobs that run at the same time."""
    setup: list[str] | None = None
    """Lines of shell before the job."""


@dataclass
class BasicSweeper:
    """`hydra/sweeper=basic`: one job for every combination of the values."""

    params: dict[str, str] | None = None
    """Key -> its values, for configuration files: what a command says besides."""


@dataclass
class Sampler:
    """`hydra/sweeper/sampler=random|grid|cmaes`."""

    seed: int | None = None
    """None: the run's `seed`."""


@dataclass
class TPESampler(Sampler):
    """`hydra/sweeper/sampler=tpe`."""

    n_startup_trials: int = 10
    """Trials drawn at random before it begins to learn."""
    n_ei_candidates: int = 24
    multivariate: bool = False


@dataclass
class OptunaSweeper:
    """`hydra/sweeper=optuna`: trials that learn from those before."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"sampler": "tpe"}])
    sampler: Any = None
    direction: str = "maximize"
    """`maximize` or `minimize`."""
    metric: str | None = None
    """What is optimised: a dotted path in the stage's summary.json, `*` for the mean over all, such as
    `exits.*.pass_after`. None: the mean over the exits of the held-out pass rate."""
    n_trials: int = 20
    """Trials in all; with a larger number the same study goes on."""
    n_jobs: int | None = None
    """Trials that are drawn before one of them is known; None: as many as the launcher runs at a time."""
    max_failure_rate: float = 1.0
    """Share of failed trials of a batch above which the sweep stops."""
    storage: str | None = None
    """Optuna's URL of a data base; None: `study.db` in the sweep folder."""
    study_name: str | None = None
    """None: the sweep folder's name."""
    params: dict[str, str] | None = None
    """Key -> its values, for configuration files: what a command says besides."""


LAUNCHERS = {
    "basic": BasicLauncher,
    "joblib": JoblibLauncher,
    "submitit_local": SubmititLocal,
    "submitit_slurm": SubmititSlurm,
}
SWEEPERS = {"basic": BasicSweeper, "optuna": OptunaSweeper}
SAMPLERS = {"tpe": TPESampler, "random": Sampler, "grid": Sampler, "cmaes": Sampler}
GROUPS = {"hydra/launcher": LAUNCHERS, "hydra/sweeper": SWEEPERS, "hydra/sweeper/sampler": SAMPLERS}
"""Config group of Hydra's -> choice -> the dataclass of its block."""


def register_sweep_groups() -> None:
    """Tell Hydra of the launchers, sweepers and samplers, so that configuration files may choose them too."""
    store = ConfigStore.instance()
    for group, choices in GROUPS.items():
        for name, node in choices.items():
            if name != "basic":  # Hydra has these
                store.store(group=group, name=name, node=node)
