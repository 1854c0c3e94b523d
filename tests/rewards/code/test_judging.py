import pytest

from ruyi_rl.rewards.code import CodeJudge, CodeOptions, Verdict, credit
from ruyi_rl.rewards.sandbox import Confined

# Rows in MBPP's shape: the asserts, a right program, and wrong ones.
MBPP = [
    (["assert similar((3, 4, 5, 6), (5, 7, 4, 10)) == (4, 5)"],
     "def similar(a, b): return tuple(sorted(set(a) & set(b)))",
     ["def similar(a, b): return sorted(set(a) & set(b))", "def similar(a, b): return (4, 5, 6)"]),
    (["assert set(common([1, 2, 3], [2, 3, 4])) == set([2, 3])", "assert set(common([1], [2])) == set()"],
     "def common(a, b): return [x for x in b if x in a]",
     ["def common(a, b): return a", "def common(a, b): return None", "def common(a, b): return set"]),
    (["import math\nassert math.isclose(volume(2), 33.510321638291124, rel_tol=0.001)"],
     "import math\ndef volume(r): return 4 / 3 * math.pi * r ** 3",
     ["def volume(r): return 4 / 3 * r ** 3", "def volume(r): return '33.51'"]),
    (["assert counts('aab') == {'a': 2, 'b': 1}", "assert counts('') == {}"],
     "from collections import Counter\ndef counts(s): return dict(Counter(s))",
     ["def counts(s): return {'a': 2, 'b': 1}", "def counts(s): return {}"]),
    (["assert smallest([3, 1, 2]) == 1", "try:\n    smallest([])\n    assert False\nexcept ValueError:\n    pass"],
     "def smallest(xs): return min(xs)",
     ["def smallest(xs): return min(xs) if xs else None", "def smallest(xs): return sorted(xs)[0]",
      "raise ValueError", "def smallest(xs): raise ValueError"]),
    (["assert is_even(2)", "assert not is_even(3)", "assert is_even(0) == True"],
     "def is_even(x): return x % 2 == 0", ["def is_even(x): return x % 2", "def is_even(x): return True"]),
    (["assert sum(10, 15) == 6", "assert sum(100, 150) == 93"],
     "def sum(a, b):\n    return 1 + 5 if a == 10 else 93", ["def sum(a, b): return a + b", "x = 1"]),
    (["x = [3, 1, 2]\nsort(x)\nassert x == [1, 2, 3]"],
     "def sort(x): x.sort()", ["def sort(x): return sorted(x)", "def sort(x): x.reverse()"]),
    (["assert outer(3) == inner(3) + 1", "assert inner(0) == 0"],
     "def inner(x): return x * x\ndef outer(x): return inner(x) + 1",
     ["def outer(x): return x * x + 1", "def inner(x): return 1\ndef outer(x): return 2"]),
    (["assert abs(root(2) - 1.4142) < 1e-3", "assert root(4) == 2", "assert str(root(-1)) == 'nan'"],
     "def root(x): return x ** 0.5 if x >= 0 else float('nan')",
     ["def root(x): return x ** 0.5", "def root(x): return x / 2"]),
    (["assert list(first(3, 'abcd')) == ['a', 'b', 'c']"], "def first(n, s): return list(s[:n])",
     ["def first(n, s): return iter(s)", "def first(n, s): return s", "def first(n, s): return n"]),
    (["assert list(some(3)) == [0, 1, 2]", "assert list(some(0)) == []"], "def some(n): yield from range(n)",
     ["def some(n): yield 0", "def some(n):\n    while True: yield 0", "def some(n): yield print",
      "def some(n):\n    yield 0\n    raise StopIteration"]),
    (["assert some(3) == [0, 1, 2]"], "def some(n): return list(range(n))",
     ["def some(n): return iter(range(n))", "def some(n): return range(n)", "def some(n): yield from range(n)",
      "def some(n): return map(int, range(n))", "def some(n): return dict.fromkeys(range(n)).keys()"]),
    (["assert count('aab') == {'a': 2, 'b': 1}"], "from collections import Counter\ndef count(s): return Counter(s)",
     ["from collections import defaultdict\ndef count(s): return defaultdict(int)",
      "class A(dict):\n    def __eq__(s, o): return True\ndef count(s): return A()"]),
    (["assert pair(1) == (1, 2)"],
     "from collections import namedtuple\ndef pair(x): return namedtuple('P', 'a b')(x, 2)",
     ["class A(tuple):\n    def __eq__(s, o): return True\ndef pair(x): return A()"]),
    (["assert bits(5) == 0b101 and bits(2**70 + 1) == 2**70 + 1"], "def bits(x): return x",
     ["def bits(x): return float(x)"]),
]  # fmt: skip


def block(program):
    return f"Here:\n```python\n{program}\n```"


