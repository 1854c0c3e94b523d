"""Test source against programs that run right here: what is counted, and what a program's answers can do."""

import os
import time

import pytest

from ruyi_rl.rewards.code.examiner import Examiner
from ruyi_rl.rewards.code.instrumentation import compile_tests
from ruyi_rl.rewards.code.rows import AssertTests, BadTests


@pytest.fixture(scope="module")
def examiner():
    with Examiner() as examiner:
        yield examiner


def run(examiner, tests, stop=False, seconds=10.0, **functions):
    """The result of tests against Python functions; a function may return what is not plain, or end the program."""

    def ask(name, args, kwargs):
        if name not in functions:
            return "missing", None, f"no function {name}"
        try:
            return "value", functions[name](*args, **kwargs), args
        except Exception as error:  # noqa: BLE001  whatever the stand-in for a program raises
            return "raise", type(error).__name__, str(error)
        except SystemExit as error:
            return str(error), None, "the program is gone"

    tests = tests if isinstance(tests, AssertTests) else AssertTests("", tuple(tests))
    return examiner.examine(compile_tests(tests), ask, seconds, stop)


def counts(result):
    kind, found = result
    assert kind == "verdict", result
    return found["passed"], found["failed"], found["whole"]


def check(source, function="f", **fields):
    return AssertTests(**{"setup": "", "statements": (), "check": source, "function": function} | fields)


def square(x):
    return x * x


def test_every_statement_that_asserts_is_one_test(examiner):
    statements = ["import math", "assert f(2) == 4", "x = f(3)\nassert x == 9\nassert x > 0", "assert f(2) == 5"]
    assert counts(run(examiner, statements, f=square)) == (2, 1, False)
    assert counts(run(examiner, statements[:3], f=square)) == (2, 0, True)
    assert counts(run(examiner, statements[:3], f=lambda x: 4)) == (1, 1, False)
    assert counts(run(examiner, statements, f=lambda x: 0)) == (0, 3, False)
    assert counts(run(examiner, statements, stop=True, f=lambda x: 0)) == (0, 1, False)


def test_check_counts_its_assertions(examiner):
    source = (
        "def check(candidate):\n    for i in range(5):\n        assert candidate(i) == i * i\n    assert candidate(9)"
    )
    assert counts(run(examiner, check(source), f=square)) == (6, 0, True)
    assert counts(run(examiner, check(source), f=lambda x: 0 if x == 3 else x * x)) == (5, 1, False)
    assert counts(run(examiner, check(source), stop=True, f=lambda x: 0 if x == 3 else x * x)) == (3, 2, False)


def test_assertions_that_are_never_reached_count_as_failed(examiner):
    source = "def check(candidate):\n    x = candidate(1)['a']\n    assert x == 1\n    assert x == 1\n    assert x == 1"
    assert counts(run(examiner, check(source), f=lambda x: {"a": 1})) == (3, 0, True)
    assert counts(run(examiner, check(source), f=lambda x: {})) == (0, 3, False)
    returned = "def check(candidate):\n    assert candidate(1)\n    raise SystemExit(0)"
    assert counts(run(examiner, check(returned), f=square)) == (1, 1, False)


def test_a_loop_over_nothing_is_no_pass(examiner):
    assert (
        counts(run(examiner, check("def check(candidate):\n    for x in candidate(3): assert x > 0"), f=lambda x: []))[
            0
        ]
        == 0
    )
    assert counts(run(examiner, ["for x in f(3): assert x > 0"], f=lambda x: [])) == (0, 1, False)
    assert counts(run(examiner, ["for x in f(3): assert x > 0"], f=lambda x: [1])) == (1, 0, True)


RAISES = [
    "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass",
    "try:\n    f(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False",
    "ok = False\ntry:\n    f(-1)\nexcept (TypeError, ValueError):\n    ok = True\nassert ok",
    "import unittest\nwith unittest.TestCase().assertRaises(ValueError):\n    f(-1)",
]


