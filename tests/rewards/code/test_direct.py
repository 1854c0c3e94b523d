import ast

import pytest

from ruyi_rl.rewards.code.direct import read_assertions
from ruyi_rl.rewards.code.instrumentation import compile_tests
from ruyi_rl.rewards.code.rows import AssertTests

NAMES = {"f": "f", "candidate": "f"}


def read(source):
    return read_assertions(ast.parse(source).body, NAMES)


@pytest.mark.parametrize(
    "source, args, right, wrong",
    [
        ("assert f(2, 'a') == [4]", (2, "a"), [4], [5]),
        ("assert candidate(-1) == -1.5, 'message'", (-1,), -1.5, None),
        ("assert [1] == f()", (), [1], (1,)),
        ("assert f([1, {2: (3,)}])", ([1, {2: (3,)}],), 1, ""),
        ("assert not f(1)", (1,), [], [0]),
        ("assert f(1) is None", (1,), None, 0),
        ("assert f(1) is not True", (1,), False, True),
        ("assert abs(f(1) - 0.5) < 1e-6", (1,), 0.5, 0.51),
        ("assert sorted(f(1)) == [1, 2]", (1,), (2, 1), [1]),
        ("assert len(f(1)) + 1 > 2", (1,), "ab", "a"),
        ("assert f(1) in (1, 2)", (1,), 2, 3),
        ("assert 1 <= f(1) < 3", (1,), 1, 3),
        ("assert round(f(1), 2) == 0.33", (1,), 1 / 3, 0.5),
    ],
)
def test_one_call_and_literals(source, args, right, wrong):
    (found,) = read(source)
    assert (found.function, found.args, found.kwargs) == ("f", args, {})
    assert found.holds(right) is True and found.holds(wrong) is False


def test_keywords_constants_and_messages():
    first, second, third = read("import math\n'text'\npass\nassert f(1, key=[2]) == 3\nassert True\nassert 1 == 2")
    assert (first.args, first.kwargs, first.text) == ((1,), {"key": [2]}, "f(1, key=[2]) == 3")
    assert second.function is None and second.holds(None) and not third.holds(None)


@pytest.mark.parametrize(
    "source",
    [
        "assert f(f(1)) == 1", "assert f(1) == f(2)", "assert g(1) == f(1)", "assert f(x) == 1", "assert f(*[1]) == 1",
        "assert f(**{'a': 1}) == 1", "assert set(f(1)) == {1}", "assert f(1) * 9 == 9", "assert f(1) ** 2 == 4",
        "assert f(1)[0] == 1", "assert f(1).real == 1", "assert [x for x in f(1)] == [1]", "x = 1", "f(1)",
        "assert (lambda: f(1))() == 1", "assert f(1) if True else 0", "assert f(1) and f(2)", "assert f(1) == 10**3",
        "assert sorted(f(1), key=len) == []", "assert (y := f(1)) == 1", "assert {f(1): 1} == {1: 1}",
        "for i in [1]: assert f(i)",
        "assert round(5, f(1)) == 1", "assert sum(f(1), []) == []",
        "assert f'{f(1)}' == '1'", "assert isinstance(f(1), int)", "assert f == 1", "assert __answer__ == 1",
    ],
)  # fmt: skip
def test_everything_else_is_for_the_trusted_process(source):
    assert read(source) is None


@pytest.mark.parametrize(
    "fields, is_direct",
    [
        ({}, True),
        ({"setup": "import math\nk = 3\ndef helper(x): return x"}, True),
        ({"setup": "def sorted(x): return x"}, False),
        ({"setup": "len = 3"}, False),
        ({"setup": "k = print()"}, False),
        ({"setup": "pass"}, False),
        ({"statements": ("x = 1", "assert f(1) == 1")}, False),
        ({"statements": ("assert f(1) == 1\nassert f(1) == 2",)}, False),
        ({"statements": ("import math", "assert f(1) == 1")}, True),
        ({"check": "M = {'a': 1}\ndef check(candidate):\n    assert candidate(1) == 1", "function": "f"}, True),
        ({"check": "def check(c):\n    x = c(1)\n    assert x == 1", "function": "f"}, False),
        ({"check": "@print\ndef check(c):\n    assert c(1) == 1", "function": "f"}, False),
        ({"check": "def check(c, d=1):\n    assert c(1) == 1", "function": "f"}, False),
        ({"check": "def check(c):\n    assert c(1) == 1\ncheck(f)", "function": "f"}, False),
        ({"prompt": "def len(x): return 1\ndef f(x):\n", "function": "f"}, False),
    ],
)
def test_what_stands_around_the_assertions(fields, is_direct):
    fields = {"setup": "", "statements": () if "check" in fields else ("assert f(1) == 1",)} | fields
    assert (compile_tests(AssertTests(**fields)).direct is not None) is is_direct
