"""Ranks and the launcher that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ruyi_rl.launchers import LAUNCHER
from ruyi_rl.processes import has_ended

RANK = """
import time
from ruyi_rl.launchers import end_with_launcher
end_with_launcher()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
print(rank.pid, rank.stdout.readline(), flush=True)
rank.wait()
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")


def environment(**variables: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name not in ("TORCHELASTIC_RUN_ID", LAUNCHER)}
    return {**others, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def parent_and_rank(**variables: str) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-c", PARENT, RANK]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(**variables))
    return parent, int(parent.stdout.readline().split()[0])


@linux
@pytest.mark.parametrize("known", ["TORCHELASTIC_RUN_ID", "CROSS_RANK"])
def test_a_rank_ends_with_its_killed_launcher(known):
    parent, rank = parent_and_rank(**{known: "0"})
    assert not has_ended(rank)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while not has_ended(rank) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert has_ended(rank)


def test_a_command_of_no_launcher_outlives_what_started_it():
    parent, command = parent_and_rank()
    parent.kill()
    parent.wait()
    time.sleep(0.3)
    assert not has_ended(command)
    os.kill(command, signal.SIGKILL)


@linux
def test_a_rank_whose_launcher_has_ended_already_ends_itself():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = subprocess.run(
        [sys.executable, "-c", RANK],
        env=environment(TORCHELASTIC_RUN_ID="none", **{LAUNCHER: str(gone.pid)}),
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"")
