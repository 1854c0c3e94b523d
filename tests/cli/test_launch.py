"""`num_processes=n`: ranks under torch's launcher, their exit status, signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ruyi_rl.cli.launch import is_rank, needs_launch
from ruyi_rl.config import RunConfig


def test_only_a_process_that_is_no_rank_launches(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not needs_launch(RunConfig())
    assert needs_launch(RunConfig(num_processes=2))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_rank() and not needs_launch(RunConfig(num_processes=2))


def start(tmp_path, body: str, *arguments: str) -> subprocess.Popen:
    """Launch two ranks of a module with this body."""
    (tmp_path / "rank_module.py").write_text("import os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + body)
    code = f"import sys; from ruyi_rl.cli.launch import launch; sys.exit(launch(2, {list(arguments)}, 'rank_module'))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_ranks_get_the_arguments(tmp_path):
    body = (
        "text = os.environ['WORLD_SIZE'] + ' ' + os.environ['OMP_NUM_THREADS'] + ' ' + ' '.join(sys.argv[1:])\n"
        "open(f'rank{rank}', 'w').write(text)\n"
    )
    process = start(tmp_path, body, "stage=sft", "model.exits={a: 1}")
    assert process.wait(timeout=120) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in (0, 1):
        assert (tmp_path / f"rank{rank}").read_text() == f"2 {threads} stage=sft model.exits={{a: 1}}"


@pytest.mark.slow
@pytest.mark.parametrize("status", [1, 2])
def test_the_status_of_a_failed_rank_is_the_commands(tmp_path, status):
    process = start(tmp_path, f"sys.exit({status}) if rank == 1 else time.sleep(60)\n")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_ranks(tmp_path, number):
    body = (
        "def stop(received, frame):\n"
        "    open(f'stopped{rank}', 'w').write(str(received))\n"
        "    sys.exit(128 + received)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "open(f'ready{rank}', 'w').close()\n"
        "time.sleep(120)\n"
    )
    process = start(tmp_path, body)
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2
    assert "Traceback" not in errors