@pytest.mark.parametrize("statement", RAISES)
def test_expected_exceptions(examiner, statement):
    def root(x):
        if x < 0:
            raise ValueError("a negative number")
        return x**0.5

    def other(x):
        raise KeyError(x)

    indented = "def check(candidate):\n    " + statement.replace("\n", "\n    ").replace("f(-1)", "candidate(-1)")
    for tests in ([statement], check(indented)):
        assert counts(run(examiner, tests, f=root))[1:] == (0, True)
        assert counts(run(examiner, tests, f=root))[0] > 0
        for wrong in (square, other):
            assert counts(run(examiner, tests, f=wrong))[1:] != (0, True)


def test_exceptions_of_the_programs_own(examiner):
    class BadInput(Exception):
        pass

    def bad(x):
        raise BadInput("no")

    statement = "try:\n    f(-1)\nexcept BadInput as error:\n    assert str(error) == 'no'"
    assert counts(run(examiner, [statement], f=bad)) == (1, 0, True)
    assert counts(run(examiner, [statement], f=square)) == (0, 1, False)


SWALLOWS = [
    "try:\n    f(1)\n    assert False\nexcept:\n    pass",
    "try:\n    assert f(1)\nexcept BaseException:\n    pass",
    "import contextlib\nwith contextlib.suppress(BaseException):\n    assert f(1) == 1",
    "import contextlib\nwith contextlib.suppress(BaseException):\n    f(1)\nassert True",
]


@pytest.mark.parametrize("statement", SWALLOWS)
def test_no_test_takes_the_programs_end_for_an_exception(examiner, statement):
    def end(x):
        raise SystemExit("timeout")

    for stop in (True, False):
        for tests in ([statement], check("def check(candidate):\n    " + statement.replace("\n", "\n    "))):
            kind, found = run(examiner, tests, stop=stop, f=end)
            assert (kind, found["whole"], found["reason"]) == ("verdict", False, "timeout")


def test_the_programs_assertion_errors_are_exceptions_like_others(examiner):
    def angry(x):
        assert x > 0

    assert counts(run(examiner, ["try:\n    f(-1)\nexcept AssertionError:\n    pass"], f=angry)) == (1, 0, True)
    assert counts(
        run(examiner, ["try:\n    assert f(-1) == 2\nexcept AssertionError:\n    assert f(-1) == 1"], f=square)
    ) == (
        1,
        0,
        True,
    )
    assert counts(run(examiner, ["assert f(-1) is None"], f=angry)) == (0, 1, False)


def test_helpers_come_from_the_prompt_and_the_setup_not_from_the_program(examiner):
    prompt = "def twice(x):\n    return 2 * x\n\ndef f(x):\n    ''' Doc. '''\n"
    source = "def check(candidate):\n    assert twice(candidate(1)) == 6 and f(1) == 3 and k == 1"
    tests = check(source, prompt=prompt, setup="k = 1")
    assert counts(run(examiner, tests, f=lambda x: 3, twice=lambda x: 0)) == (1, 0, True)


def test_the_programs_function_wins_over_one_of_the_setup(examiner):
    tests = AssertTests("def f(x): return 4", ("x = f(2)\nassert x == 4",), function="f")
    assert counts(run(examiner, tests, f=lambda x: 5)) == (0, 1, False)


def test_exit_is_not_caught_as_an_exception(examiner):
    tests = compile_tests(AssertTests("", ("try:\n    f(1)\nexcept Exception:\n    pass",)))
    kind, found = examiner.examine(tests, lambda *call: ("raise", "SystemExit", "0"), 10.0, False)
    assert (kind, found["whole"], found["reason"]) == ("verdict", False, "exception")


def test_builtins_are_the_tests_own_unless_nothing_else_is_tested(examiner):
    forge = {name: (lambda *a: [1, 2]) for name in ("sorted", "len", "set", "print")}
    assert counts(run(examiner, ["assert sorted(f(3)) == [1, 2]"], f=lambda x: [], **forge)) == (0, 1, False)
    assert counts(run(examiner, ["assert sum(1, 2) == 3", "assert sum(2, 3) == 5"], sum=lambda a, b: a + b)) == (
        2,
        0,
        True,
    )
    both = AssertTests("", ("assert set(sum(1, 2)) == {3}",), function="sum")
    assert counts(run(examiner, both, sum=lambda a, b: [a + b])) == (1, 0, True)


