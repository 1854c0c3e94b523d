"""Sweeps: which jobs there are, one process each, what ends takes nothing along, the same command goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from ruyi_rl.cli.compose import ConfigSource, compose_config, to_run_config, working_conf
from ruyi_rl.cli.sweep import local
from ruyi_rl.cli.sweep.jobs import check_folders, sweep_jobs, sweep_name
from ruyi_rl.cli.sweep.record import SweepRecord, read_sweep
from ruyi_rl.cli.sweep.run import run_sweep
from ruyi_rl.refusal import Refusal


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The commands of the jobs that were started; none runs. `statuses`: what the n-th ends with, where not 0."""
    monkeypatch.chdir(tmp_path)
    jobs = Started()

    def run_job(command, log, environment, stop, follow):
        jobs.commands.append(command)
        return jobs.statuses.get(len(jobs.commands), 0)

    monkeypatch.setattr(local, "run_job", run_job)
    return jobs


@dataclass
class Started:
    commands: list[list[str]] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)


def test_jobs_are_all_combinations():
    jobs = sweep_jobs(["stage=grpo", "seed=1,2", "grpo.trainer.beta=choice(0.0,0.1)", "~grpo.trainer.max_steps"])
    plain = ["stage=grpo", "~grpo.trainer.max_steps"]
    pairs = [[f"seed={seed}", f"grpo.trainer.beta={beta}"] for seed in (1, 2) for beta in ("0.0", "0.1")]
    assert [job.overrides for job in jobs] == [[*plain, *pair] for pair in pairs]
    assert [job.swept for job in jobs] == pairs and [job.number for job in jobs] == [1, 2, 3, 4]


def test_ranges_and_single_jobs():
    assert [job.overrides for job in sweep_jobs(["seed=range(1,4)"])] == [["seed=1"], ["seed=2"], ["seed=3"]]
    assert [job.overrides for job in sweep_jobs(["seed=5"])] == [["seed=5"]]


@pytest.mark.parametrize("override", ["seed=interval(1,2)", "model=glob(*)"])
def test_sweeps_without_a_list_are_refused(override):
    with pytest.raises(Refusal, match="enumerated"):
        sweep_jobs([override])


@pytest.mark.parametrize("word", ["seed=range(1,1)", "seed=shuffle(range(1,4,-1))", "seed=range(1,4,0)"])
def test_ranges_without_a_value_or_an_end_are_refused(word):
    with pytest.raises(Refusal, match=r"seed: .*never gets from its start to its end"):
        sweep_jobs(["stage=sft", word])
    assert [job.swept for job in sweep_jobs(["seed=range(3,1,-1)"])] == [["seed=3"], ["seed=2"]]


def test_a_sweeps_name_follows_from_what_decides_its_jobs():
    lines, keys = ["stage=grpo", "seed=1,2", "a.learning_rate=1e-5,1e-6"], ["seed", "a.learning_rate"]
    name = sweep_name(lines, keys, "grpo")
    assert name.startswith("grpo-seed-learning_rate-")
    assert sweep_name([*reversed(lines[:2]), lines[2], "fresh=true"], keys, "grpo") == name
    assert sweep_name([*lines[:2], "a.learning_rate=1e-5,1e-7"], keys, "grpo") != name
    assert sweep_name(lines, keys, "grpo", {"metric": "x"}) != name


def test_a_sweep_of_refused_jobs_is_refused(started, tmp_path):
    with pytest.raises(Refusal, match="'foo'"):
        run_sweep(["stage=init", "seed=1,2", "model.dtype=foo"], ConfigSource(), [])
    assert not started.commands and not list(tmp_path.iterdir())


def test_a_sweep_is_no_rank(started, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refusal, match="^-m: a launcher has made this one of 2 ranks"):
        run_sweep(["stage=init", "seed=1,2"], ConfigSource(), [])


