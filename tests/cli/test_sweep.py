"""Sweeps: which jobs there are, one process each, a failed one does not stop the others."""

import sys

import pytest

from ruyi_rl.cli import sweep
from ruyi_rl.cli.compose import ConfigSource, working_conf
from ruyi_rl.refusal import Refusal


def test_jobs_are_all_combinations():
    jobs = sweep.sweep_jobs(["stage=grpo", "seed=1,2", "grpo.trainer.beta=choice(0.0,0.1)", "~grpo.trainer.max_steps"])
    plain = ["stage=grpo", "~grpo.trainer.max_steps"]
    assert jobs == [[*plain, f"seed={seed}", f"grpo.trainer.beta={beta}"] for seed in (1, 2) for beta in ("0.0", "0.1")]


def test_ranges_and_single_jobs():
    assert sweep.sweep_jobs(["seed=range(1,4)"]) == [["seed=1"], ["seed=2"], ["seed=3"]]
    assert sweep.sweep_jobs(["seed=5"]) == [["seed=5"]]


@pytest.mark.parametrize("override", ["seed=interval(1,2)", "model=glob(*)"])
def test_sweeps_without_a_list_are_refused(override):
    with pytest.raises(Refusal, match="enumerated"):
        sweep.sweep_jobs([override])


def test_one_refused_job_refuses_the_sweep_before_any_job_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_run_job", lambda command: pytest.fail("a job was started"))
    with pytest.raises(Refusal, match="'foo'"):
        sweep.run_sweep(["stage=init", "seed=1,2", "model.dtype=float32,foo"], ConfigSource(), [])


def test_jobs_that_share_a_folder_are_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="jobs 1 and 2"):
        sweep.run_sweep(["stage=init", "name=same", "seed=1,2"], ConfigSource(), [])


def test_jobs_of_a_tool_may_read_one_run_but_not_write_one_file(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_run_job", lambda command: 0)
    monkeypatch.setattr(sweep, "validate", lambda config: None)
    jobs = ["stage=generate", "name=trained", "generate.prompt=one, two", "generate.temperature=0,1"]
    assert sweep.run_sweep(jobs, ConfigSource(), []) == 0
    assert "job 2/2 done: stage=generate name=trained generate.prompt=one, two" in capfd.readouterr().out
    with pytest.raises(Refusal, match="generate.output: jobs 1 and 2"):
        sweep.run_sweep([*jobs, "generate.output=x.jsonl"], ConfigSource(), [])


@pytest.mark.parametrize(
    ("jobs", "key"),
    [
        (["stage=check_reward", "reward=math,format", "check_reward.output=o.json"], "check_reward.output"),
        (["stage=new_reward", "name=mine", "new_reward.kind=plain,group"], "name"),
    ],
)
def test_jobs_for_a_rewards_author_may_not_write_one_file(monkeypatch, tmp_path, jobs, key):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_run_job", lambda command: 0)
    with pytest.raises(Refusal, match=f"{key}: jobs 1 and 2"):
        sweep.run_sweep(jobs, ConfigSource(), [])
    apart = [line.replace("name=mine", "name=mine,other").replace("o.json", "${reward.name}.json") for line in jobs]
    assert sweep.run_sweep([line for line in apart if "kind" not in line], ConfigSource(), []) == 0


def test_a_failed_job_does_not_stop_the_others(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    commands = []

    def run_job(command):
        commands.append(command)
        return 1 if "seed=2" in command else 0

    monkeypatch.setattr(sweep, "_run_job", run_job)
    status = sweep.run_sweep(["stage=init", "seed=1,2,3"], ConfigSource(), ["--config-dir", "mine"])
    assert status == 1
    head = [sys.executable, "-m", "ruyi_rl", "--config-dir", "mine", "stage=init"]
    assert commands == [[*head, f"seed={seed}"] for seed in (1, 2, 3)]
    lines = capfd.readouterr().out.splitlines()[-3:]
    assert ["failed with status 1" in line for line in lines] == [False, True, False]
    assert not list(tmp_path.iterdir())


def test_an_interrupted_job_ends_the_sweep(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    statuses = iter([0, 130])
    monkeypatch.setattr(sweep, "_run_job", lambda command: next(statuses))
    assert sweep.run_sweep(["stage=init", "seed=1,2,3"], ConfigSource(), []) == 130


def test_job_status_passes_through():
    assert sweep._run_job([sys.executable, "-c", "import sys; sys.exit(3)"]) == 3
    assert sweep._run_job([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]) == 137


def test_signals_reach_the_job():
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)\n"
    )
    assert sweep._run_job([sys.executable, "-c", code]) == 143


def test_jobs_read_the_conf_of_the_folder_in_which_they_are_started(tmp_path, monkeypatch, capfd):
    (tmp_path / "conf" / "reward").mkdir(parents=True)
    text = "name: mine\nfunctions:\n  mine: {path: rewards/format.py}\n"
    (tmp_path / "conf" / "reward" / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert sweep.run_sweep(["stage=overview", "reward=mine"], ConfigSource(working=working_conf()), []) == 0
    assert "job 1/1 done: stage=overview reward=mine" in capfd.readouterr().out