def test_modules_that_the_tests_forgot_to_import(examiner):
    assert counts(run(examiner, ["assert math.isclose(f(2), 4.0)"], f=square, math=square)) == (1, 0, True)


def test_arguments_cross_as_plain_data_and_come_back_changed(examiner):
    def sort(items):
        items.sort()

    def grow(mapping, members):
        mapping["b"] = 2
        members.add(3)

    statements = [
        "x = [3, 1]\nf(x)\nassert x == [1, 3]",
        "d, s = {'a': 1}, {1}\ng(d, s)\nassert d == {'a': 1, 'b': 2} and s == {1, 3}",
        "import collections as c\nassert h(c.namedtuple('P', 'x y')(1, 2), c.OrderedDict(a=1)) is True",
        "import enum\nassert h(range(3), enum.IntEnum('E', 'A').A)",
    ]
    kinds = []

    def kind(*args):
        kinds.extend(map(type, args))
        return True

    assert counts(run(examiner, statements, f=sort, g=grow, h=kind)) == (4, 0, True)
    assert kinds == [tuple, dict, list, int]


@pytest.mark.parametrize(
    "tests, message",
    [
        (["assert nothing.at_all(f(1))"], "NameError|object of the program"),
        (["import no_such_module", "assert f(1)"], "no_such_module"),
        (["assert f(lambda x: x) == 1"], "a function is no plain data"),
        (AssertTests("raise OSError('setup')", ("assert f(1)",)), "OSError: setup"),
        (check("raise OSError('body')\ndef check(candidate):\n    assert candidate(1)"), "OSError: body"),
        (check("def check(candidate):\n    undefined.x = 1\n    assert candidate(1)"), "NameError|object"),
    ],
)
def test_tests_that_are_broken_themselves_blame_no_program(examiner, tests, message):
    try:
        kind, found = run(examiner, tests, f=square)
    except BadTests as error:
        kind, found = "unusable", str(error)
    assert kind == "unusable"
    assert any(part in found for part in message.split("|")), found


@pytest.mark.parametrize(
    "tests, message",
    [
        (["f(1)"], "assert nothing"),
        (["assert 1 == 1"], "no function"),
        (["assert f(1"], "compile"),
        (["assert f(1)", "return"], "compile"),
        ([], "assert nothing|no function"),
        (["root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2"], "object of the program's own"),
        (["assert longest([Pair(1, 2), Pair(2, 3)], 2) == 1"], "object of the program's own"),
        (["c = Cache(2)\nc.put(1, 1)\nassert c.get(1) == 1"], "object of the program's own"),
        (check("def test(candidate):\n    assert candidate(1)"), "does not define check"),
        (check("def check(candidate):\n    candidate(1)"), "assert nothing"),
    ],
)
def test_tests_that_cannot_be_compiled(tests, message):
    with pytest.raises(BadTests) as refusal:
        compile_tests(tests if isinstance(tests, AssertTests) else AssertTests("", tuple(tests)))
    assert any(part in str(refusal.value) for part in message.split("|"))


def test_examinations_share_nothing(examiner):
    spoil = ["import builtins, random\nbuiltins.sorted = None\nrandom.random = None\nassert f(1) == 1"]
    assert counts(run(examiner, spoil, f=square)) == (1, 0, True)
    assert counts(run(examiner, ["import random\nassert sorted([f(1)]) == [1] and random.random() < 1"], f=square)) == (
        1,
        0,
        True,
    )


def test_tests_that_hang_die_or_eat_memory_end(examiner):
    start = time.monotonic()
    assert run(examiner, ["while f(1): pass\nassert True"], seconds=0.5, f=square)[0] == "timeout"
    assert time.monotonic() - start < 5
    assert run(examiner, ["import os\nos._exit(f(0))\nassert True"], f=square)[0] == "crash"
    assert counts(run(examiner, ["assert len('a' * f(10**6)) == 1"], f=square)) == (0, 1, False)
    assert counts(run(examiner, ["assert f(2) == 4"], f=square)) == (1, 0, True)