def test_a_refused_job_is_listed_and_the_others_run(started, capfd):
    assert run_sweep(["stage=init", "model.dtype=float32,foo"], ConfigSource(), []) == 1
    assert [command[-1] for command in started.commands] == ["model.dtype=float32"]
    printed = capfd.readouterr().out
    assert "job 1/2 done: model.dtype=float32" in printed
    assert printed.count("job 2/2 cannot run: model.dtype: 'foo'") == 1 and "job 2/2 refused with status 2" in printed


def test_jobs_that_share_a_folder_are_refused(started):
    with pytest.raises(Refusal, match="jobs 1 and 2"):
        run_sweep(["stage=init", "name=same", "seed=1,2"], ConfigSource(), [])


@pytest.fixture(scope="module")
def composed():
    return to_run_config(compose_config(["stage=init", "run_dir=run"], ConfigSource()))


def checked_folders(composed, *words):
    """`check_folders` of jobs whose configurations differ from `composed` as the overrides say."""
    jobs = sweep_jobs(list(words))
    for job in jobs:
        job.config = deepcopy(composed)
        for key, _, value in (line.partition("=") for line in job.overrides):
            block, _, name = ("stage.name" if key == "stage" else key).rpartition(".")
            setattr(getattr(job.config, block) if block else job.config, name, yaml.safe_load(value))
    check_folders(jobs)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["num_processes=1,2"], r"num_processes does not enter the default name: name='x-\$\{num_processes\}'"),
        (["stage=init,sft"], r"stage does not enter the default name: name='x-\$\{stage.name\}'"),
        (["name=same", "seed=1,2"], "leave name and run_dir to the defaults"),
        (["seed=1,1"], "they are the same"),
    ],
)
def test_a_shared_folder_is_refused_with_what_keeps_the_jobs_apart(composed, words, remedy):
    with pytest.raises(Refusal, match=f"^name: jobs 1 and 2 would both write run .{remedy}"):
        checked_folders(composed, *words)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["stage=export", "export.license=mit,apache-2.0"], "run/export/*-merged"),
        (["stage=export", "export.exit=[a,b],b"], "run/export/b-merged"),
        (["stage=export", "export.format=ruyi", "export.license=mit,apache-2.0"], "run/export/ruyi"),
        (["stage=serve", "serve.exit=a", "serve.port=1,2"], "run/serve/a"),
    ],
)
def test_jobs_may_not_export_to_one_folder(composed, words, place):
    with pytest.raises(Refusal, match=re.escape(f"jobs 1 and 2 would both write {place} (")):
        checked_folders(composed, *words)
    checked_folders(composed, words[0], f"{words[0].removeprefix('stage=')}.exit=a,b")


def test_jobs_of_a_tool_may_read_one_run_but_not_write_one_file(started, monkeypatch, capfd):
    monkeypatch.setattr("ruyi_rl.cli.sweep.jobs.validate", lambda config: None)
    jobs = ["stage=generate", "name=trained", "generate.prompt=one, two", "generate.temperature=0,1"]
    assert run_sweep(jobs, ConfigSource(), []) == 0
    assert "job 2/2 done: generate.temperature=1" in capfd.readouterr().out
    with pytest.raises(Refusal, match=r"generate.output: jobs 1 and 2"):
        run_sweep([*jobs, "generate.output=x.jsonl"], ConfigSource(), [])
    with pytest.raises(Refusal, match="push_to: jobs 1 and 2 would both write me/x"):
        run_sweep(["stage=export", "export.format=merged,family", "push_to=me/x"], ConfigSource(), [])


@pytest.mark.parametrize(
    ("jobs", "key"),
    [
        (["stage=check_reward", "reward=math,format", "check_reward.output=o.json"], "check_reward.output"),
        (["stage=new_reward", "name=mine", "new_reward.kind=plain,group"], "name"),
    ],
)
def test_jobs_for_a_rewards_author_may_not_write_one_file(started, jobs, key):
    with pytest.raises(Refusal, match=f"{key}: jobs 1 and 2"):
        run_sweep(jobs, ConfigSource(), [])
    apart = [line.replace("name=mine", "name=mine,other").replace("o.json", "${reward.name}.json") for line in jobs]
    assert run_sweep([line for line in apart if "kind" not in line], ConfigSource(), []) == 0


