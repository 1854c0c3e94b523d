import json
import math
import os
import re
import subprocess
import sys

import pytest

from ruyi_rl.data.toy_code import KINDS, Function, functions, generate, generate_texts, near, toy_code_options
from ruyi_rl.refusal import Refusal

PROGRAM = re.compile(r"(?:#(?P<plan>[a-z]+)\n)?def f\(x\):return (?P<body>.+)")
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# What each form computes, written a second time.
TRUTH = {
    r"x\+(\d+)": lambda x, b: x + b,
    r"x-(\d+)": lambda x, b: x - b,
    r"(\d+)-x": lambda x, b: b - x,
    r"max\(x,(\d+)\)": lambda x, b: (x + b + abs(x - b)) // 2,
    r"min\(x,(\d+)\)": lambda x, b: (x + b - abs(x - b)) // 2,
    r"abs\(x-(\d+)\)": lambda x, b: x - b if x > b else b - x,
    r"(\d+)\*x\+(\d+)": lambda x, a, b: sum([x] * a) + b,
    r"(\d+)\*x\*x\+(\d+)": lambda x, a, b: a * x**2 + b,
    r"x\+'(\d+)'": lambda x, b: f"{x}{b}",
    r"'(\d+)'\+x": lambda x, b: f"{b}{x}",
    r"x\+x\+'(\d+)'": lambda x, b: f"{x * 2}{b}",
    r"x\[::-1\]\+'(\d+)'": lambda x, b: "".join(reversed(x)) + str(b),
    r"x\.upper\(\)\+'(\d+)'": lambda x, b: x.translate(str.maketrans("abcdefghijklmnopqrstuvwxyz", CAPITALS)) + str(b),
}


def body(row):
    return PROGRAM.fullmatch(row["completion"][0]["content"])["body"]


def question(row):
    return row["prompt"][0]["content"]


def rows(seed=1, **task):
    return generate(toy_code_options(task), seed)


def truth(text):
    found = [(form, match) for form in TRUTH if (match := re.fullmatch(form, text))]
    ((form, match),) = found
    return lambda x: TRUTH[form](x, *map(int, match.groups()))


def passes(text, row):
    """Whether a right interpreter would find the body right on all hidden calls."""
    return all(truth(text)(*call["args"]) == call["output"] for call in row["tests"]["calls"])


def test_values_are_what_the_forms_say():
    every = [function for kind in KINDS for function in functions(kind)]
    assert len(every) == 99 * (3 + 2 + 1 + 8 + 8 + 5)
    for function in every:
        again = truth(function.body)
        shown = re.findall(r"f\((\d+|'\w*')\)=(-?\d+|'\w*')", function.problem)
        assert len(shown) == 2 and function.problem == " ".join(f"f({x})={y}" for x, y in shown)
        assert all(repr(again(eval(x))) == y for x, y in shown)
        tests = function.tests()
        assert tests["entry_point"] == "f" and len(tests["calls"]) >= 4
        assert all(again(*call["args"]) == call["output"] for call in tests["calls"])
        hidden = {repr(call["args"][0]) for call in tests["calls"]}
        assert len(hidden) == len(tests["calls"]) and not hidden & {x for x, _ in shown}


def test_examples_and_tests_each_settle_the_function():
    every = [function for kind in KINDS for function in functions(kind)]
    assert len({function.problem for function in every}) == len(every)
    assert len({json.dumps(function.tests()) for function in every}) == len(every)


def test_a_held_out_function_is_in_no_training_row():
    train, test = rows(train_problems=2000, test_problems=400, demonstrations=3)
    assert len(train) == 6000 and len({question(row) for row in train}) == 2000
    assert len({question(row) for row in test}) == 400
    assert not {question(row) for row in train} & {question(row) for row in test}
    # Nor is it what a wrong demonstration defines.
    right = {function.problem: function.body for kind in KINDS for function in functions(kind)}
    assert not {body(row) for row in train} & {right[question(row)] for row in test}
    assert all("completion" not in row and "style" not in row for row in test)


def test_problems_are_even_over_the_kinds():
    train, test = rows(train_problems=900, test_problems=99)
    count = {kind: sum(row["kind"] == kind for row in train + test) for kind in KINDS}
    assert count == {"distance": 99, "clamp": 180, "shift": 180, "linear": 180, "square": 180, "text": 180}
    train, test = rows(kinds=["text"], train_problems=400, test_problems=95)
    assert {row["kind"] for row in train + test} == {"text"}


