import json
import math
import os
import re
import subprocess
import sys

import pytest

from ruyi_rl.data.arithmetic import arithmetic_options, generate, generate_texts
from ruyi_rl.refusal import Refusal

BOX = re.compile(r"\\boxed\{(-?\d+)\}$")


def content(row):
    return row["completion"][0]["content"]


def question(row):
    return row["prompt"][0]["content"]


def rows(seed=1, **task):
    return generate(arithmetic_options(task), seed)


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_answers_are_what_python_computes(level):
    train, test = rows(level=level, train_problems=500, test_problems=200)
    assert (len(train), len(test)) == (500, 200)
    for row in train + test:
        # eval is the independent truth here, on text of digits and signs only.
        assert re.fullmatch(r"\d+([+-]\d+)+=", question(row))
        assert row["answer"] == str(eval(question(row)[:-1]))
        assert row["level"] == level
        assert row["terms"] == len(re.findall(r"\d+", question(row)))
    assert not any("completion" in row for row in test)


def test_splits_are_disjoint_and_problems_distinct():
    train, test = rows(level="easy", train_problems=554, test_problems=256)
    train_problems, test_problems = {question(row) for row in train}, {question(row) for row in test}
    assert len(train_problems) == 554 and len(test_problems) == 256
    assert not train_problems & test_problems
    # All 9² + 9³ problems there are, each once.
    assert train_problems | test_problems == {
        "+".join(map(str, terms)) + "="
        for terms in [(a, b) for a in range(1, 10) for b in range(1, 10)]
        + [(a, b, c) for a in range(1, 10) for b in range(1, 10) for c in range(1, 10)]
    }


def test_problems_are_even_over_the_numbers_of_terms():
    train, test = rows(terms=[2, 3, 4], train_problems=1000, test_problems=81)
    count = {terms: sum(row["terms"] == terms for row in train + test) for terms in (2, 3, 4)}
    assert count == {2: 81, 3: 500, 4: 500}
    assert {row["level"] for row in train} == {"custom"}


def test_seed_decides_and_hash_order_does_not():
    task = {"level": "hard", "train_problems": 50, "test_problems": 20, "demonstrations": 2}
    here = rows(7, **task)
    code = (
        "import json; from ruyi_rl.data.arithmetic import *;"
        f"print(json.dumps(generate(arithmetic_options({task!r}), 7)))"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == list(here)
    assert rows(8, **task) != here


def test_error_rates_do_not_change_the_problems():
    one = rows(train_problems=300, test_problems=50)
    other = rows(train_problems=300, test_problems=50, wrong={"direct": 0.9}, styles={"direct": 1.0}, demonstrations=2)
    assert [question(row) for row in one[0]] * 2 == [question(row) for row in other[0]]
    assert one[1] == other[1]


def test_style_and_error_shares_are_as_stated():
    train, _ = rows(train_problems=4000, demonstrations=3)
    shares = {"style": (0.6, [row["style"] == "direct" for row in train])}
    for style, rate in (("direct", 0.25), ("worked", 0.1)):
        wrong = [BOX.search(content(row))[1] != row["answer"] for row in train if row["style"] == style]
        shares[style] = (rate, wrong)
    for expected, seen in shares.values():
        four_sigma = 4 * math.sqrt(expected * (1 - expected) / len(seen))
        assert abs(sum(seen) / len(seen) - expected) < four_sigma


def test_wrong_numbers_are_near_and_carried_through():
    train, _ = rows(level="hard", train_problems=3000, styles={"worked": 1.0}, wrong={"worked": 0.5})
    wrong_steps = set()
    for row in train:
        *steps, box = content(row).split(";")
        totals = []
        for step in steps:
            left, right = step.split("=")
            totals.append((eval(left), int(right)))
        errors = [number for number, (true, said) in enumerate(totals) if true != said]
        assert len(errors) == (box != rf"\boxed{{{row['answer']}}}")
        assert box == rf"\boxed{{{totals[-1][1]}}}"
        assert all(0 < abs(totals[number][0] - totals[number][1]) <= 3 for number in errors)
        # Step by step: the terms in the problem's order, each from the running total before it.
        said = [re.match(r"-?\d+", question(row))[0]] + [str(right) for _, right in totals]
        terms = re.findall(r"[+-]\d+", question(row))
        assert [step.split("=")[0] for step in steps] == [a + b for a, b in zip(said, terms, strict=False)]
        wrong_steps |= set(errors)
    assert wrong_steps == {0, 1, 2, 3, 4}


def test_demonstrations_are_drawn_anew():
    train, _ = rows(train_problems=200, demonstrations=4, wrong={})
    assert len(train) == 800
    by_problem = {}
    for row in train:
        by_problem.setdefault(question(row), set()).add(row["style"])
        assert BOX.search(content(row))[1] == row["answer"]
    assert len(by_problem) == 200
    assert 100 < sum(len(styles) == 2 for styles in by_problem.values()) < 200


def test_texts_are_prompt_and_demonstration():
    task = arithmetic_options({"train_problems": 50, "test_problems": 20})
    train, test = generate_texts(task, 3)
    expected, held_out = generate(task, 3)
    assert [row["text"] for row in train] == [question(row) + content(row) for row in expected]
    assert [row["text"].split("=")[0] + "=" for row in test] == [question(row) for row in held_out]
    assert all("prompt" not in row and BOX.search(row["text"]) for row in train + test)


@pytest.mark.parametrize(
    "task, key, message",
    [
        ({"levle": "easy"}, "data.task.levle", "did you mean 'level'?"),
        ({"level": "esy"}, "data.task.level", "did you mean 'easy'?"),
        ({"operators": "*"}, "data.task.operators", "'+' or '+-'"),
        ({"terms": [1]}, "data.task.terms", "at least 2"),
        ({"terms": []}, "data.task.terms", "at least 2"),
        ({"train_problems": 0}, "data.task.train_problems", "at least 1"),
        ({"test_problems": 1.5}, "data.task.test_problems", "whole number"),
        ({"styles": {"direkt": 1.0}}, "data.task.styles.direkt", "did you mean 'direct'?"),
        ({"styles": {"direct": 0.0}}, "data.task.styles", "above 0"),
        ({"styles": {"direct": -1.0}}, "data.task.styles", "from 0 up"),
        ({"wrong": {"worked": 1.5}}, "data.task.wrong", "0 to 1"),
    ],
)
def test_impossible_options_are_refused(task, key, message):
    with pytest.raises(Refusal) as caught:
        arithmetic_options(task)
    assert caught.value.key == key
    assert message in str(caught.value)


def test_too_few_problems_are_refused_with_the_numbers():
    with pytest.raises(Refusal, match="700 training and 111 held-out problems are 811, but only 810"):
        rows(level="easy", train_problems=700, test_problems=111)
