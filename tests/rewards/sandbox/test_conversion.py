"""What programs return besides plain data: plain data of the same value, or a refusal."""

import collections
import decimal
import enum
import fractions
import itertools
import math

import pytest

from ruyi_rl.rewards.sandbox.conversion import converted, is_iterator
from ruyi_rl.rewards.sandbox.plain import MAX_DEPTH, TooLarge, Unplain, decode, encode

LIMIT = 1 << 16
Point = collections.namedtuple("Point", "x y")


class Color(enum.IntEnum):
    RED = 3


class Equal:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0

    def __iter__(self):
        return iter([7])

    def __int__(self):
        return 7

    __index__ = __float__ = __len__ = items = keys = __int__


def subclass(base):
    return type("Forged", (Equal, base), {})


def ordered():
    found = collections.OrderedDict(a=1, b=2)
    found.move_to_end("a")
    return found


CASES = [
    (lambda: Color.RED, 3),
    (lambda: subclass(int)(5), 5),
    (lambda: subclass(float)(-0.0), -0.0),
    (lambda: subclass(complex)(1j), 1j),
    (lambda: subclass(str)("x"), "x"),
    (lambda: subclass(bytes)(b"x"), b"x"),
    (lambda: bytearray(b"x"), b"x"),
    (lambda: subclass(list)([1, subclass(int)(2)]), [1, 2]),
    (lambda: subclass(tuple)([1]), (1,)),
    (lambda: subclass(set)([1]), {1}),
    (lambda: subclass(frozenset)([1]), frozenset([1])),
    (lambda: subclass(dict)({1: Point(1, 2)}), {1: (1, 2)}),
    (lambda: collections.Counter("aab"), {"a": 2, "b": 1}),
    (lambda: collections.defaultdict(list, {"a": [Color.RED]}), {"a": [3]}),
    (lambda: {Point(1, 2): {Color.RED}}, {(1, 2): {3}}),
    (lambda: collections.deque([1, 2]), (1, 2)),
    (lambda: range(3), (0, 1, 2)),
    (lambda: {1: 2}.keys(), (1,)),
    (lambda: {1: 2}.values(), (2,)),
    (lambda: ordered().items(), (("b", 2), ("a", 1))),
    (lambda: fractions.Fraction(1, 2), 0.5),
    (lambda: [fractions.Fraction(4, 2), decimal.Decimal("2.50"), decimal.Decimal("1E+3")], [2, 2.5, 1000]),
    (lambda: (x * x for x in range(3)), [0, 1, 4]),
    (lambda: map(Point, [1], [2]), [(1, 2)]),
    (lambda: zip("ab", "cd", strict=True), [("a", "c"), ("b", "d")]),
]


@pytest.mark.parametrize("made, plain", CASES)
def test_same_value_of_plain_types(made, plain):
    found = converted(made(), LIMIT)
    assert type(found) is type(plain) and repr(found) == repr(plain)
    assert repr(decode(encode(found, LIMIT))) == repr(plain)


def test_an_ordered_dict_keeps_its_own_order():
    assert list(converted(ordered(), LIMIT)) == ["b", "a"]


def test_what_is_an_iterator():
    assert all(map(is_iterator, [iter([]), map(int, []), (x for x in []), zip(), itertools.count()]))
    assert not any(map(is_iterator, [[], {}, range(3), {}.keys(), "a", 1, None, Equal(), collections.deque()]))


@pytest.mark.parametrize(
    "value",
    [
        object(), int, len, Equal(), ..., [iter([1])], {1: map(int, "1")}, fractions.Fraction(1, 3),
        decimal.Decimal("0.1"), decimal.Decimal("nan"), decimal.Decimal("1" + "0" * 400 + ".5"),
        fractions.Fraction(10**400, 3), enum.Enum("E", "A").A,
    ],
)  # fmt: skip
def test_the_rest_is_unplain(value):
    with pytest.raises(Unplain):
        converted(value, LIMIT)


def test_limits():
    deep = []
    for _ in range(MAX_DEPTH):
        deep = subclass(list)([deep])
    for value in (itertools.count(), range(10**12), map(str, itertools.repeat(1)), deep):
        with pytest.raises(TooLarge):
            converted(value, LIMIT)
    assert converted(range(100), 500) == tuple(range(100)) and math.isnan(converted(subclass(float)("nan"), 5))
