"""`hydra/sweeper=optuna`: trials that learn from those before, kept on the disk, so that the same command goes on.

hydra-optuna-sweeper hands its trials to Hydra's launchers, which run them in this process, and pins an optuna whose
studies today's SQLAlchemy cannot store: its spelling is kept, and optuna itself is asked.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ruyi_rl.cli.sweep.jobs import Job, split_sweep
from ruyi_rl.cli.sweep.options import OptunaSweeper
from ruyi_rl.cli.sweep.search_space import distribution, grid_size, make_sampler
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import ORDER, chain
from ruyi_rl.refusal import Refusal
from ruyi_rl.report.summary_values import found_values, number_paths
from ruyi_rl.run_folder import StageFolder, write_text

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

METRICS = {"grpo": "exits.*.pass_after", "compress": "exits.*.pass_after"}
"""Stage -> what is optimised where nothing is named; for the others `METRIC`."""
METRIC = "exits.*.pass"


@dataclass
class Search:
    """A study and what each of its trials runs.

    Args:
        study: optuna's.
        space: override -> its values.
        plain: overrides that all trials share.
        options: `hydra.sweeper`.
        sampler: its name.
        seed: of the sampler.
    """

    study: optuna.Study
    space: dict[str, BaseDistribution]
    plain: list[str]
    options: OptunaSweeper
    sampler: str
    seed: int

    @property
    def trials(self) -> int:
        """How many there are to be."""
        size = grid_size(self.space) if self.sampler == "grid" else self.options.n_trials
        return min(size, self.options.n_trials)

    def next(self, count: int, without: set[int]) -> list[Job]:
        """The next jobs: trials of an earlier start that have not ended, then new ones.

        Args:
            count: most jobs.
            without: numbers of jobs that this start has given up.
        """
        from optuna.trial import TrialState

        open_trials = [each for each in self.study.get_trials(deepcopy=False) if each.state == TrialState.RUNNING]
        for each in [each for each in open_trials if each.params.keys() != self.space.keys()]:
            open_trials.remove(each)  # killed while it was drawn
            self.study.tell(each.number, state=TrialState.FAIL)
        jobs = [self.job(each.number, each.params) for each in open_trials if each.number + 1 not in without][:count]
        while len(jobs) < count and (number := len(self.study.trials)) < self.trials:
            # Anew for each trial, so that a study that goes on draws what it would have drawn.
            self.study.sampler = make_sampler(self.sampler, self.options, self.seed + number, self.space)
            trial = self.study.ask(self.space)
            jobs.append(self.job(trial.number, trial.params))
        return jobs

    def ended(self) -> set[int]:
        """Numbers of the jobs whose trials the study knows the end of."""
        return {each.number + 1 for each in self.study.get_trials(deepcopy=False) if each.state.is_finished()}

    def best(self) -> tuple[int, float, list[str]] | None:
        """The best trial so far: its job's number, its value, its overrides."""
        from optuna.trial import TrialState

        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return None
        best = self.study.best_trial
        return best.number + 1, best.value, self.job(best.number, best.params).swept

    def write_best(self, folder: Path) -> None:
        """Writes `optimization_results.yaml`, as hydra-optuna-sweeper does."""
        if (best := self.best()) is not None:
            number, value, _ = best
            found = {"name": "optuna", "best_params": self.study.best_trial.params, "best_value": value, "job": number}
            write_text(folder / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create(found)))

    def job(self, number: int, params: dict[str, Any]) -> Job:
        swept = [f"{key}={value}" for key, value in params.items()]
        return Job(number + 1, [*self.plain, *swept], swept)

    def tell(self, job: Job, value: float | None) -> None:
        """Tells the study a trial's value; None: it failed."""
        from optuna.trial import TrialState

        if value is None:
            self.study.tell(job.number - 1, state=TrialState.FAIL)
            return
        try:
            self.study.tell(job.number - 1, value)
        except RuntimeError as error:
            if "Study.stop" not in str(error):  # how a grid says that this was its last point
                raise


def open_search(options: OptunaSweeper, sampler: str, overrides: list[str], folder: Path, seed: int) -> Search:
    """The study in the sweep's folder, new or as an earlier start left it.

    Raises:
        Refusal: nothing to search in, a study of another search, no optuna, or a storage that it does not take.
    """
    try:
        import optuna
    except ImportError:
        raise Refusal("hydra/sweeper", "optuna is not installed", "pip install 'ruyi_rl[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plain, swept = split_sweep(overrides)
    if not swept:
        raise Refusal("hydra/sweeper", "nothing to search in", "values such as 'key=interval(1e-6,1e-4)' or key=a,b")
    space = {override.get_key_element(): distribution(override) for override in swept}
    make_sampler(sampler, options, seed, space)  # what it cannot draw from is refused before a study is made
    storage = options.storage or f"sqlite:///{folder / 'study.db'}"
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=options.study_name or folder.name,
            direction=options.direction,
            load_if_exists=True,
        )
    except Exception as error:  # noqa: BLE001 - whatever SQLAlchemy says of a URL
        reason = str(error).partition("\n")[0]
        raise Refusal("hydra.sweeper.storage", f"{storage}: {reason}", "sqlite:///<file>.db") from None
    known = {name: each for trial in study.get_trials(deepcopy=False) for name, each in trial.distributions.items()}
    if study.direction.name.lower() != options.direction or not known.items() <= space.items():
        problem = f"{study.study_name} in {storage} searches in other values, or in another direction"
        raise Refusal("hydra.sweeper.study_name", problem, "another name, or the values that it was begun with")
    return Search(study, space, [override.input_line for override in plain], options, sampler, seed)


def metric_of(options: OptunaSweeper, config: RunConfig) -> str:
    """The dotted path that is optimised."""
    return options.metric or METRICS.get(last_stage(config), METRIC)


def last_stage(config: RunConfig) -> str:
    return chain(config)[-1]


def result(config: RunConfig, metric: str) -> float:
    """The mean of what the metric leads to in the run's summary.

    Raises:
        Refusal: it leads nowhere.
    """
    folder = StageFolder(Path(config.run_dir) / last_stage(config))
    summary = folder.summary()
    values = found_values(summary, metric)
    if not values:
        there = [path for path in number_paths(summary) if path.startswith("exits.")] or number_paths(summary)
        raise Refusal(
            "hydra.sweeper.metric",
            f"{metric!r} leads to no number in {folder.path / 'summary.json'}",
            f"for instance {', '.join(there[:6])}; * for the mean over all",
        )
    return statistics.fmean(values.values())


def check_stage(config: RunConfig) -> None:
    """Refuse to search by what leaves no summary, or starts over what the study knows."""
    if config.fresh:
        raise Refusal("fresh", "a search goes on with its study", "another hydra.sweep.dir for another search")
    if config.stage.name not in (*ORDER, "pipeline"):
        raise Refusal("stage", f"{config.stage.name} leaves no result to search by", "a stage of training, or eval")
