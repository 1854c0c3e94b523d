"""`hydra.…` of a sweep: by Hydra's spelling, from the command or from a configuration file."""

import pytest

from ruyi_rl.cli.compose import ConfigSource
from ruyi_rl.cli.sweep.settings import sweep_settings
from ruyi_rl.refusal import Refusal


def test_defaults():
    settings, rest = sweep_settings(["stage=grpo", "seed=1,2"], ConfigSource())
    assert (settings.launcher, settings.folder, settings.search) == ("basic", None, None)
    assert rest == ["stage=grpo", "seed=1,2"]


def test_launchers_and_sweepers():
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=8"]
    words += ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=7", "hydra.sweeper.sampler.n_startup_trials=3"]
    words += ["hydra.launcher.additional_parameters={mail-type: END}", "hydra.sweep.dir=here"]
    settings, rest = sweep_settings(["stage=grpo", *words, "seed=1,2"], ConfigSource())
    assert rest == ["stage=grpo", "seed=1,2"]
    assert (settings.launching.partition, settings.launching.gpus_per_node) == ("gpu", 8)
    assert settings.launching.additional_parameters == {"mail-type": "END"}
    assert (settings.search.n_trials, settings.search.sampler.n_startup_trials) == (7, 3)
    assert (settings.sampler, settings.folder) == ("tpe", "here")
    settings, _ = sweep_settings(["hydra/sweeper=optuna", "hydra/sweeper/sampler=random"], ConfigSource())
    assert settings.sampler == "random"


def test_a_configuration_file_may_say_how_it_is_swept(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/launcher: joblib\n"
        "hydra: {launcher: {n_jobs: 3}, sweeper: {params: {seed: '1,2', grpo.trainer.beta: '0,1'}}}\n"
    )
    settings, rest = sweep_settings(["experiment=mine", "seed=4,5"], ConfigSource(tmp_path))
    assert (settings.launcher, settings.launching.n_jobs) == ("joblib", 3)
    assert rest == ["grpo.trainer.beta=0,1", "experiment=mine", "seed=4,5"]


REFUSED = {
    "hydra/launcher=slurm": "hydra/launcher: 'slurm'",
    "hydra/launcher=basic,joblib": "several values",
    "hydra.launcher.n_jobs=2": "hydra/launcher=joblib has it",
    "hydra.sweeper.n_trials=2": "hydra/sweeper=optuna has it",
    "hydra.run.dir=x": "no effect here",
    "hydra.sweep.subdir=x": "run_dir",
    "hydra.sweep.dir='s/${now:%Y}'": "changes with every start",
    "hydra.mode=MULTIRUN": "no effect here",
}


@pytest.mark.parametrize("word", REFUSED)
def test_refused(word):
    with pytest.raises(Refusal, match=REFUSED[word]):
        sweep_settings(["stage=grpo", word], ConfigSource())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_job=2"], "did you mean 'n_jobs'"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=x"], "hydra.launcher.n_jobs: 'x'.*int"),
        (["hydra/sweeper=optuna", "hydra.sweeper.direction=up"], "maximize or minimize"),
        (["hydra/sweeper=optuna", "hydra.sweeper.sampler.seeds=1"], "did you mean 'seed'|seed"),
    ],
)
def test_refused_of_a_choice(words, message):
    with pytest.raises(Refusal, match=message):
        sweep_settings(words, ConfigSource())
