"""Sweeps through submitit: the script for SLURM, and jobs that really run, here and under a SLURM of forty lines."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ruyi_rl.cli.compose import ConfigSource
from ruyi_rl.cli.sweep import submitted
from ruyi_rl.cli.sweep.jobs import sweep_jobs
from ruyi_rl.cli.sweep.record import read_sweep
from ruyi_rl.cli.sweep.run import run_sweep
from ruyi_rl.cli.sweep.settings import sweep_settings
from ruyi_rl.cli.sweep.submitted import SubmittedJob, check_submitted, executor
from ruyi_rl.refusal import Refusal

pytest.importorskip("submitit")

# Submitit takes its script away once sbatch has returned, so that the jobs read a copy.
SBATCH = """#!/bin/bash
cp "$1" "$FAKE_SLURM/script.sh"
echo >> "$FAKE_SLURM/submitted"
id=$((100 * $(wc -l < "$FAKE_SLURM/submitted")))
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_ARRAY_JOB_ID=$id
for task in $(seq 0 "$last"); do
    SLURM_JOB_ID=$((id + task)) SLURM_ARRAY_TASK_ID=$task bash "$FAKE_SLURM/script.sh" > /dev/null 2>&1 &
done
echo Submitted batch job $id
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    case $1 in --output|--error) shift 2;; *) shift;; esac
done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A queue that runs every job at once; its folder holds the script that was submitted."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/bash\necho 'JobID|State'\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setitem(submitted.LOOK_SECONDS, submitted.SLURM, 0.2)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    return folder


SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2"]
SLURM += ["hydra.launcher.timeout_min=90", "hydra.launcher.mem_gb=1.5", "hydra.launcher.array_parallelism=3"]
SLURM += ["hydra.launcher.additional_parameters={mail-type: END}", "hydra.launcher.setup=[module load cuda]"]


def test_the_script_says_what_was_typed(slurm, tmp_path):
    settings, rest = sweep_settings(["stage=grpo", "seed=1,2", *SLURM], ConfigSource())
    check_submitted(sweep_jobs(rest), settings)
    script = executor(settings, tmp_path)._executor._make_submission_file_text("the command", "id")
    flags = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in script.splitlines() if "#SBATCH" in line
    )
    assert (flags["partition"], flags["gpus-per-node"], flags["time"]) == ("gpu", "2", "90")
    assert (flags["mem"], flags["mail-type"], flags["job-name"]) == ("1536MB", "END", "ruyi_rl")
    assert flags["signal"] == "USR2@120" and flags["ntasks-per-node"] == "1"
    assert "module load cuda" in script.splitlines() and "the command" in script
    assert str(tmp_path / ".submitit" / "%j") in flags["output"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.launcher.tasks_per_node=2", "num_processes=4"], "num_processes: 4, and 2 tasks"),
        (["hydra.launcher.gpus_per_node=2", "num_processes=4"], "gpus_per_node: 2, for 4 ranks"),
        (["hydra.launcher.gpus_per_task=1", "hydra.launcher.tasks_per_node=2"], "gpus_per_task"),
        (["hydra/launcher=submitit_local", "hydra.launcher.nodes=2"], "hydra.launcher.nodes: 2"),
    ],
)
def test_what_jobs_would_die_of_is_refused(words, message, slurm):
    words = words if "hydra/launcher=submitit_local" in words else ["hydra/launcher=submitit_slurm", *words]
    settings, rest = sweep_settings(["stage=grpo", "seed=1,2", *words], ConfigSource())
    jobs = sweep_jobs(rest)
    for job in jobs:
        job.ranks = 4 if "num_processes=4" in words else 1
    with pytest.raises(Refusal, match=message):
        check_submitted(jobs, settings)


def test_without_slurm_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings, rest = sweep_settings(["stage=grpo", "seed=1,2", "hydra/launcher=submitit_slurm"], ConfigSource())
    with pytest.raises(Refusal, match="no sbatch and no srun here"):
        check_submitted(sweep_jobs(rest), settings)


def test_a_job_whose_time_is_up_saves_and_is_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    log, again = tmp_path / "job-1.log", []
    job = SubmittedJob([sys.executable, "-c", code], str(log))
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, lambda *_: again.append(job.checkpoint()))

    def time_is_up():
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

    threading.Thread(target=time_is_up, daemon=True).start()
    try:
        assert job() == 143
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert log.read_text() == "ready\nsaved\n"
    (submission,) = again
    assert submission.function.command == job.command and submission.function.process is None


def test_a_job_of_this_machine_ends_with_a_sweep_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    log, sweep = tmp_path / "job-1.log", subprocess.Popen(["sleep", "60"])
    code = "trap 'kill $!; echo saved; exit 143' TERM; sleep 60 & echo ready; wait"
    job = SubmittedJob(["bash", "-c", code], str(log), sweep.pid)
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def kill():
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.02)
        sweep.kill()
        sweep.wait()

    threading.Thread(target=kill, daemon=True).start()
    try:
        assert job() == 143
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert log.read_text() == "ready\nsaved\n"


@pytest.mark.slow
def test_jobs_of_a_queue_end_by_themselves_and_the_same_command_goes_on(fake_jobs, slurm, tmp_path):
    words = ["stage=grpo", "grpo.trainer.beta=0.1,0.3,0.9", "rollout=transformers", "hydra.sweep.dir=out", *SLURM]
    assert run_sweep(words, ConfigSource(), []) == 1
    jobs = read_sweep(tmp_path / "out")[0]
    assert [(job.status, job.exit_status) for job in jobs] == [("killed", 137), ("done", 0), ("failed", 1)]
    assert jobs[2].message == "grpo failed: beta is 0.9"
    assert "#SBATCH --array=0-2%3" in (slurm / "script.sh").read_text()
    assert "job 0.3 on" in (tmp_path / "out" / "job-2.log").read_text()
    assert run_sweep(words, ConfigSource(), []) == 1
    assert [job.status for job in read_sweep(tmp_path / "out")[0]] == ["done", "done", "failed"]
    assert "#SBATCH --array=0-1%2" in (slurm / "script.sh").read_text()


@pytest.mark.slow
def test_a_signal_stops_jobs_of_this_machine(fake_jobs, tmp_path):
    def interrupt():
        while not Path(tmp_path / "waiting").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    words = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=1", "hydra.sweep.dir=out"]
    assert run_sweep(["stage=grpo", "grpo.trainer.beta=0.5", "rollout=transformers", *words], ConfigSource(), []) == 130
    assert [job.status for job in read_sweep(tmp_path / "out")[0]] == ["interrupted"]
