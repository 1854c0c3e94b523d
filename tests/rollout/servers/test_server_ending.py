"""However a run ends, no process, no folder and no shared memory is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import alive, gone

from ruyi_rl.rollout.servers import guardian
from ruyi_rl.rollout.servers.process import Caretaker, kill_group

pytestmark = pytest.mark.slow
WAYS = {
    "exception": (None, 1),
    "interrupt": (signal.SIGINT, 1),
    "terminate": (signal.SIGTERM, 1),
    "kill": (signal.SIGKILL, -signal.SIGKILL),
    "sync": (signal.SIGKILL, -signal.SIGKILL),
}
"""Way -> the signal that ends the run, and its exit status."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs, started at the same time."""
    started = {}
    for way in WAYS:
        folder = tmp_path_factory.mktemp(way)
        command = [sys.executable, str(Path(__file__).parent / "ending.py"), str(folder), way]
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
        started[way] = folder, process
    yield started
    for _, process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left(runs, way):
    folder, run = runs[way]
    deadline = time.monotonic() + 120
    while not (folder / "ready.json").exists():
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()[1][-2000:]
        time.sleep(0.05)
    state = json.loads((folder / "ready.json").read_text())
    assert len(state["processes"]) >= 10 and len(state["segments"]) == 3 and state["folders"]
    number, status = WAYS[way]
    if number is not None:
        assert all(map(alive, state["processes"])) and all(map(os.path.exists, state["folders"]))
        os.killpg(run.pid, number)  # to the whole group, as a terminal does it
    _, errors = run.communicate(timeout=60)
    assert run.returncode == status and "was given up" not in errors, errors[-2000:]
    assert gone(state["processes"]), [guardian.process_name(pid) for pid in state["processes"] if alive(pid)]
    assert not any(map(os.path.exists, state["folders"]))
    assert not [name for name in state["segments"] if os.path.exists(f"/dev/shm/{name}")]


def start(command, *flags):
    """A guardian of this process."""
    words = [sys.executable, "-I", "-S", guardian.__file__, "--run", str(os.getpid()), *flags, *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)


TREE = """
import os, subprocess, sys, time
from multiprocessing.shared_memory import SharedMemory
segment = SharedMemory(create=True, size=64)
orphan = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)"
subprocess.run([sys.executable, "-c", orphan])
print(os.getpid(), segment.name, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["close", "stop", "kill", "server", "guardian"])
def test_a_guardian_clears_a_tree_with_orphans_away(how):
    process = start([sys.executable, "-c", TREE])
    orphan = int(process.stdout.readline())
    server, segment = process.stdout.readline().decode().split()
    assert alive(orphan) and alive(int(server)) and os.path.exists(f"/dev/shm/{segment}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None and alive(int(server)), "only the run decides"
    if how == "close":
        process.stdin.close()
    elif how in ("stop", "kill"):
        process.stdin.write({"stop": b"s", "kill": b"k"}[how])
    else:
        os.kill({"server": int(server), "guardian": process.pid}[how], signal.SIGKILL)
    assert process.wait(20) == {"close": 143, "stop": 143, "kill": 137, "server": 137, "guardian": -9}[how]
    if how == "guardian":
        kill_group(process.pid)
        os.kill(orphan, signal.SIGKILL)  # it has left the group, and nobody looks after it
    assert gone([orphan, int(server)])
    deadline = time.monotonic() + 20
    while os.path.exists(f"/dev/shm/{segment}") and time.monotonic() < deadline:
        time.sleep(0.05)  # without a guardian the tracker removes it a little later
    assert not os.path.exists(f"/dev/shm/{segment}")


def test_a_guardian_passes_the_status_on():
    for code in (0, 3):
        process = start([sys.executable, "-c", f"raise SystemExit({code})"])
        assert process.wait(20) == code


def test_a_server_that_ignores_sigterm_is_killed():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(1000)"
    process = start([sys.executable, "-c", deaf], "--grace", "0.3")
    process.stdout.readline()
    process.stdin.close()
    assert process.wait(20) == 137


def test_a_forked_child_of_the_run_does_not_keep_a_server_alive(tmp_path):
    """It holds the other end of the guardian's standard input, and outlives the run."""
    run = f"""
import os, subprocess, sys, time
command = [sys.executable, "-I", "-S", {guardian.__file__!r}, "--run", str(os.getpid()), "sleep", "1000"]
process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
time.sleep(0.5)
print(process.pid, child, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True)
    pid, child = map(int, done.stdout.readline().split())
    assert gone([pid])
    assert alive(child)
    os.kill(child, signal.SIGKILL)
    done.wait()


def test_a_caretaker_removes_folders(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    caretaker = Caretaker([tmp_path / "a"])
    assert (tmp_path / "a").exists()
    caretaker.close()
    assert not (tmp_path / "a").exists()
    caretaker.close()
