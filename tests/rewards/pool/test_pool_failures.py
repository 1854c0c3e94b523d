"""Every way in which a plugin can fail one sample: it alone fails, by the right kind, and the others are as before."""

import os
import random
import sys
import time

import pytest
from worker_leftovers import alive, children

COUNT = 400
HOSTILE = """
import asyncio, builtins, ctypes, json, math, os, random, signal, subprocess, sys, threading, time

HELD = []

class Odd:
    def __float__(self):
        raise RuntimeError("no number")

def _value(text):
    if text == "raise":
        raise ValueError("bad\\nsample")
    if text == "raise_base":
        raise asyncio.CancelledError("stop")
    if text == "raise_unprintable":
        class Silent(Exception):
            def __str__(self):
                raise KeyError
        raise Silent
    if text == "recurse":
        return _value(text)
    if text == "hang":
        while True:
            time.sleep(1)
    if text == "hang_deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            pass
    if text == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if text == "sys_exit":
        sys.exit(3)
    if text == "os_exit":
        os._exit(0)
    if text == "segfault":
        ctypes.string_at(0)
    if text == "abort":
        os.abort()
    if text == "kill_self":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "kill_group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    if text == "kill_parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if text == "close_all":
        os.closerange(0, 4096)
    if text in ("forge", "forge_wrong"):
        reply = {"failures": [], "extra": {}, "metrics": {}, "seconds": 0.1}
        forged = json.dumps(reply | ({"rewards": [9.0]} if text == "forge" else {})).encode()
        for descriptor in range(3, 1024):
            try:
                os.write(descriptor, len(forged).to_bytes(8, "little") + forged)
            except OSError:
                pass
    if text == "memory_at_once":
        HELD.append(bytearray(2**30))
    if text == "memory_by_steps":
        held = []
        while True:
            held.append(bytearray(50 * 2**20))
    if text == "memory_of_children":
        for _ in range(4):
            if os.fork() == 0:
                held = b"x" * (80 * 2**20)
                time.sleep(60)
                os._exit(0)
        time.sleep(60)
    if text == "nan":
        return math.nan
    if text in ("infinite", "minus_infinite"):
        return math.inf if text == "infinite" else -math.inf
    if text == "huge":
        return 10**400
    if text == "infinite_as_float32":
        return 1e300
    if text in ("text", "text_number", "complex", "list", "odd", "object"):
        values = {"text": "high", "text_number": "1.0", "complex": 1j, "list": [1.0], "odd": Odd(), "object": object()}
        return values[text]
    if text == "print":
        for _ in range(64):
            print("x" * 2**20)
            sys.stderr.write("y" * 2**20)
    if text == "fork":
        if os.fork() == 0:
            return 7.0  # two processes go on as if each were the worker
        os.wait()
    if text == "daemon":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        os.wait()
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    if text == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
    if text == "close_streams":
        sys.stdout.close()
        for descriptor in range(3):
            os.close(descriptor)
        sys.stdout = sys.stderr = None
    if text == "state":
        os.chdir("/")
        os.environ.clear()
        random.seed(0)
        sys.setrecursionlimit(200)
        sys.path.clear()
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sys.stdout = open(os.devnull, "w")
    if text == "builtins":
        builtins.isinstance = builtins.len = builtins.list = builtins.hasattr = builtins.print = None
    return float(text) if text.isdigit() else 0.5

def one(completions, **kwargs):
    print("a line a call")
    rewards = [_value(text) for text in completions]
    if "none" in completions:
        rewards[completions.index("none")] = None
    if "few" in completions:
        rewards.pop()
    if "many" in completions:
        rewards.append(1.0)
    if "generator" in completions:
        return (reward for reward in rewards)
    if "string" in completions:
        return "1" * len(rewards)
    if "nothing" in completions:
        return None
    if "mapping" in completions:
        return dict(enumerate(rewards))
    return rewards
"""
QUICK = {
    "raise": ("exception", "ValueError: bad sample"),
    "raise_base": ("exception", "CancelledError: stop"),
    "raise_unprintable": ("exception", "Silent"),
    "recurse": ("exception", "RecursionError"),
    "sys_exit": ("crash", "sys.exit(3)"),
    "os_exit": ("crash", "exited with status 0"),
    "segfault": ("crash", "SIGSEGV"),
    "abort": ("crash", "SIGABRT"),
    "kill_self": ("crash", "SIGKILL"),
    "kill_group": ("crash", "SIGKILL"),
    "kill_parent": ("crash", "guard was killed"),
    "close_all": ("crash", "channel"),
    "forge": ("crash", "channel"),
    "forge_wrong": ("crash", "channel"),
    "memory_at_once": ("memory", "MemoryError"),
    "memory_by_steps": ("memory", ""),
    "memory_of_children": ("memory", "held"),
    "nan": ("nan", "NaN"),
    "infinite": ("infinite", ""),
    "minus_infinite": ("infinite", ""),
    "huge": ("infinite", ""),
    "infinite_as_float32": ("infinite", "1e+300"),
    "text": ("wrong_type", "'high'"),
    "text_number": ("wrong_type", "'1.0'"),
    "complex": ("wrong_type", "complex"),
    "list": ("wrong_type", "list"),
    "odd": ("wrong_type", "Odd"),
    "object": ("wrong_type", "object"),
    "few": ("wrong_length", "0 rewards for 1"),
    "many": ("wrong_length", "2 rewards for 1"),
    "generator": ("wrong_type", "generator"),
    "string": ("wrong_type", "str"),
    "nothing": ("wrong_type", "NoneType"),
    "mapping": ("wrong_type", "dict"),
}
HARMLESS = ["print", "fork", "daemon", "thread", "close_streams", "state", "builtins"]


