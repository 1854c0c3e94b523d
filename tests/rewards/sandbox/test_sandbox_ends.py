"""Nothing is left of a sandbox: after its end, after every kind of end of a program, and after our own murder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ruyi_rl.rewards.sandbox import Sandbox, SandboxOptions

LINGER = """
import os, time
def f():
    open("/tmp/left", "w").close()
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            time.sleep(999)
    return os.getuid()
"""
VICTIM = """
import json, sys, time
from ruyi_rl.rewards.sandbox import Sandbox, SandboxOptions
sandbox = Sandbox(SandboxOptions(seconds=600, warm=sys.argv[1] == "warm", mode=sys.argv[2]))
program = sandbox.open(sys.stdin.read())
outcome = program.call("f")
group = program._slot.cgroup
print(json.dumps([outcome.value, group and str(group.folder)]), flush=True)
program.call("sleep") if sys.argv[3] == "busy" else time.sleep(600)
"""


def descendants(process):
    found = [
        int(number) for task in Path(f"/proc/{process}/task").glob("*/children") for number in task.read_text().split()
    ]
    return found + [below for child in found for below in descendants(child)]


def started(process):
    """When a process started, or None where it is gone; a zombie is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def wait_until(condition, seconds=30):
    """Wait; the limit is for a defect, not for a busy machine."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("warm", [False, True])
def test_nothing_is_left_of_programs_and_of_the_sandbox(confinable, warm):
    mounts = Path("/proc/self/mountinfo").read_text()
    descriptors = set(os.listdir("/proc/self/fd"))
    before = set(descendants(os.getpid()))
    with Sandbox(SandboxOptions(seconds=2, warm=warm)) as sandbox:
        for program in (LINGER, "def f():\n    while True: pass", "import os\ndef f(): os._exit(0)", "1/0"):
            with sandbox.open(program) as opened:
                opened.call("f")
                group = opened._slot.cgroup
            residents = [number for number in set(descendants(os.getpid())) - before if runs_as_another(number)]
            assert residents == []
    assert group is None or not group.folder.exists()
    assert set(descendants(os.getpid())) <= before
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert Path("/proc/self/mountinfo").read_text() == mounts


def runs_as_another(process):
    """Of root's children, programs are of another user."""
    try:
        return os.stat(f"/proc/{process}").st_uid not in (0, os.getuid()) and started(process) is not None
    except OSError:
        return False


@pytest.mark.parametrize("state", ["busy", "idle"])
@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_nothing_outlives_a_parent_that_is_killed(confinable, mode, state):
    murder(mode, "bubblewrap", state, LINGER)


def test_nothing_unconfined_outlives_a_parent_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    murder("cold", "none", "busy", LINGER.replace("os.setsid()", "pass").replace("/tmp/left", "left"))
    wait_until(lambda: not list(tmp_path.iterdir()))


def murder(mode, confinement, state, program):
    command = [sys.executable, "-c", VICTIM, mode, confinement, state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        victim.stdin.write(program + "def sleep(): time.sleep(999)\n")
        victim.stdin.close()
        _, group = json.loads(victim.stdout.readline())
        wait_until(lambda: len(descendants(victim.pid)) >= 6)
        below = {number: started(number) for number in descendants(victim.pid)}
        victim.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(start and started(number) == start for number, start in below.items()))
    wait_until(lambda: group is None or not Path(group).exists())