@pytest.mark.parametrize("asserts, right, wrong", MBPP)
def test_rows_in_the_shape_of_mbpp(judge, asserts, right, wrong):
    row = {"test_list": asserts, "test_setup_code": "", "challenge_test_list": []}
    assert judge.judge(block(right), row) == Verdict("passed", len(asserts), len(asserts))
    for program in wrong:
        found = judge.judge(block(program), row)
        assert found.reason != "passed", program
        # The same where no assertion may be taken for direct: then the trusted process runs them.
        again = judge.judge(block(program), row | {"test_setup_code": "pass"})
        assert (again.reason, again.passed) == (found.reason, found.passed), program


SUMS = {"inputs": ["2\n1 2\n3 4\n", "0\n", "1\n5 -5"], "outputs": ["3\n7\n", "", "0"]}
SUM = "for _ in range(int(input())):\n    print(sum(map(int, input().split())))"


@pytest.mark.parametrize(
    "program, reason, passed",
    [
        (SUM, "passed", 3),
        ("n, *x = map(int, open(0).read().split())\nfor i in range(n): print(x[2 * i] + x[2 * i + 1], end=' \\n')",
         "passed", 3),
        (SUM + "\nraise SystemExit", "passed", 3),
        ("def main():\n    " + SUM.replace("\n", "\n    ") + "\nif __name__ == '__main__':\n    main()", "passed", 3),
        ("print(3)", "failed", 0),
        (SUM + "\nprint()\nprint(1)", "failed", 0),
        (SUM + "\nraise SystemExit(1)", "exception", 0),
        (SUM + "\n1 / 0", "exception", 0),
        ("print(3)\nprint(7)", "failed", 1),
        ("import os\nprint(3)\nprint(7, flush=True)\nos._exit(0)", "failed", 1),
        ("n = int(input())\nif n: print(0 if n == 1 else '3\\n7')", "passed", 3),
        ("print(", "syntax", 0),
    ],
)  # fmt: skip
def test_programs_that_read_and_print(confinable, judge, program, reason, passed):
    assert judge.judge(block(program), SUMS).reason == reason
    with CodeJudge(CodeOptions(credit="share", seconds=10)) as sharing:
        verdict = sharing.judge(program, SUMS)
    assert (verdict.reason, verdict.passed, verdict.total) == (reason, passed, 3)


CALLS = {
    "entry_point": "f",
    "calls": [{"args": [2], "output": [2, "a"]}, {"args": [3], "kwargs": {"t": "b"}, "output": [3, "b"]}],
}


@pytest.mark.parametrize(
    "program, reason, passed",
    [
        ("def f(x, t='a'): return [x, t]", "passed", 2),
        ("def f(x, t='a'): return (float(x), t)", "passed", 2),
        ("def f(x, t='a'): return [x, 'a']", "failed", 1),
        ("def f(x): return [x, 'a']", "exception", 1),
        ("def f(x, t=0): return [x, t]", "failed", 0),
        ("def f(x, t='a'): return {x, t}", "failed", 0),
        ("class T(list): pass\ndef f(x, t='a'): return T([x, t])", "passed", 2),
        ("def f(x, t='a'): return iter([x, t])", "failed", 0),
        ("class T: pass\ndef f(x, t='a'): return T()", "unplain", 0),
        ("def g(x): return x", "missing", 0),
        ("def f(x, t='a'): return [x, t", "syntax", 0),
        ("import no_such_module\ndef f(x, t='a'): return [x, t]", "exception", 0),
        ("f = [2, 'a']", "missing", 0),
        ("", "no_program", 0),
    ],
)
def test_calls(judge, program, reason, passed):
    verdict = judge.judge(block(program), CALLS)
    assert verdict.reason == reason
    assert verdict.passed == passed


def test_reasons_and_credits(confinable):
    asserts = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3", "assert f(4) == 4"]
    program = block("def f(x):\n    if x == 3: raise KeyError(x)\n    return x")
    with CodeJudge(CodeOptions(credit="share", seconds=10)) as judge:
        verdict = judge.judge(program, asserts)
        assert (verdict.reason, verdict.passed, verdict.total) == ("exception", 3, 4)
        assert "f(3) == 3" in verdict.message and "KeyError" in verdict.message
        assert credit(judge.judge("def f(x): return x", asserts), "share") == 1.0
    assert credit(verdict, "all") == 0.0
    assert credit(verdict, "share") == 0.75
    assert [credit(verdict, "threshold", t) for t in (0.5, 0.75, 0.76)] == [1.0, 1.0, 0.0]


def test_a_pass_is_a_count():
    assert credit(Verdict("passed", 2, 2)) == 1.0
    assert credit(Verdict("passed", 0, 0)) == 0.0 and credit(Verdict("passed", 1, 2)) == 0.0
    assert credit(Verdict("timeout", 2, 2)) == 0.0
    assert credit(Verdict("no_tests")) is None and credit(Verdict("bad_tests")) is None
    assert credit(Verdict("no_program")) == credit(Verdict("no_program"), "share") == 0.0


