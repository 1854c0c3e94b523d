"""However a pool ends, nothing of it is left: no process, no file, no shared memory, no descriptor."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from worker_leftovers import alive, children, descriptors, eventually, temporary_folders

from ruyi_rl.rewards.pool import PoolLimits, RewardPool
from ruyi_rl.rewards.results import RewardError

# Leaves what can be left: children, a daemon, temporary files (a locked folder too) and shared memory, of Python's own
# making, and of a mapping that Python knows nothing of. Logs the ids of all its processes.
MESSY = """
import mmap, os, subprocess, sys, tempfile, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

KEPT = []

def one(completions, **kwargs):
    log = kwargs["log"]
    def note(text):
        with open(log, "a") as file:
            file.write(f"{text}\\n")
    if not KEPT:
        note(f"process {os.getpid()}")
        note(f"process {subprocess.Popen(['sleep', '600'], start_new_session=True).pid}")
        if os.fork() == 0:
            os.setsid()
            daemon = os.fork()
            if daemon:
                note(f"process {daemon}")
                os._exit(0)
            time.sleep(600)
        os.wait()
        folder = tempfile.mkdtemp()
        open(os.path.join(folder, "file"), "w").write("x")
        os.chmod(folder, 0)
        note(f"file {folder}")
        KEPT.append(SharedMemory(create=True, size=4096))
        tracker = resource_tracker._resource_tracker._pid
        while b"resource_tracker" not in open(f"/proc/{tracker}/cmdline", "rb").read():
            time.sleep(0.01)  # before that it is a copy of this process, and ends with it
        note(f"file /dev/shm/{KEPT[0].name}")
        path = f"/dev/shm/ruyi_rl_test_{os.getpid()}"
        file = open(path, "w+b")
        file.truncate(4096)
        KEPT.append(mmap.mmap(file.fileno(), 4096))
        note(f"file {path}")
        note("end")
    if "hang" in completions:
        time.sleep(600)
    if "die" in completions:
        os._exit(1)
    return [1.0 for _ in completions]
"""


def left(log):
    """What the plugin made and is still there."""
    notes = [line.split() for line in Path(log).read_text().splitlines()]
    made = [note for note in notes if note[0] != "end"]
    assert len(made) >= 6
    return [what for kind, what in made if (alive(what) if kind == "process" else os.path.exists(what))]


@pytest.fixture
def messy(tmp_path):
    (tmp_path / "messy.py").write_text(MESSY)
    return str(tmp_path / "messy.py"), str(tmp_path / "log")


def test_close(messy):
    path, log = messy
    before = descriptors()
    with RewardPool("messy", path) as pool:
        assert pool.score(["a"], {"log": log}).rewards == [1.0]
        assert len(left(log)) == 6 and len(children()) == 1 and len(temporary_folders()) == 1
    assert left(log) == [] and not children() and not temporary_folders()
    assert descriptors().keys() <= before.keys()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(["a"], {"log": log})


def test_killed_workers(messy):
    path, log = messy
    with RewardPool("messy", path, limits=PoolLimits(timeout=1.0)) as pool:
        assert [failure.kind for failure in pool.score(["hang"], {"log": log}).failures] == ["timeout"]
        assert eventually(lambda: not left(log))
        assert [failure.kind for failure in pool.score(["die"], {"log": log}).failures] == ["crash"]
        assert eventually(lambda: not [what for what in left(log) if not what.startswith("/dev/shm/ruyi_rl_test_")])
        assert eventually(lambda: not children() and not temporary_folders())
    # A mapping of its own that a worker has when it dies by itself is the one thing that nobody can tell whose it was.
    for what in left(log):
        os.unlink(what)


def test_garbage(messy):
    path, log = messy
    pool = RewardPool("messy", path)
    assert pool.score(["a"], {"log": log}).rewards == [1.0]
    del pool
    gc.collect()
    assert left(log) == [] and not children() and not temporary_folders()


def test_close_while_it_works(messy):
    path, log = messy
    pool = RewardPool("messy", path)
    future = pool.submit(["hang"], {"log": log})
    assert eventually(lambda: os.path.exists(log) and "end" in Path(log).read_text())
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        future.result()
    assert left(log) == [] and not children() and not temporary_folders()


# How the pool's own process may end while a worker is busy and another one idle.
SCRIPT = """
import os, signal, sys, threading, time
from ruyi_rl.rewards.pool import RewardPool, PoolLimits
path, log, how = sys.argv[1:]
pool = RewardPool("messy", path)
idle = RewardPool("idle", path)
idle.score(["a"], {"log": log})
future = pool.submit(["hang"], {"log": log})
while open(log).read().count("end") < 2:
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.readline()
if how == "raise":
    raise ValueError
if how == "exit":
    sys.exit(3)
if how == "os_exit":
    os._exit(3)
if how == "fork":
    # A child that outlives its parent, and holds copies of its descriptors.
    if os.fork() == 0:
        os.closerange(0, 3)
        while not os.path.exists(log + ".end"):
            time.sleep(0.01)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
