"""`hydra/sweeper=optuna`: what is drawn, what is told, and that a study goes on as if nothing had stopped it."""

import pytest

from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config
from ruyi_rl.cli.overrides import parse_overrides
from ruyi_rl.cli.sweep.options import OptunaSweeper, Sampler, TPESampler
from ruyi_rl.cli.sweep.record import read_sweep
from ruyi_rl.cli.sweep.run import run_sweep
from ruyi_rl.cli.sweep.search import metric_of, open_search, result
from ruyi_rl.cli.sweep.search_space import distribution, grid
from ruyi_rl.refusal import Refusal
from ruyi_rl.run_folder import write_json

optuna = pytest.importorskip("optuna")


def space_of(line):
    (override,) = parse_overrides([line])
    return distribution(override)


def test_overrides_are_distributions():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    assert space_of("a=interval(1e-6,1e-4)") == FloatDistribution(1e-6, 1e-4)
    assert space_of("a=tag(log,interval(1e-6,1e-4))") == FloatDistribution(1e-6, 1e-4, log=True)
    assert space_of("a=int(interval(1,8))") == IntDistribution(1, 8)
    assert space_of("a=x,y") == CategoricalDistribution(["x", "y"])
    assert space_of("a=1,2.5,null") == CategoricalDistribution([1, 2.5, "null"])
    # Hydra's own range leaves the end out.
    assert space_of("a=range(1,7,step=2)") == IntDistribution(1, 5, step=2)
    assert grid({"a": space_of("a=range(1,7,step=2)"), "b": space_of("b=x,y")}) == {"a": [1, 3, 5], "b": ["x", "y"]}


@pytest.mark.parametrize("line", ["a=interval(4,1)", "a=tag(log,interval(0.0,1.0))", "a=glob(*)"])
def test_bounds_that_make_no_distribution_are_refused(line):
    with pytest.raises(Refusal, match="^a: "):
        space_of(line)


def objective(job):
    values = dict(line.split("=") for line in job.swept)
    return -((float(values["a"]) - 3) ** 2) + (values["b"] == "y")


def drawn(folder, stops, batch=1, sampler="tpe"):
    """Overrides of all trials of a study that stops after each number of trials in `stops`; the last trial before a
    stop has not ended."""
    folder.mkdir()
    jobs = {}
    for stop in stops:
        options = OptunaSweeper(sampler=TPESampler(n_startup_trials=3), n_trials=stops[-1])
        search = open_search(options, sampler, ["a=interval(0.0,9.0)", "b=x,y"], folder, seed=5)
        while len(jobs) < stop or stop == stops[-1]:
            if not (batched := search.next(batch, set())):
                break
            jobs |= {job.number: job.swept for job in batched}
            if len(jobs) >= stop and stop != stops[-1]:
                break
            for job in batched:
                search.tell(job, objective(job))
    return jobs, search


def test_a_study_that_goes_on_draws_what_it_would_have_drawn(tmp_path):
    whole, search = drawn(tmp_path / "whole", [6])
    assert len(whole) == 6 and len({tuple(values) for values in whole.values()}) == 6
    assert drawn(tmp_path / "stopped", [2, 6])[0] == whole
    number, value, values = search.best()
    assert value == max(trial.value for trial in search.study.trials) and whole[number] == values


def test_failed_trials_are_told_and_others_stay_open(tmp_path):
    search = open_search(OptunaSweeper(sampler=Sampler(), n_trials=3), "random", ["a=interval(0,9)"], tmp_path, seed=1)
    first, second = search.next(2, set())
    search.tell(first, None)
    assert search.study.trials[0].state == optuna.trial.TrialState.FAIL
    assert [job.number for job in search.next(2, set())] == [second.number, 3]
    assert [job.number for job in search.next(2, {second.number})] == [3]
    assert search.ended() == {1} and search.best() is None


def test_a_trial_that_was_killed_while_it_was_drawn_does_not_go_on(tmp_path):
    words = ["a=interval(0,9)", "b=1,2"]
    search = open_search(OptunaSweeper(sampler=Sampler(), n_trials=2), "random", words, tmp_path, seed=1)
    search.study.ask({"a": search.space["a"]})
    assert [job.number for job in search.next(2, set())] == [2]
    assert search.study.trials[0].state == optuna.trial.TrialState.FAIL and search.ended() == {1}


