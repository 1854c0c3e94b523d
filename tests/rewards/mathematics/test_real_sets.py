import itertools
from fractions import Fraction

import pytest

from ruyi_rl.rewards.mathematics.notation import tidy
from ruyi_rl.rewards.mathematics.numbers import number
from ruyi_rl.rewards.mathematics.realsets import real_set, same_set

SAME = [
    (r"(-\infty,1)\cup(1,\infty)", r"x \ne 1", r"\mathbb{R} \setminus \{1\}", r"\{x \mid x \neq 1\}", "x<1 or x>1"),
    ("[1,2)", r"1 \le x < 2", r"2 > x \geq 1", r"\{x | 1 \le x < 2\}", r"x \in [1,2)"),
    (r"(-\infty,-2]\cup[2,+\infty)", r"|x| \ge 2", r"x \ge 2 \text{ or } x \le -2"),
    (r"(-2,2)", "|x|<2", "-2<x<2"),
    (r"[-2,-1]\cup[1,2]", r"1 \le |x| \le 2"),
    (r"(0,3)\setminus\{1,2\}", r"(0,1)\cup(1,2)\cup(2,3)", r"x>0, x<3, x \ne 1, x \ne 2"),
]


def value(text):
    known = number(text)
    return known.value if known else None


@pytest.mark.parametrize("forms", SAME[:-1])
def test_forms_of_one_set(forms):
    for left, right in itertools.permutations(map(tidy, forms), 2):
        assert same_set(left, right, value) in (True, None), (left, right)
    assert any(same_set(tidy(forms[0]), tidy(form), value) for form in forms[1:])


def test_different_sets_differ():
    for left, right in itertools.combinations([forms[1] for forms in SAME], 2):
        assert same_set(tidy(left), tidy(right), value) is False


def test_membership():
    """A set read from text holds the points that the text says."""
    points = [Fraction(n, 4) for n in range(-20, 21)]
    texts = {
        r"1 \le |x| < 3": lambda x: 1 <= abs(x) < 3,
        r"(-\infty,2)\setminus\{0,1\}": lambda x: x < 2 and x not in (0, 1),
        r"x \le -1, x > 2, x \ne 3": lambda x: (x <= -1 or x > 2) and x != 3,
        r"[0,1]\cup\{2\}\cup(3,4)": lambda x: 0 <= x <= 1 or x == 2 or 3 < x < 4,
    }
    for text, holds in texts.items():
        parts = real_set(tidy(text), value).parts
        for x in points:
            inside = any(
                part.low < x < part.high or (x == part.low and part.low_closed) or (x == part.high and part.high_closed)
                for part in parts
            )
            assert inside == holds(x), (text, x)


@pytest.mark.parametrize("text", ["5", "(a,b)", "(2,1)", "x>1, x<3", "x=1", "(1,2,3)", "x<y", "", "1<2"])
def test_no_sets(text):
    assert real_set(tidy(text), value) is None


def test_names_count():
    assert same_set("x>3", "y>3", value) is False and same_set("x>3", r"(3,\infty)", value) is True
