import json

import pytest

from ruyi_rl.rewards.code.rows import AssertTests, BadTests, Call, CallTests, ScriptTests, read_tests

CHECK = "def check(candidate):\n    assert candidate(2) == 4"
TWO = CallTests((Call("f", [2], {}, 4), Call("f", [3], {"k": 1}, 9)))


@pytest.mark.parametrize(
    "row, tests",
    [
        ({"asserts": ["assert f(2) == 4"], "setup": "x = 1"}, AssertTests("x = 1", ("assert f(2) == 4",))),
        (["assert f(2) == 4", " "], AssertTests("", ("assert f(2) == 4",))),
        ({"test_list": ["assert f(2)"], "test_setup_code": "a", "test_imports": ["b", "c"]},
         AssertTests("b\nc\na", ("assert f(2)",))),
        ({"test": CHECK, "entry_point": "f", "prompt": "def f(x):"}, AssertTests("", (), CHECK, "f", "def f(x):")),
        ({"inputs": ["1\n", ["1", "2"]], "outputs": ["2", ["3"]]}, ScriptTests(("1\n", "1\n2"), ("2", "3"))),
        ({"entry_point": "f", "calls": [{"args": [2], "output": 4}, {"args": [3], "kwargs": {"k": 1}, "output": 9}]},
         TWO),
        ({"calls": [{"function": "f", "args": [2], "output": 4},
                    {"function": "f", "args": [3], "kwargs": {"k": 1}, "expected": 9}]}, TWO),
        ({"calls": {"function": "f", "args": [[2], [3]], "kwargs": [{}, {"k": 1}], "expected": [4, 9]}}, TWO),
        ({"calls": [{"function": "f", "output": None}]}, CallTests((Call("f", [], {}, None),))),
        ({"calls": [], "entry_point": "f"}, CallTests(())),
        (None, None),
    ],
)  # fmt: skip
def test_shapes_as_objects_and_as_json_text(row, tests):
    assert read_tests(row) == tests
    assert read_tests(json.dumps(row)) == tests
    if isinstance(row, dict):
        # Arrow fills what a row lacks with None.
        absent = dict.fromkeys(["asserts", "test", "test_list", "inputs", "outputs", "calls", "setup", "prompt"])
        assert read_tests(absent | row) == tests


def test_fields_in_columns_of_their_own():
    whole = read_tests({"test": CHECK, "entry_point": "f", "prompt": "def f(x):"})
    assert read_tests(CHECK, entry_point="f", prompt="def f(x):", setup=None) == whole
    assert read_tests(["assert g(1)"], setup="import math") == AssertTests("import math", ("assert g(1)",))
    assert read_tests({"test": CHECK, "entry_point": "f"}, entry_point="g").function == "f"
    assert read_tests("") is None
    script = AssertTests("", ("x = 1", "assert f(x) == 1", "for i in range(3):\n    assert f(i) == i"))
    assert read_tests("x = 1\nassert f(x) == 1\nfor i in range(3):\n    assert f(i) == i\n") == script


@pytest.mark.parametrize(
    "row, message",
    [
        ({"inputs": ["1", "2"], "outputs": ["1"]}, "2 inputs but 1 outputs"),
        ({"inputs": ["1"]}, "two lists"),
        ({"inputs": "12", "outputs": "34"}, "two lists"),
        ({"inputs": [1], "outputs": ["1"]}, "not int"),
        ({"inputs": [[1]], "outputs": [["1"]], "fn_name": "f"}, "fn_name"),
        ({"calls": {"function": "f", "args": [[1], [2]], "expected": [1]}}, "2 args, 2 kwargs and 1 expected"),
        ({"calls": {"function": "f", "args": [[1]], "kwargs": [{}, {}], "expected": [1]}}, "1 args, 2 kwargs"),
        ({"calls": [{"args": [1], "output": 1}]}, "function is a name"),
        ({"calls": [{"function": "f", "args": [1]}]}, "args and output"),
        ({"calls": [{"function": "f", "args": 1, "output": 1}]}, "args a list"),
        ({"calls": 3}, "list of objects"),
        ({"test": CHECK}, "needs entry_point"),
        ({"asserts": [1]}, "asserts is a text"),
        ({"asserts": ["assert f(1)"], "calls": []}, "this one has asserts and calls"),
        ({"setup": "x"}, "has only setup"),
        ({}, "no fields"),
        (3, "not int"),
        ("def f(", "neither JSON"),
        ("assert f(", "do not compile"),
        ('{"asserts": [', "neither JSON"),
        ("3", "not int"),
    ],
)
def test_refused_rows_say_why(row, message):
    with pytest.raises(BadTests, match=message):
        read_tests(row)