future.result()
"""


@pytest.mark.parametrize(
    "how, code",
    [
        ("raise", 1), ("exit", 3), ("os_exit", 3), ("fork", -signal.SIGKILL), (signal.SIGINT, -signal.SIGINT),
        (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGHUP, -signal.SIGHUP),
    ],
)  # fmt: skip
def test_end_of_the_run(messy, tmp_path, how, code):
    path, log = messy
    Path(log).touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(tmp_path / "script.py"), path, log, str(how)]
    run = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert run.stdout.readline() == "ready\n"
        guards = children(run.pid)
        assert len(guards) == 2 and len(left(log)) == 12
        if isinstance(how, signal.Signals):
            run.send_signal(how)
        run.communicate("go\n", timeout=30)
        assert run.returncode == code
    finally:
        run.kill()
        run.communicate()
    assert eventually(lambda: not left(log) and not any(map(alive, guards)) and not temporary_folders(run.pid))
    Path(f"{log}.end").touch()


def test_interrupt_leaves_the_pool_usable(pool):
    made = pool(
        "import time\ndef one(completions, **kwargs):\n"
        "    time.sleep(0.2)\n    return [float(text) for text in completions]\n",
        workers=1,
    )
    made.start()
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        made.score(["1"] * 1000, {})
    timer.join()
    workers = children()
    start = time.monotonic()
    assert made.score(["2", "3"], {}).rewards == [2.0, 3.0]
    assert time.monotonic() - start < 30  # not the minutes that the rest of the first call would have taken
    assert children() == workers


def test_a_forked_child_cannot_use_the_pool_and_does_not_end_it(pool):
    made = pool("def one(completions, **kwargs):\n    return [1.0 for _ in completions]\n")
    made.start()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            made.score(["a"], {})
        except RuntimeError as error:
            code = 0 if "process that made it" in str(error) else 2
        made.close()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert made.score(["a"], {}).rewards == [1.0]


@pytest.mark.parametrize(
    "source, words",
    [
        ("import no_such\n", ["cannot be imported", "no_such", "plugin0.py:1"]),
        ("\nimport os\nos._exit(4)\n", ["could not start", "status 4"]),
        ("\nimport os\nos.kill(os.getpid(), 11)\n", ["could not start", "SIGSEGV", "plugin0.py:3"]),
        ("import sys\nsys.exit('none')\n", ["cannot be imported", "SystemExit: none"]),
        ("held = bytearray(10**12)\n", ["cannot be imported", "MemoryError"]),
        ("def _start(**kwargs):\n    raise ValueError('no parser')\n", ["cannot start: ValueError: no parser"]),
        ("async def _start(level, **kwargs):\n    raise OSError(level)\n", ["cannot start: OSError: 7"]),
    ],
)
def test_a_plugin_that_cannot_start(pool, source, words):
    made = pool(source + "def one(completions, level=0, **kwargs):\n    return [1.0]\n", kwargs={"level": 7})
    with pytest.raises(RewardError) as caught:
        made.start()
    assert all(word in str(caught.value) for word in ["it: ", *words]), caught.value
    with pytest.raises(RewardError):
        made.score(["a"], {})
    with pytest.raises(RewardError):
        made.submit(["a"], {}).result()


# Stops or kills its guard, having started a process that is no child of its own.
AGAINST_ITS_GUARD = """
import os, signal, subprocess, time
def one(completions, log, **kwargs):
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with open(log, "a") as file:
        file.write(f"process {sleeper.pid}\\nprocess {os.getpid()}\\nend\\n")
    if completions[0] == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(60 if completions[0] == "hang" else 0)
    return [1.0]
"""


def still_alive(log):
    return [line for line in Path(log).read_text().splitlines() if line != "end" and alive(line.split()[1])]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_guard_that_the_plugin_ends_leaves_nothing(tmp_path, how):
    (tmp_path / "against.py").write_text(AGAINST_ITS_GUARD)
    log = str(tmp_path / "log")
    with RewardPool("against", str(tmp_path / "against.py")) as pool:
        scores = pool.score([how], {"log": log})
        assert [failure.kind for failure in scores.failures] == (["crash"] if how == "kill" else [])
        if how == "kill":
            assert eventually(lambda: not still_alive(log) and not temporary_folders())
        start = time.monotonic()
    assert time.monotonic() - start < 15  # not LEAVE_SECONDS
    assert still_alive(log) == [] and not children() and not temporary_folders()


def test_a_stopped_guard_clears_up_when_the_run_is_killed(tmp_path):
    (tmp_path / "against.py").write_text(AGAINST_ITS_GUARD)
    script = "import sys, time\nfrom ruyi_rl.rewards.pool import RewardPool\n"
    script += "pool = RewardPool('it', sys.argv[1])\npool.score(['stop'], {'log': sys.argv[2]})\n"
    script += "print('ready', flush=True)\ntime.sleep(600)\n"
    (tmp_path / "script.py").write_text(script)
    log = str(tmp_path / "log")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "against.py"), log]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "ready\n" and len(still_alive(log)) == 2
    finally:
        run.kill()
        run.communicate()
    assert eventually(lambda: not still_alive(log) and not temporary_folders(run.pid))


def test_a_dotted_name_that_a_run_cannot_call(tmp_path):
    for path, words in [("os.system", "takes no **kwargs"), ("os.sep", "not a function")]:
        with RewardPool("it", path) as pool, pytest.raises(RewardError, match=words.replace("*", r"\*")):
            pool.start()