def test_another_search_in_the_same_folder_is_refused_before_it_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("ruyi_rl.cli.sweep.run.open_search", lambda *arguments: asked.append(arguments))
    write_json(tmp_path / "op" / "sweep.json", {"command": "c", "name": "sft-x-0", "working_folder": "..", "jobs": []})
    words = ["stage=sft", "sft.trainer.max_steps=1,2", "hydra/sweeper=optuna", "hydra.sweep.dir=op"]
    with pytest.raises(Refusal, match="op holds another sweep: c"):
        run_sweep(words, ConfigSource(), [])
    assert not asked


def test_a_study_of_another_search_does_not_go_on(tmp_path):
    def opened(line, **options):
        return open_search(OptunaSweeper(sampler=Sampler(), **options), "random", [line, "b=x,y"], tmp_path, seed=1)

    assert len(opened("a=tag(log,interval(0.1,9))").next(1, set())) == 1
    opened("a=tag(log,interval(0.1,9))")
    for line, options in (("a=interval(0.1,8)", {}), ("a=tag(log,interval(0.1,9))", {"direction": "minimize"})):
        with pytest.raises(Refusal, match=r"hydra.sweeper.study_name: .* searches in other values, or in another"):
            opened(line, **options)


def test_a_grid_ends_with_its_last_point(tmp_path):
    search = open_search(OptunaSweeper(sampler=Sampler(), n_trials=20), "grid", ["a=1,2", "b=range(0,3)"], tmp_path, 1)
    found = []
    while jobs := search.next(2, set()):
        found += [tuple(job.swept) for job in jobs]
        for job in jobs:
            search.tell(job, 1.0)
    assert sorted(found) == sorted((f"a={a}", f"b={b}") for a in (1, 2) for b in range(3))
    with pytest.raises(Refusal, match="a grid needs"):
        open_search(OptunaSweeper(sampler=Sampler()), "grid", ["a=interval(0.0,1.0)"], tmp_path, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=grpo", "grpo.trainer.beta=0"], "nothing to search in"),
        (["stage=generate", "generate.temperature=0,1"], "no result to search by"),
        (["stage=grpo", "fresh=true", "grpo.trainer.beta=0,1"], "fresh: a search goes on"),
        (["stage=grpo", "grpo.trainer.beta=0,1", "hydra.sweeper.storage=nowhere://x"], "hydra.sweeper.storage"),
    ],
)
def test_searches_that_cannot_be_are_refused(overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=message):
        run_sweep([*overrides, "hydra/sweeper=optuna"], ConfigSource(), [])


@pytest.mark.slow
def test_a_search_by_processes_and_the_same_command_again(fake_jobs, tmp_path, capfd):
    words = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    words += ["stage=grpo", "grpo.trainer.beta=0.2,0.3,0.9", "rollout=transformers", "hydra.sweep.dir=out"]
    assert run_sweep(words, ConfigSource(), []) == 1
    jobs = {job.overrides[0].rpartition("=")[2]: job for job in read_sweep(tmp_path / "out")[0]}
    assert {beta: job.status for beta, job in jobs.items()} == {"0.2": "killed", "0.3": "done", "0.9": "failed"}
    assert jobs["0.3"].value == 0.5 and f"0.5 by job {jobs['0.3'].job}: " in capfd.readouterr().out
    # The killed trial goes on; the failed one is known to have failed.
    assert run_sweep(words, ConfigSource(), []) == 1
    jobs = {job.overrides[0].rpartition("=")[2]: job for job in read_sweep(tmp_path / "out")[0]}
    assert {beta: job.status for beta, job in jobs.items()} == {"0.2": "done", "0.3": "done", "0.9": "failed"}
    assert jobs["0.2"].value == pytest.approx(0.49)
    assert len(list((tmp_path / "attempts-0.3").iterdir())) == 1
    assert "best_value: 0.5" in (tmp_path / "out" / "optimization_results.yaml").read_text()


def test_the_result_is_the_mean_of_what_the_metric_leads_to(tmp_path):
    config = to_run_config(compose_config(["stage=grpo", f"run_dir={tmp_path}"]))
    exits = {"small": {"pass_after": 0.2, "k": 1}, "1.7B": {"pass_after": 0.6, "k": 2}}
    write_json(tmp_path / "grpo" / "summary.json", {"exits": exits, "seconds": 3})
    assert metric_of(OptunaSweeper(), config) == "exits.*.pass_after"
    assert result(config, "exits.*.pass_after") == pytest.approx(0.4)
    assert result(config, "exits.1.7B.pass_after") == 0.6 and result(config, "seconds") == 3
    with pytest.raises(Refusal, match=r"'exits.\*.pas' leads to no number.*exits.small.pass_after, exits.small.k"):
        result(config, "exits.*.pas")