def test_the_trusted_process_ends_with_its_parent():
    examiner = Examiner()
    run(examiner, ["assert f(2) == 4"], f=square)
    pid = examiner._end.peek()[2][0].pid
    examiner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert counts(run(examiner, ["assert f(2) == 4"], f=square)) == (1, 0, True)
    examiner.close()


SWALLOWED = [
    ("assert all(map(lambda x: f(x) == x * x, [2, 3]))", StopIteration),
    ("assert sum(map(lambda x: f(x) != x * x, range(5))) == 0", StopIteration),
    ("assert not any(map(f, [2]))", StopIteration),
    ("class Squares:\n    def __getitem__(self, i): return f(i)\nassert not list(Squares())", IndexError),
    (
        "class Square:\n    value = property(lambda self: f(2))\nassert getattr(Square(), 'value', 4) == 4",
        AttributeError,
    ),
    ("class Square:\n    value = property(lambda self: f(2))\nassert not hasattr(Square(), 'value')", AttributeError),
    ("for got, want in zip(map(f, [2, 3]), [4, 9]): assert got == want\nassert True", StopIteration),
    ("assert f is not None\nlist(map(f, [2]))", StopIteration),
    ("import threading\nt = threading.Thread(target=f, args=[1])\nt.start()\nt.join()\nassert True", ValueError),
    ("def g():\n    try: return f(1)\n    finally: return 4\nassert g() == 4", ValueError),
]


@pytest.mark.parametrize("source, kind", SWALLOWED)
def test_no_exception_of_the_program_is_swallowed_by_python_itself(examiner, source, kind):
    def stop(x):
        raise kind

    for tests in ([source], check("def check(candidate):\n    f = candidate\n    " + source.replace("\n", "\n    "))):
        for end in (True, False):
            status, found = run(examiner, tests, stop=end, f=stop)
            assert (status, found["whole"]) == ("verdict", False) and found["failed"], found
            assert found["reason"] in ("exception", "failed")


def test_a_capital_alone_makes_no_class(examiner):
    statements = ["assert Square(Square(2)) == 16", "assert Find_Max([Square(3)]) == 9"]
    assert counts(run(examiner, statements, Square=square, Find_Max=max)) == (2, 0, True)


def test_an_assertion_over_a_swallowed_exception_has_not_passed(examiner):
    def stop(x):
        if x > 2:
            raise StopIteration
        return x

    source = "def check(candidate):\n    assert candidate(1) == 1\n    assert list(map(candidate, [1, 3])) == [1]\n"
    source += "    assert candidate(2) == 2"
    assert counts(run(examiner, check(source), f=stop)) == (2, 1, False)


EXPECTED = [
    "with contextlib.suppress(ValueError):\n    f(-1)\nassert True",
    "def fails(x):\n    try: f(x)\n    except ValueError: return True\n    return False\nassert fails(-1)",
    "unittest.TestCase().assertRaises(ValueError, f, -1)",
    "with unittest.TestCase().assertRaisesRegex(ValueError, 'no'):\n    f(-1)",
    "try: list(f(x) for x in [-1])\nexcept (TypeError, ValueError): pass",
    "try:\n    try: f(-1)\n    finally: f(-2)\nexcept ValueError: pass",
    "try:\n    with unittest.TestCase().subTest(): f(-1)\nexcept Exception as error:\n    assert str(error) == 'no'",
    "try:\n    f(-1)\nexcept* ValueError:\n    pass",
    (
        "import threading\ndone = []\ndef work():\n    try: f(-1)\n    except ValueError: done.append(1)\n"
        "t = threading.Thread(target=work)\nt.start()\nt.join()\nassert done"
    ),
]


@pytest.mark.parametrize("source", EXPECTED)
def test_exceptions_that_the_tests_take_themselves(examiner, source):
    def root(x):
        if x < 0:
            raise ValueError("no")
        return x

    setup = "import contextlib, unittest"
    body = "def check(candidate):\n    f = candidate\n    " + source.replace("\n", "\n    ")
    for tests in (AssertTests(setup, (source,)), check(body, setup=setup)):
        passed, failed, whole = counts(run(examiner, tests, f=root))
        assert passed and not failed and whole
    helper = setup + "\ndef fails(x):\n    try: f(x)\n    except ValueError: return True"
    assert counts(run(examiner, AssertTests(helper, ("assert fails(-1)",)), f=root)) == (1, 0, True)


