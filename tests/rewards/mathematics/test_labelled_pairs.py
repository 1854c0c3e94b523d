"""The gate of the judge: accuracy on labelled pairs, a figure a file."""

import json
from pathlib import Path

import pytest

from ruyi_rl.rewards.answers import judge

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def rows(name):
    file = DATA / name
    if not file.exists():
        pytest.skip(f"no labelled rows at {file}")
    return json.loads(file.read_text()) if file.suffix == ".json" else list(map(json.loads, file.open()))


def box(answer):
    return rf"so $\boxed{{{answer}}}$."


# Labels contradict each other and the rules of a reward: math_verify_tests counts x = 5+5+1 = 7 = 11 right for 11, and
# one pair of it as right in one row and as wrong in another, by math-verify's options. .970 is all that is left.
@pytest.mark.parametrize(
    "name, accuracy, false_accepts",
    [
        ("gsm8k_model_solutions", 0.9998, 0.0002),
        ("math_verify_issues", 0.95, 0.05),
        ("math_verify_tests", 0.965, 0.01),
        ("hardverify_math_half", 0.94, 0.01),
        ("policy_half", 1.0, 0.0),
    ],
)
def test_labelled_pairs(name, accuracy, false_accepts):
    pairs = rows(f"math_pairs/{name}.jsonl")
    verdicts = [bool(judge(row["pred"], row["gold"]).correct) for row in pairs]
    right = sum(verdict == row["label"] for verdict, row in zip(verdicts, pairs, strict=True))
    accepted = sum(verdict and not row["label"] for verdict, row in zip(verdicts, pairs, strict=True))
    assert right / len(pairs) >= accuracy
    assert accepted / len(pairs) <= false_accepts


DEFAULTS = {"strict": True, "allow_set_relation_comp": True, "precision": 6}


def test_pairs_labelled_for_the_usual_options():
    """Without the rows that math-verify labels for a looser or a narrower comparison than it makes by default."""
    pairs = [row for row in rows("math_pairs/math_verify_tests.jsonl")
             if all(DEFAULTS[key] == value for key, value in row["opts"].items() if key in DEFAULTS)]  # fmt: skip
    right = sum(bool(judge(row["pred"], row["gold"]).correct) == row["label"] for row in pairs)
    assert len(pairs) > 250 and right / len(pairs) >= 0.975


def test_golds_against_themselves():
    golds = [row["answer"] for row in rows("math/train.json") if row["answer"]]
    assert len(golds) == 7470
    assert [gold for gold in golds if judge(box(gold), gold).correct is not True] == []


def test_golds_in_another_spelling():
    """Spaced differently, so that equality of text does not decide them all; and verdicts that hold both ways."""
    golds = [row["answer"] for row in rows("math/train.json") if row["answer"]]
    respaced = [(gold, gold.replace(r"\frac", r"\dfrac ").replace("+", " + ")) for gold in golds[::10]]
    assert sum(bool(judge(box(other), gold).correct) for gold, other in respaced) >= 0.99 * len(respaced)
    for gold, other in zip(golds[::14], golds[1::14], strict=False):
        if judge(box(other), gold).correct:
            assert judge(box(gold), other).correct, (gold, other)