def test_a_failed_job_does_not_stop_the_others(started, tmp_path, capfd):
    started.statuses = {2: 1}
    assert run_sweep(["stage=init", "seed=1,2,3", "hydra.sweep.dir=here"], ConfigSource(), ["--config-dir", "x"]) == 1
    head = [sys.executable, "-m", "ruyi_rl", "--config-dir", "x", "stage=init"]
    assert started.commands == [[*head, f"seed={seed}"] for seed in (1, 2, 3)]
    jobs, _ = read_sweep(tmp_path / "here")
    assert [(job.status, job.exit_status) for job in jobs] == [("done", 0), ("failed", 1), ("done", 0)]
    assert [job.log for job in jobs] == ["job-1.log", "job-2.log", "job-3.log"]
    assert "python -m ruyi_rl --config-dir x stage=init seed=3" in (tmp_path / "here" / "job-3.log").read_text()
    assert "The same command goes on" in capfd.readouterr().out


def test_a_job_that_refuses_itself_is_not_given_up(started, monkeypatch, capfd):
    started.statuses = {1: 2}
    said = "runs/x is in use by process 1"
    monkeypatch.setattr(local, "last_message", lambda log, start, status: said if status else None)
    assert run_sweep(["stage=init", "seed=1,2"], ConfigSource(), []) == 1
    printed = capfd.readouterr().out
    assert f"job 1/2 failed with status 2 ({said})" in printed and "The same command goes on" in printed


def test_jobs_read_the_conf_of_the_folder_in_which_they_are_started(tmp_path, monkeypatch, capfd):
    (tmp_path / "conf" / "reward").mkdir(parents=True)
    text = "name: mine\nfunctions:\n  mine: {path: rewards/format.py}\n"
    (tmp_path / "conf" / "reward" / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert run_sweep(["stage=overview", "reward=mine"], ConfigSource(working=working_conf()), []) == 0
    assert "job 1/1 done" in capfd.readouterr().out


BETAS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9, 1.0)
COMMAND = ["stage=grpo", f"grpo.trainer.beta={','.join(map(str, BETAS))}", "rollout=transformers"]