def test_a_stop_iteration_of_the_programs_can_be_expected(examiner):
    def stop(x):
        raise StopIteration

    assert counts(run(examiner, ["try:\n    f(1)\n    assert False\nexcept StopIteration:\n    pass"], f=stop))[2]
    generator = "try:\n    list(f(x) for x in [1])\n    assert False\nexcept RuntimeError:\n    pass"
    assert counts(run(examiner, [generator], f=stop)) == (1, 0, True)


def test_a_statement_that_fails_without_asserting_fails_the_program(examiner):
    def fail(x):
        raise ValueError

    assert counts(run(examiner, ["x = [1]\nf(x)", "assert x == [1]"], f=fail))[1:] != (0, True)


UNREACHED = [
    "for v in f(5): assert v > 0\nassert isinstance(f(5), list)",
    "for v, w in zip(f(5), [1, 2]):\n    assert v == w\nassert len(f(5)) < 9",
    "for v in f(5):\n    if v: assert v > 0\nassert True",
    "def positive(v):\n    assert v > 0\nfor v in f(5): positive(v)\nassert True",
    "values = f(5)\nwhile values: assert values.pop() > 0\nassert True",
    "import contextlib\nwith contextlib.nullcontext():\n    for v in f(5): assert v > 0\nassert True",
]


@pytest.mark.parametrize("source", UNREACHED)
def test_what_every_run_comes_to_must_have_been_reached(examiner, source):
    body = "def check(candidate):\n    f = candidate\n    " + source.replace("\n", "\n    ")
    for tests in ([source], check(body)):
        assert counts(run(examiner, tests, f=lambda x: [1, 2]))[1:] == (0, True)
        assert counts(run(examiner, tests, f=lambda x: []))[1:] != (0, True)


def test_branches_need_not_be_reached(examiner):
    source = (
        "def unused(x):\n    assert x\n"
        "def check(candidate):\n"
        "    for n in range(3):\n"
        "        if candidate(n) > 9:\n            assert n > 3\n"
        "        else:\n            assert n <= 3\n"
        "    try:\n        assert candidate('a')\n    except TypeError:\n        pass\n"
        "    else:\n        assert False\n"
        "    match candidate(2):\n        case 5:\n            assert False\n"
    )
    assert counts(run(examiner, check(source), f=square)) == (4, 0, True)


def test_an_argument_is_not_fitted_to_the_answer(examiner):
    def empty(x):
        x.clear()
        return []

    def sort(x):
        x.sort()
        return x

    def quiet(x):
        x.sort()

    compare = ["x = [3, 1, 2]", "assert f(x) == sorted(x)"]
    assert counts(run(examiner, compare, f=empty)) == (0, 1, False)
    assert counts(run(examiner, compare, f=sort)) == (1, 0, True)
    assert counts(run(examiner, ["x = [3, 1]\nassert f(x) == [1, 3]\nassert x == [1, 3]"], f=sort)) == (1, 0, True)
    assert counts(run(examiner, ["x = [3, 1]\nassert f(x) is None and x == [1, 3]"], f=quiet)) == (1, 0, True)
    loop = "def check(candidate):\n    for n in range(3):\n        x = [n, 1]\n        assert candidate(x) == sorted(x)"
    assert counts(run(examiner, check(loop), f=empty)) == (0, 3, False)


def test_iterators_are_gone_through_once_and_cross_back_as_lists(examiner):
    def ask(name, args, kwargs):
        return ("iterator", [1, 2], None) if name == "f" else ("value", args[0], None)

    source = "x = f(1)\nassert list(x) == [1, 2] and list(x) == []\nassert f(1) != [1, 2]\nassert g(f(1)) == [1, 2]"
    assert counts(examiner.examine(compile_tests(AssertTests("", (source,))), ask, 10.0, False)) == (1, 0, True)
