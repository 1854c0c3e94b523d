import math

import pytest

from ruyi_rl.rewards.code.comparison import same_output, same_value

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "expected, given",
    [
        (1, 1.0), (0.3, 0.1 + 0.2), (0.0, 1e-13), (NAN, NAN), (-INF, -INF), (10**400, 10**400), (None, None),
        ("a", "a"), ([1, [2]], (1, (2,))), ([], ()), ([1, 2.0], [1.0, 2]), ({"a": [1]}, {"a": (1.0,)}),
        ({"1": 2}, {1: 2}),
        ({"1.5": 2, "true": 3, "null": 4}, {1.5: 2, True: 3, None: 4}), ({}, {}), (True, True), (1j, 1j + 1e-14),
        ({1: 2}, {1: 2.0}), ({1, 2}, {2, 1}), (b"a", b"a"), ((1, 2), (1, 2)), (-0.0, 0),
    ],
)  # fmt: skip
def test_same_value(expected, given):
    assert same_value(expected, given) is True


@pytest.mark.parametrize(
    "expected, given",
    [
        (1, True), (True, 1), (0, False), (0, None), (None, 0), (1, "1"), ("1", 1), (1, 1 + 1e-6), (1e-9, 2e-9),
        (10**400, 1e308), (10**400, INF), (10**20, 10**20 + 1), (NAN, 1), (INF, -INF), ([1], [1, 2]), ([1, 2], [1]),
        ([1, 2], [2, 1]), ([1], [True]), ([1], {1}), ((1,), [1]), ([], None), ([], ""), ("ab", ["a", "b"]), (b"a", "a"),
        ({"a": 1}, {"a": 1, "b": 2}), ({"a": 1, "b": 2}, {"a": 1}), ({"a": 1}, {"b": 1}), ({"1": 1}, {"1": True}),
        ({"1": 2, "2": 2}, {1: 2, "1": 2}), ({1: 2}, {True: 2}), (0, 1e-13), (10**15, 1e15 + 1),
        (10**9, 1000000000.5), ([1], [1 + 1e-12]), (0, NAN), ({"1": 2}, {1: 3}), ({"a": 1}, [["a", 1]]), (1, 1j),
    ],
)  # fmt: skip
def test_different_value(expected, given):
    assert same_value(expected, given) is False


@pytest.mark.parametrize(
    "expected, given",
    [
        ("4\n", "4"), ("4", "4 \n\n"), ("1 2\n3\n", "1 2  \n3"), ("a\r\nb\r\n", "a\nb\n"), ("", "\n \n"),
        ("0.5", "0.500000"), ("0.333333", "0.3333333333"), ("x 1e-3", "x .001"), ("2.0", "2"), ("a\n\nb", "a\n\nb"),
        ("1000000.0", "1000000.5"),
    ],
)  # fmt: skip
def test_same_output(expected, given):
    assert same_output(expected, given) is True


@pytest.mark.parametrize(
    "expected, given",
    [
        ("1\n2\n3", "1\n2"), ("1\n2", "1\n2\n3"), ("", "0"), ("4", ""), ("4", " 4"), ("1 2", "1  2"), ("a b", "a\nb"),
        ("a\n\nb", "a\nb"), ("10", "10.0"), ("100000000", "100000001"), ("YES", "yes"), ("0.5", "0.6"), ("0.5", "half"),
        ("0.5 0.5", "0.5"), ("0.5 0.5", "0.5  0.5"), ("1.0", "nan"), ("1e308", "1e999"), ("0.5", "0.5" + "0" * 500),
        ("\n4", "4"),
    ],
)  # fmt: skip
def test_different_output(expected, given):
    assert same_output(expected, given) is False
