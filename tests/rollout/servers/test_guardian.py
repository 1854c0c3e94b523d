import signal
import socket
import subprocess
import sys

from ruyi_rl.rollout.servers import guardian
from ruyi_rl.rollout.servers.process import guardian_command

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import guardian

patrols = 0

class Run:
    def wait(self, seconds):
        global patrols
        patrols += 1

descendants, vital_processes = guardian.descendants, guardian.vital_processes

def alive(pid):
    return [*descendants(pid), 999999] if patrols <= 2 and pid == guardian.os.getpid() else descendants(pid)

# The engine's name can be read at the first patrol; at the second it is dying, and has none.
guardian.descendants = alive
guardian.vital_processes = lambda pids: {999999: "VLLM::EngineCore"} if patrols == 1 else vital_processes(pids)
sys.exit(guardian.guard(["sleep", "60"], Run(), 1.0))
"""


def test_an_engine_that_dies_while_it_is_looked_at_is_missed_at_the_next_patrol():
    folder = guardian.__file__.rpartition("/")[0]
    # A process of its own: a guardian kills all of its descendants.
    command = [sys.executable, "-c", SCRIPT, folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == guardian.BROKEN, ended.stderr
    assert "VLLM::EngineCore (999999) died" in ended.stdout


def test_a_run_that_dies_with_something_unread_ends_what_it_guards(tmp_path):
    runs, guards = socket.socketpair()
    command = [*guardian_command(), "--remove", str(tmp_path / "of the run"), "sleep", "60"]
    (tmp_path / "of the run").mkdir()
    process = subprocess.Popen(command, stdin=guards, stderr=subprocess.PIPE, text=True)
    guards.send(b"never read")
    guards.close()
    runs.close()  # the other end is reset, not only closed
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
    assert not (tmp_path / "of the run").exists()