@pytest.mark.slow
def test_killed_jobs_are_finished_by_the_same_command_and_failing_ones_are_listed(
    fake_jobs, monkeypatch, tmp_path, capfd
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = [*COMMAND, "hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "hydra.sweep.dir=out"]
    assert run_sweep(command, ConfigSource(), []) == 1
    jobs = {beta: job for beta, job in zip(BETAS, read_sweep(tmp_path / "out")[0])}
    assert [beta for beta, job in jobs.items() if job.status == "done"] == [0.3, 0.4, 0.6, 0.7, 1.0]
    assert [(jobs[beta].status, jobs[beta].exit_status) for beta in (0.1, 0.2)] == [("killed", 137)] * 2
    assert jobs[0.9].message == "grpo failed: beta is 0.9"
    printed = capfd.readouterr().out
    assert "2 at a time, not 3: 2 GPUs, and 1 for each job" in printed and "grpo failed: beta is 0.9" in printed
    logs = "".join((tmp_path / "out" / job.log).read_text() for job in jobs.values())
    seen = re.findall(r"^job \S+ on (\d+) with (\d+)$", logs, re.MULTILINE)
    assert len(seen) == 8 and {device for device, _ in seen} == {"4", "7"}
    assert {threads for _, threads in seen} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    assert run_sweep(command, ConfigSource(), []) == 1
    jobs = {beta: job for beta, job in zip(BETAS, read_sweep(tmp_path / "out")[0])}
    assert [beta for beta, job in jobs.items() if job.status != "done"] == [0.9]
    # What was done was not started again.
    attempts = {beta: len(list((tmp_path / f"attempts-{beta}").iterdir())) for beta in BETAS if beta != 0.9}
    assert attempts == {beta: 2 if beta in (0.1, 0.2) else 1 for beta in attempts}
    assert "7 of 8 jobs are done" in capfd.readouterr().out


@pytest.mark.slow
def test_a_signal_stops_the_running_job_and_starts_no_other(fake_jobs, tmp_path):
    def interrupt():
        while not (tmp_path / "waiting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    command = ["stage=grpo", "grpo.trainer.beta=0.5,0.3", "rollout=transformers", "hydra.sweep.dir=out"]
    assert run_sweep(command, ConfigSource(), []) == 143
    assert [job.status for job in read_sweep(tmp_path / "out")[0]] == ["interrupted", "waiting"]


@pytest.mark.slow
def test_jobs_end_with_a_sweep_that_is_killed(tmp_path):
    """Not by SIGKILL, but told to stop, so that they save."""
    code = (
        "import signal, sys, time\n"
        "from ruyi_rl.cli.sweep.process import end_with_sweep\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w').close(), sys.exit(143)))\n"
        "end_with_sweep()\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import sys\nfrom pathlib import Path\n"
        "from ruyi_rl.cli.sweep.process import SweepStop, run_job\n"
        f"run_job([sys.executable, '-c', {code!r}], Path('log'), {{}}, SweepStop())\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=environment)
    assert appears(tmp_path / "ready"), (tmp_path / "log").read_text()
    process.kill()
    process.wait()
    assert appears(tmp_path / "saved")


def appears(path: Path, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return path.exists()


def record_of(folder, name, *words):
    record = SweepRecord(folder, f"command of {name}", name)
    for job in sweep_jobs(list(words)):
        record.add(job)
    record.write()
    return record


def test_the_jobs_in_another_order_are_the_same_jobs(tmp_path):
    words = ["seed=1,2", "grpo.trainer.beta=0.1,0.2"]
    first = record_of(tmp_path, "init-seed-beta-abcdef", *words)
    for number in first.jobs:
        first.change(number, seconds=float(number), queue_id=f"q{number}")
    again = record_of(tmp_path, "init-beta-seed-abcdef", *reversed(words))
    known = {tuple(sorted(job.overrides)): (job.seconds, job.queue_id, job.log) for job in first.jobs.values()}
    assert {tuple(sorted(job.overrides)): (job.seconds, job.queue_id, job.log) for job in again.jobs.values()} == known
    assert again.jobs[2].log == "job-3.log"


def test_another_sweeps_folder_is_refused(tmp_path):
    record_of(tmp_path, "sft-seed-aaaaaa", "seed=1,2")
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(Refusal, match=r"hydra.sweep.dir: .* holds another sweep: command of sft-seed-aaaaaa"):
        record_of(tmp_path, "sft-seed-bbbbbb", "seed=3,4")
    assert (tmp_path / "sweep.json").read_bytes() == before
    record_of(tmp_path, "grpo-seed-aaaaaa", "seed=1,2")  # as where the job that gave the stage's name is refused now


def test_the_record_tells_where_runs_lie_from_any_folder(started, tmp_path, monkeypatch):
    assert run_sweep(["stage=init", "seed=1,2", "hydra.sweep.dir=a/b"], ConfigSource(), []) == 0
    assert read_sweep(Path("a/b"))[1] == Path()
    monkeypatch.chdir("/")
    assert read_sweep(tmp_path / "a" / "b")[1] == tmp_path
    stored = json.loads((tmp_path / "a" / "b" / "sweep.json").read_text())
    assert stored["command"].endswith("-m stage=init seed=1,2 hydra.sweep.dir=a/b")
    assert stored["name"].startswith("init-seed-")
