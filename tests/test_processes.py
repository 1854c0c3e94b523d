import os
import signal
import subprocess
import sys
import time

from ruyi_rl.processes import has_ended, holders


def test_a_process_has_ended_once_it_is_killed_reaped_or_not():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not has_ended(process.pid) and not has_ended(os.getpid())
    process.kill()
    deadline = time.monotonic() + 10
    while not has_ended(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert has_ended(process.pid), "nobody has waited for it yet"
    process.wait()
    assert has_ended(process.pid)


def test_a_stopped_process_has_not_ended():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    assert not has_ended(process.pid)
    process.kill()
    process.wait()


def test_holders_are_the_processes_that_have_a_file_open(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert holders(path) == []
    with open(path) as file, subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()]) as other:
        assert holders(path) == sorted([os.getpid(), other.pid])
        other.kill()
