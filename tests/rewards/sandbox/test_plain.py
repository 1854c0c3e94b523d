"""The codec of plain data: round trips keep value and type, limits hold, and no bytes do more than be refused."""

import enum
import math
import random

import pytest

from ruyi_rl.rewards.sandbox.plain import (
    MAX_COLLISIONS,
    MAX_DEPTH,
    MAX_DIGITS,
    Colliding,
    Malformed,
    TooLarge,
    Unplain,
    decode,
    encode,
)

LIMIT = 1 << 20
PLAIN = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)


def random_value(source, depth=0):
    makers = [
        lambda: None,
        lambda: source.random() < 0.5,
        lambda: source.randint(-(10 ** source.randint(0, 60)), 10 ** source.randint(0, 60)),
        lambda: source.choice([0.0, -0.0, math.inf, -math.inf, 1e-310, source.uniform(-9, 9)]),
        lambda: complex(source.uniform(-9, 9), -math.inf),
        lambda: "".join(
            chr(source.choice([65, 0, 0xE9, 0x4E2D, 0x1F600, 0xD800])) for _ in range(source.randint(0, 5))
        ),
        lambda: source.randbytes(source.randint(0, 5)),
    ]
    if depth < 4:
        many = range(source.randint(0, 4))
        makers += [
            lambda: [random_value(source, depth + 1) for _ in many],
            lambda: tuple(random_value(source, depth + 1) for _ in many),
            lambda: {random_key(source): random_value(source, depth + 1) for _ in many},
            lambda: {random_key(source) for _ in many},
            lambda: frozenset(random_key(source) for _ in many),
        ]
    return source.choice(makers)()


def random_key(source):
    while True:
        value = random_value(source, 3)
        try:
            hash(value)
        except TypeError:
            continue
        return value


def shape(value):
    """A text that tells a value and all its types: of nan and the sign of zero too, and not of the order of a set."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"{kind}{[(shape(key), shape(entry)) for key, entry in value.items()]}"
    if isinstance(value, (set, frozenset)):
        return f"{kind}{sorted(map(shape, value))}"
    if isinstance(value, (list, tuple)):
        return f"{kind}{list(map(shape, value))}"
    return f"{kind} {value!r}"


def test_round_trip_keeps_value_and_type():
    source = random.Random(0)
    for _ in range(2000):
        value = random_value(source)
        assert shape(decode(encode(value, LIMIT))) == shape(value)
    assert math.isnan(decode(encode(math.nan, LIMIT)))


class Flag(enum.IntEnum):
    ON = 1


@pytest.mark.parametrize(
    "value",
    [
        Flag.ON,
        type("Text", (str,), {})("x"),
        type("List", (list,), {})([1]),
        bytearray(b"x"),
        memoryview(b"x"),
        range(3),
        (x for x in "ab"),
        {1: {2: object()}},
        [int],
        Ellipsis,
        len,
    ],
)
def test_any_other_type_is_unplain(value):
    with pytest.raises(Unplain):
        encode([value], LIMIT)


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_limits_hold_on_both_sides():
    for fits, over in (
        (nested(MAX_DEPTH), nested(MAX_DEPTH + 1)),
        (10 ** (MAX_DIGITS - 1), 10 ** (MAX_DIGITS + 1)),
        (-(10 ** (MAX_DIGITS - 1)), -(10 ** (MAX_DIGITS + 1))),
        ("x" * (LIMIT - 5), "x" * (LIMIT - 4)),
        ("\xe9" * (LIMIT // 2 - 3), "\xe9" * (LIMIT // 2)),
        ([None] * (LIMIT // 5 - 2), [None] * (LIMIT // 5)),
    ):
        data = encode(fits, LIMIT)
        assert len(data) <= LIMIT and decode(data) == fits
        with pytest.raises(TooLarge):
            encode(over, LIMIT)


def test_decoder_refuses_what_a_forger_could_write():
    deep = b"l\1\0\0\0" * (MAX_DEPTH + 1) + b"N\0\0\0\0"
    large = 1 << 15_000
    digits = large.to_bytes(2000, "little")
    cases = [
        b"",
        b"N",
        b"N\1\0\0\0x",
        b"N\0\0\0\0N\0\0\0\0",
        b"i\0\0\0\0",
        b"i" + len(digits).to_bytes(4, "little") + digits,
        b"s\xff\xff\xff\xff",
        b"l\xff\xff\xff\xff",
        b"l\1\0\0\0",
        b"d\1\0\0\0N\0\0\0\0",
        b"S\1\0\0\0l\0\0\0\0",
        b"d\1\0\0\0S\0\0\0\0N\0\0\0\0",
        b"f\3\0\0\x00xyz",
        b"c\5\0\0\x00a b c",
        b"s\1\0\0\0\xff",
        b"?\0\0\0\0",
        deep,
    ]
    for data in cases:
        with pytest.raises(Malformed):
            decode(data)


def test_random_damage_gives_plain_data_or_a_refusal():
    source = random.Random(1)
    refused = 0
    for _ in range(5000):
        data = bytearray(encode(random_value(source), LIMIT))
        for _ in range(source.randint(1, 3)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            value = decode(bytes(data[: source.randint(0, len(data))] if source.random() < 0.2 else data))
        except (Malformed, Colliding):
            refused += 1
        else:
            assert type(value) in PLAIN
    assert 1000 < refused < 5000


@pytest.mark.parametrize("wrap", [lambda key: key, lambda key: (key, "x"), lambda key: frozenset([key])])
def test_keys_that_collide_are_refused(wrap):
    keys = [wrap(number * (2**61 - 1)) for number in range(1, MAX_COLLISIONS + 2)]
    assert len({hash(key) for key in keys}) == 1
    for value in (dict.fromkeys(keys), set(keys), frozenset(keys)):
        with pytest.raises(Colliding):
            decode(encode(value, LIMIT))
    assert decode(encode(set(keys[:MAX_COLLISIONS]), LIMIT)) == set(keys[:MAX_COLLISIONS])
