"""What programs do in a sandbox when they are not hostile: the same cold and warm."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rewards.sandbox import Sandbox, SandboxOptions, TooLarge, Unplain

COUNTER = """
import random
total = 0
def add(number, *, twice=False):
    global total
    total += number * (1 + twice)
    print("now", total)
    return total
def change(items, table, text):
    items.append(text)
    table["x"] = {1}
    return len(items)
def spoil(items):
    items.append(object())
def fail():
    raise ValueError("two\\nlines \\x1b[31m")
def chance():
    return random.random()
"""


def test_state_persists_between_calls_and_ends_with_the_program(sandbox):
    with sandbox.open(COUNTER) as program:
        first, second = program.call("add", [2]), program.call("add", (3,), {"twice": True})
        assert (first.kind, first.value, first.stdout, first.loading) == ("value", 2, "now 2\n", False)
        assert (second.value, second.stdout) == (8, "now 8\n")
        assert program.call("fail").kind == "exception" and program.call("add", [1]).value == 9
    with sandbox.open(COUNTER) as program:
        assert program.call("add", [2]).value == 2


def test_outcomes_of_calls(sandbox):
    with sandbox.open(COUNTER) as program:
        failed = program.call("fail")
        assert (failed.kind, failed.value) == ("exception", "ValueError")
        assert failed.message == "ValueError: two lines  [31m"
        assert program.call("nothing").kind == "missing"
        assert program.call("add", [1, 2, 3]).value == "TypeError"
        changed = program.call("change", [[1], {"a": None}, "b"])
        assert (changed.value, changed.args) == (2, [[1, "b"], {"a": None, "x": {1}}, "b"])
        assert program.call("add", [1]).args is None
        spoilt = program.call("spoil", [[1]])
        assert (spoilt.kind, spoilt.args) == ("value", None)
        with pytest.raises(Unplain):
            program.call("add", [object()])


@pytest.mark.parametrize(
    ("program", "kind", "value"),
    [
        ("1/0", "exception", "ZeroDivisionError"),
        ("def f(:", "exception", "SyntaxError"),
        ("if 1:\nx", "exception", "IndentationError"),
        ("x = '\0'", "exception", "SyntaxError"),
        ("raise MemoryError", "memory", None),
        ("import os; print('out', flush=True); os._exit(3)", "crash", None),
    ],
)
def test_definitions_that_fail_answer_every_call(sandbox, program, kind, value):
    with sandbox.open(program) as opened:
        first, second = opened.call("f"), opened.call("g", [1])
    assert (first.kind, first.value, first.loading) == (kind, value, True)
    assert first.stdout == ("out\n" if "print" in program else "")
    assert replace(first, seconds=0.0, stdout="") == second


def test_scripts(sandbox):
    script = """
import atexit, sys, threading
assert __name__ == "__main__" and sys.argv == ["solution.py"]
atexit.register(print, "last")
threading.Thread(target=lambda: print("thread")).start()
name = input()
print("hello", name, sys.stdin.read())
with open("left", "x") as file: file.write("x")
sys.exit(len(name))
"""
    with sandbox.open(script) as program:
        for name in ("Ada", "\u5982\u610f"):
            outcome = program.run(f"{name}\nrest")
            assert (outcome.kind, outcome.value) == ("exit", len(name)), outcome
            assert sorted(outcome.stdout.splitlines()) == sorted(["thread", f"hello {name} rest", "last"])


@pytest.mark.parametrize(
    ("program", "kind", "value"),
    [
        ("", "exit", 0),
        ("import sys; sys.exit('no')", "exit", 1),
        ("raise SystemExit(300)", "exit", 300 & 0xFF),
        ("import os; os._exit(7)", "exit", 7),
        ("import os; os._exit(139)", "exit", 139),
        ("int('x')", "exception", "ValueError"),
        ("open('/dev/stdin').read(); print(open(0).read())", "exit", 0),
        ("bytearray(10**12)", "memory", None),
        ("import os; os.kill(os.getpid(), 15)", "crash", None),
        ("import os; os.kill(os.getpid(), 2)", "exception", "KeyboardInterrupt"),
        ("import os; os.abort()", "crash", None),
        ("def f(:", "exception", "SyntaxError"),
        ("import os; os.write(3, b'\\xff\\xff\\xff\\x7f')", "exit", 0),
    ],
)
def test_ends_of_scripts(sandbox, program, kind, value):
    with sandbox.open(program) as opened:
        outcome = opened.run("x")
    assert (outcome.kind, outcome.value) == (kind, value), outcome


def test_large_values_go_both_ways(sandbox):
    text, numbers = "x\u4e2d" * 100_000, list(range(20_000))
    with sandbox.open("def f(text, numbers): return len(text), numbers[::-1]") as program:
        assert program.call("f", [text, numbers]).value == (200_000, numbers[::-1])
    with sandbox.open("import sys\nprint(len(sys.stdin.read()))") as program:
        assert program.run(text).stdout == "200000\n"
        with pytest.raises(TooLarge):
            program.run("x" * (65 << 20))


def test_hashes_are_fixed_and_chance_is_not(sandbox):
    program = "import random\ndef f(): return hash('ruyi')\ndef g(): return random.random()"
    found = []
    for _ in range(3):
        with sandbox.open(program) as opened:
            found.append((opened.call("f").value, opened.call("g").value))
    assert len({code for code, _ in found}) == 1
    assert len({number for _, number in found}) == 3


def test_nothing_passes_from_one_program_to_the_next(sandbox):
    leave = """