def test_rows_without_usable_tests_give_no_opinion(judge):
    assert judge.judge("def f(): pass", None) == Verdict("no_tests")
    huge = {"calls": [{"args": [10**5000], "output": 1}], "entry_point": "f"}
    for row in (
        huge,
        {"asserts": []},
        ["assert f(...) == 1"],
        {"inputs": ["1"], "outputs": []},
        {"calls": "f"},
        "{",
        ["assert 1"],
    ):
        assert judge.judge("def f(): pass", row).reason == "bad_tests", row
    assert judge.judge("def f(): pass", {"inputs": [], "outputs": []}).reason == "no_tests"
    assert judge.judge("def f(): pass", {"calls": [], "entry_point": "f"}).reason == "no_tests"


def test_a_pass_needs_a_call_that_answered_and_an_assertion_that_ran(judge):
    expects = ["try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass"]
    assert judge.judge("def f(x): raise ValueError", expects).reason == "passed"
    assert judge.judge("raise ValueError", expects).reason == "exception"
    loop = {"test": "def check(candidate):\n    for x in candidate(3):\n        assert x > 0", "entry_point": "f"}
    assert judge.judge("def f(x): return [1]", loop).reason == "passed"
    assert judge.judge("def f(x): return []", loop).reason == "failed"


def test_time_is_bounded_for_the_program_and_for_its_tests(confinable):
    with CodeJudge(CodeOptions(seconds=0.5)) as judge:
        assert judge.judge("def f(x):\n    while True: pass", ["assert f(1) == 1"]).reason == "timeout"
        assert judge.judge("def f(x): return x", ["while f(1): pass\nassert True"]).reason == "timeout"
        assert judge.judge("while True: pass", SUMS).reason == "timeout"
        assert judge.judge("import time\ntime.sleep(60)", CALLS).reason == "timeout"
        assert judge.judge("def f(x): return x", ["assert f(1) == 1"]).reason == "passed"


ROUND_TRIP = {"asserts": ["assert dec([enc(5)] * 300) == 5"]}


@pytest.mark.parametrize("answer", ["'x' * 1000000", "eval('[' * 99 + ']' * 99)", "10**4299"])
def test_a_program_cannot_make_its_row_a_bad_one(judge, answer):
    """What it answers makes the next argument too large: its fault, where the same in a row would be the row's."""
    program = f"def enc(x): return {answer}\ndef dec(x): return x"
    tests = ["assert dec(enc(5) ** 2) == 5"] if "**" in answer else ROUND_TRIP
    assert judge.judge(program, tests).reason == "flood"
    assert judge.judge("def enc(x): return x\ndef dec(x): return x[0]", ROUND_TRIP).reason == "passed"
    assert judge.judge(program, ["assert dec([10**5000 + i for i in range(2)])"]).reason == "bad_tests"


def test_what_an_answer_costs_outside_is_on_the_programs_clock(confinable):
    """Else each of many tests of a large answer that is ready beforehand would add to the time."""
    large = "V = [10**4299] * 500\ndef f(x): return V"
    with CodeJudge(CodeOptions(seconds=0.5, credit="share")) as judge:
        spent = []
        judge_charge = Confined.charge
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Confined, "charge", lambda self, s: (spent.append(s), judge_charge(self, s + 0.2)))
            verdict = judge.judge(large, [f"assert str(f({n})) == '1'" for n in range(20)])
            assert (verdict.total, verdict.passed) == (20, 0) and 0 < len([s for s in spent if s > 1e-3]) < 5
            calls = {"entry_point": "f", "calls": [{"args": [n], "output": n} for n in range(9)]}
            assert judge.judge("def f(x): return x", calls).reason == "timeout"
            assert judge.judge("print(1)", {"inputs": [""] * 9, "outputs": ["1"] * 9}).reason == "timeout"
    with CodeJudge(CodeOptions(seconds=1)) as judge:
        assert judge.judge("def f(x): return -10**4299", ["assert round(5, f(1)) == 1"]).reason != "passed"


def test_a_second_reading_is_for_what_does_not_compile_only(confinable, tmp_path):
    note = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n"
    row = {"test": "def check(candidate):\n    assert candidate(2) == 4", "entry_point": "f", "prompt": "def f(x):\n"}
    with CodeJudge(CodeOptions(sandbox="none")) as judge:
        assert judge.judge("    return x * x\nThis is the square", row).reason == "passed"
        assert judge.judge(f"    return x * x\n{note}assert f(2) == 5\n", row).reason == "exception"
        late = f"    return x * x\n{note}import time\ntime.sleep(0.6)\nraise SyntaxError"
        assert judge.judge(late, row).reason == "exception"
    assert (tmp_path / "runs").read_text() == "xx"


def test_a_test_that_kills_the_trusted_process_stops_no_other(judge):
    suicide = ["import os, signal\nif f(1): os.kill(os.getppid(), signal.SIGKILL)\nassert True"]
    with pytest.raises(RuntimeError, match="gone"):
        judge.judge("def f(x): return x", suicide)
    assert judge.judge("def f(x): return x", ["assert f(1) == 1"]).reason == "passed"