def test_seed_decides_and_hash_order_does_not():
    task = {"train_problems": 50, "test_problems": 20, "demonstrations": 2}
    here = rows(7, **task)
    code = (
        f"import json; from ruyi_rl.data.toy_code import *; print(json.dumps(generate(toy_code_options({task!r}), 7)))"
    )
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == list(here)
    assert rows(8, **task) != here


def test_error_rates_do_not_change_the_problems():
    one = rows(train_problems=300, test_problems=50)
    other = rows(train_problems=300, test_problems=50, wrong={"direct": 0.9}, styles={"direct": 1.0}, demonstrations=2)
    assert [question(row) for row in one[0]] * 2 == [question(row) for row in other[0]]
    assert one[1] == other[1]


def test_style_and_error_shares_are_as_stated():
    train, _ = rows(demonstrations=4)
    shares = {"style": (0.6, [row["style"] == "direct" for row in train])}
    for style, rate in (("direct", 0.25), ("planned", 0.1)):
        shares[style] = (rate, [not passes(body(row), row) for row in train if row["style"] == style])
    for expected, seen in shares.values():
        four_sigma = 4 * math.sqrt(expected * (1 - expected) / len(seen))
        assert abs(sum(seen) / len(seen) - expected) < four_sigma
    for row in train:
        plan = PROGRAM.fullmatch(row["completion"][0]["content"])["plan"]
        assert plan == (row["kind"] if row["style"] == "planned" else None)


def test_wrong_demonstrations_have_one_number_near_the_right_one():
    train, _ = rows(wrong={"direct": 1.0, "planned": 1.0})
    right = {function.problem: function.body for kind in KINDS for function in functions(kind)}
    for row in train:
        taught, meant = body(row), right[question(row)]
        assert re.sub(r"\d+", "n", taught) == re.sub(r"\d+", "n", meant)
        apart = [abs(int(a) - int(b)) for a, b in zip(*(re.findall(r"\d+", t) for t in (taught, meant)), strict=True)]
        assert sorted(apart)[:-1] == [0] * (len(apart) - 1) and 1 <= max(apart) <= 3


def test_where_all_near_functions_are_held_out_a_demonstration_stays_right():
    assert [other.offset for other in near(Function("shift", "x+{b}", None, 2))] == [1, 3, 4, 5]
    train, test = rows(kinds=["distance"], train_problems=1, test_problems=98, wrong={"direct": 1.0, "planned": 1.0})
    assert len(test) == 98 and passes(body(train[0]), train[0])


def test_texts_are_prompt_and_demonstration():
    task = toy_code_options({"train_problems": 50, "test_problems": 20})
    train, test = generate_texts(task, 3)
    expected, held_out = generate(task, 3)
    joined = [question(row) + "\n" + row["completion"][0]["content"] for row in expected]
    assert [row["text"] for row in train] == joined
    assert [row["text"].split("\n")[0] for row in test] == [question(row) for row in held_out]
    assert all(PROGRAM.fullmatch(row["text"].partition("\n")[2]) for row in train + test)


@pytest.mark.parametrize(
    "task, key, message",
    [
        ({"kind": ["shift"]}, "data.task.kind", "did you mean 'kinds'?"),
        ({"kinds": ["linaer"]}, "data.task.kinds", "did you mean 'linear'?"),
        ({"kinds": []}, "data.task.kinds", "a list of different kinds"),
        ({"kinds": "shift"}, "data.task.kinds", "a list of different kinds"),
        ({"kinds": ["shift", "shift"]}, "data.task.kinds", "a list of different kinds"),
        ({"train_problems": 0}, "data.task.train_problems", "at least 1"),
        ({"test_problems": True}, "data.task.test_problems", "whole number"),
        ({"styles": {"direkt": 1.0}}, "data.task.styles.direkt", "did you mean 'direct'?"),
        ({"styles": {"direct": 0.0}}, "data.task.styles", "above 0"),
        ({"wrong": {"planned": -1.0}}, "data.task.wrong", "from 0 up"),
        ({"wrong": {"planned": 1.5}}, "data.task.wrong", "0 to 1"),
    ],
)
def test_impossible_options_are_refused(task, key, message):
    with pytest.raises(Refusal) as caught:
        toy_code_options(task)
    assert caught.value.key == key
    assert message in str(caught.value)


def test_too_few_problems_are_refused_with_the_numbers():
    with pytest.raises(Refusal, match="90 training and 10 held-out problems are 100, but only 99 different ones exist"):
        rows(kinds=["distance"], train_problems=90, test_problems=10)