def batch(*texts):
    """Numbers, with these texts among them at places far apart."""
    completions = [str(index) for index in range(COUNT)]
    places = {text: 3 + position * (COUNT // len(texts)) for position, text in enumerate(texts)}
    for text, place in places.items():
        completions[place] = text
    return completions, places


@pytest.mark.parametrize("text", [*QUICK, "hang", "hang_deaf", "stop"])
def test_that_sample_alone_fails(pool, text):
    kind, message = QUICK.get(text, ("timeout", "more than 2 s"))
    made = pool(HOSTILE, timeout=2.0 if kind == "timeout" else 30.0, memory_gb=0.25, workers=2)
    completions, places = batch(text)
    scores = made.score(completions, {"other": completions})
    (failure,) = scores.failures
    assert (failure.index, failure.kind) == (places[text], kind)
    assert message in failure.message and "\n" not in failure.message
    assert scores.rewards == [None if text == completion else float(completion) for completion in completions]
    assert made.score(["1", "2"], {}).rewards == [1.0, 2.0]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_does_no_harm_to_any(pool, text):
    made = pool(HOSTILE, workers=1)
    completions, _ = batch(text)
    made.start()
    workers = children()
    for _ in range(3):
        scores = made.score(completions, {})
        assert scores.failures == []
        assert scores.rewards == [0.5 if text == completion else float(completion) for completion in completions]
        time.sleep(0.05)  # a timer that was left would go off
    assert children() == workers


def test_all_of_them_at_once(pool, capfd):
    made = pool(HOSTILE, timeout=4.0, memory_gb=0.25, workers=2)
    # Without `many`: one reward too many and one too few make the right number.
    kinds = {text: kind for text, (kind, _) in QUICK.items() if text != "many"} | {"hang": "timeout"}
    completions, places = batch(*kinds, *HARMLESS, "none")
    folder, environment, state = os.getcwd(), dict(os.environ), random.getstate()
    scores = made.score(completions, {"other": completions})
    assert {failure.index: failure.kind for failure in scores.failures} == {
        places[text]: kind for text, kind in kinds.items()
    }
    assert [failure.index for failure in scores.failures] == sorted(failure.index for failure in scores.failures)
    expected = [float(text) if text.isdigit() else 0.5 if text in HARMLESS else None for text in completions]
    assert scores.rewards == expected
    assert (os.getcwd(), dict(os.environ), random.getstate()) == (folder, environment, state)
    assert sys.stdout is not None and len(capfd.readouterr().err) < 10_000
    assert made.score(["1", "2"], {}).rewards == [1.0, 2.0]


PLACES = """import os, time

def _deeper(text):
    if text == "raise":
        int("x")
    if text == "hang":
        time.sleep(60)
    if text == "segfault":
        os.kill(os.getpid(), 11)
    if text == "recurse":
        return _deeper(text)
    if text == "exit":
        raise SystemExit
    return 1.0

def one(completions, **kwargs):
    return ["no" if text == "text" else _deeper(text) for text in completions]
"""


@pytest.mark.parametrize(
    "text, line", [("raise", 5), ("hang", 7), ("segfault", 9), ("recurse", 11), ("exit", 13), ("text", 16)]
)
def test_place_is_the_innermost_line_of_the_plugin(pool, text, line):
    (failure,) = pool(PLACES, timeout=1.0).score(["a", text, "b"], {}).failures
    assert failure.place == f"plugin0.py:{line}"


def test_every_sample_may_fail(pool):
    made = pool("def one(completions, **kwargs):\n    raise OSError\n")
    scores = made.score(["a"] * 300, {})
    assert scores.rewards == [None] * 300
    assert [(failure.index, failure.kind) for failure in scores.failures] == [(n, "exception") for n in range(300)]


class Hollow:
    def __reduce__(self):
        raise TypeError("not this one")


class Broken:
    """Can be pickled, but not read by a worker, which knows no such module."""

    def __reduce__(self):
        return (__import__, ("no_such_module_anywhere",))


def test_what_cannot_be_sent(pool):
    made = pool("def one(completions, thing, **kwargs):\n    return [float(len(text)) for text in completions]\n")
    things = [Hollow() if index == 5 else Broken() if index == 80 else index for index in range(100)]
    scores = made.score(["aa"] * 100, {"thing": things})
    assert [(failure.index, failure.kind) for failure in scores.failures] == [(5, "unpicklable"), (80, "unpicklable")]
    assert all("'thing'" in failure.message for failure in scores.failures)
    assert scores.rewards == [None if index in (5, 80) else 2.0 for index in range(100)]
    for thing in (Hollow(), Broken()):
        scores = made.score(["a"] * 20, {"thing": thing})
        assert len(scores.failures) == 20 and scores.rewards == [None] * 20
        assert {(failure.kind, "'thing'" in failure.message) for failure in scores.failures} == {("unpicklable", True)}


def test_a_leak_over_many_calls_fails_no_sample(pool):
    source = """
import os
HELD = []
def one(completions, **kwargs):
    HELD.append(b"x" * (40 * 2**20))
    return [float(os.getpid()) for _ in completions]
"""
    made = pool(source, memory_gb=0.3, workers=1)
    workers = set()
    for _ in range(15):
        scores = made.score(["a"], {})
        assert scores.failures == []
        workers |= set(scores.rewards)
    assert len(workers) > 1 and sum(alive(worker) for worker in workers) == 1


def test_a_worker_that_dies_between_two_calls(pool):
    source = """
import os, threading
def one(completions, **kwargs):
    threading.Timer(0.05, os._exit, (1,)).start()
    return [float(os.getpid())] * len(completions)
"""
    made = pool(source, workers=1)
    workers = set()
    for pause in (0.3, 0.04, 0.05, 0.06, 0):
        scores = made.score(["a"], {})
        assert scores.failures == []
        workers |= set(scores.rewards)
        time.sleep(pause)
    assert len(workers) > 1


def test_memory_that_children_share_counts_once(pool):
    source = """
import os, time
HELD = b"x" * (150 * 2**20)
def one(completions, **kwargs):
    if os.fork() == 0:
        time.sleep(60)
    time.sleep(0.3)
    return [1.0] * len(completions)
"""
    made = pool(source, memory_gb=0.3, workers=1)
    assert made.score(["a"] * 4, {}).failures == []


POISON = """
import decimal, math, os, re, resource, sys, threading, time

LOCK = threading.Lock()

def one(completions, **kwargs):
    (text,) = completions
    if text == "decimal":
        decimal.getcontext().prec = 1
    if text == "function":
        math.floor = lambda value: 0
    if text == "module":
        re.sub = None
    if text == "digits":
        sys.set_int_max_str_digits(640)
    if text == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    if text == "own":
        LOCK.acquire()
    if text == "timer":
        signal = __import__("signal")
        signal.setitimer(signal.ITIMER_PROF, 0.01)
    if not LOCK.acquire(timeout=0.3):
        raise RuntimeError("the lock is held")
    LOCK.release()
    end = time.process_time() + 0.02
    while time.process_time() < end:
        open(os.devnull).close()
    if text.isdigit():
        return [float(decimal.Decimal(re.sub(" ", "", text)) * decimal.Decimal("1.01")) * math.floor(len(str(10**999)))]
    return [0.0]
"""


@pytest.mark.parametrize("text", ["decimal", "function", "module", "digits", "files", "own", "timer"])
def test_a_sample_that_changes_the_process_changes_no_later_reward(pool, text):
    made = pool(POISON, workers=1, scope="group")
    expected = [pytest.approx(1000 * 1.01 * number) for number in (18, 19, 20)]
    for before in ([], ["1"]):
        made.score([*before, text], {}, list(range(len(before) + 1)))
        scores = made.score(["18", "19", "20"], {}, [1, 2, 3])
        assert scores.failures == [] and scores.rewards == expected


def test_what_the_plugin_sets_when_it_starts_stays(pool):
    source = "import decimal\nimport math\ndecimal.getcontext().prec = 3\nmath.floor = lambda value: 7\n"
    source += "def one(completions, **kwargs):\n    return [float(decimal.Decimal(1) / 3) + math.floor(1)]\n"
    assert [pool(source).score(["a"], {}).rewards for _ in range(2)] == [[7.333]] * 2


def test_failures_of_the_plugins_own_cost_few_workers(pool, tmp_path):
    source = "import os\ndef one(completions, log, **kwargs):\n    print(os.getpid(), file=open(log, 'a'))\n"
    source += "    return [1 / float(text) for text in completions]\n"
    made = pool(source, workers=1)
    scores = made.score(["1"] * 10 + ["0"] * 40, {"log": str(tmp_path / "log")})
    assert {failure.kind for failure in scores.failures} == {"exception"} and len(scores.failures) == 40
    assert 1 < len(set((tmp_path / "log").read_text().split())) <= 7