import builtins, json, os, random, socket, sys, math
from multiprocessing import shared_memory
os.umask(0o777); os.environ["LEFT"] = "1"; builtins.left = math.left = sys.left = 1
json.dumps = builtins.sum = None
sys.modules["left"] = sys; sys.path.append("/tmp"); sys.setrecursionlimit(50)
open("/tmp/left", "w").close(); shared_memory.SharedMemory("shared", True, 10)
server = socket.socket(socket.AF_UNIX); server.bind("\\0left")
def f(): return 1
"""
    look = """
import json, os, socket, sys, math
def f():
    reached = socket.socket(socket.AF_UNIX).connect_ex("\\0left") == 0
    marked = [hasattr(place, "left") for place in (__builtins__, math, sys)]
    marked += ["left" in sys.modules, reached, "LEFT" in os.environ]
    return marked + [os.listdir("/tmp"), os.listdir("/dev/shm"), json.dumps(1), sum([1])]
"""
    with sandbox.open(look) as program:
        before = program.call("f")
    with sandbox.open(leave) as program:
        assert program.call("f").value == 1
    with sandbox.open(look) as program:
        assert program.call("f").value == before.value
    assert before.value == [False] * 6 + [[], [], "1", 1]


def test_recursion_is_as_deep_as_in_a_plain_process(sandbox):
    script = "def f(n): return n and f(n - 1)\nfor n in range(900, 1100):\n    try: f(n)\n"
    script += "    except RecursionError: break\nprint(n)"
    plain = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True).stdout
    with sandbox.open(script) as program:
        assert 0 <= int(program.run().stdout) - int(plain) <= 5


def test_clock_runs_over_all_calls(confinable):
    with (
        Sandbox(SandboxOptions(seconds=1.5)) as sandbox,
        sandbox.open("import time\ndef f(x): time.sleep(x); return x") as program,
    ):
        kinds = [program.call("f", [0.6]).kind for _ in range(4)]
    assert kinds[0] == "value" and kinds[-2:] == ["timeout"] * 2


def test_several_programs_at_once(confinable):
    slots, meeting = 3, threading.Barrier(3)
    with Sandbox(SandboxOptions(seconds=20), slots) as sandbox, ThreadPoolExecutor(slots) as threads:

        def work(number):
            users = set()
            with sandbox.open("import os\ndef f(x): return os.getuid(), x * x") as program:
                meeting.wait(60)
                for x in range(5):
                    user, square = program.call("f", [number + x]).value
                    users.add(user)
                    assert square == (number + x) ** 2
            return users

        users = list(threads.map(work, range(slots)))
    assert all(len(each) == 1 for each in users)


def test_a_program_that_is_open_outlives_its_sandbox(confinable):
    sandbox = Sandbox(SandboxOptions())
    program = sandbox.open("def f(): return 1")
    assert program.call("f").value == 1
    sandbox.close()
    assert program.call("f").value == 1
    program.close()
    with pytest.raises(ValueError, match="closed"):
        program.call("f")
    with pytest.raises(ValueError, match="closed"):
        sandbox.open("")


def test_unconfined_must_be_asked_for_and_has_its_limits():
    with Sandbox(SandboxOptions(mode="none", seconds=1)) as sandbox:
        with sandbox.open("import os\nopen('x', 'x').close()\ndef f(): return os.listdir(), os.getcwd()") as program:
            assert program.call("f").value[0] == ["x"]
        with sandbox.open("print(input())") as program:
            assert program.run("line\n").stdout == "line\n"
        with sandbox.open("import os\nos.fork()\nwhile True: pass") as program:
            assert program.run().kind == "timeout"
        with sandbox.open("bytearray(10**10)") as program:
            assert program.run().kind == "memory"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mode": "bubblewarp"}, "sandbox.mode"),
        ({"seconds": 0}, "sandbox.seconds"),
        ({"seconds": float("nan")}, "sandbox.seconds"),
        ({"memory_mb": 1}, "sandbox.memory_mb"),
        ({"disk_mb": 0.5}, "sandbox.disk_mb"),
        ({"processes": True}, "sandbox.processes"),
        ({"output_kb": 0}, "sandbox.output_kb"),
    ],
)
def test_impossible_options_are_refused(options, key):
    with pytest.raises(Refusal) as refusal:
        SandboxOptions(**options)
    assert refusal.value.key == key


def test_unknown_language_is_refused():
    with Sandbox(SandboxOptions(mode="none")) as sandbox, pytest.raises(Refusal, match="cobol"):
        sandbox.open("", language="cobol")
