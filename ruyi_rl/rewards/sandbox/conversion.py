"""What programs return besides plain data, as the plain data that it stands for. Runs inside only.

- Subclasses of plain types (Counter, defaultdict, a named tuple, IntEnum …) become their base type, by that type's own
  methods: what they define themselves, such as `__eq__`, stays behind.
- Fraction and Decimal become the int or float of the same value, where there is one.
- An iterator becomes a list of its items, but only as a whole answer: inside another value it would equal a list.
- Ranges, views of a dict and deques become tuples, which equal no list either; bytearrays become bytes.

All else is no plain data. This file needs no import that costs time.
"""

from ruyi_rl.rewards.sandbox.plain import MAX_DEPTH, TooLarge, Unplain

_EXACT = (
    (int, int.__int__),
    (float, float.__float__),
    (complex, complex.__pos__),
    (str, str.__str__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, bytes),
    (memoryview, bytes),
)
_SEQUENCES = (
    (list, list, list.__iter__),
    (tuple, tuple, tuple.__iter__),
    (set, set, set.__iter__),
    (frozenset, frozenset, frozenset.__iter__),
    (range, tuple, iter),
    *((type(view), tuple, iter) for view in ({}.keys(), {}.values(), {}.items())),
)
# Classes of modules that only programs which use them should pay for.
_ORDERED, _DEQUE = ("collections", "OrderedDict"), ("collections", "deque")
_RATIONAL = (("fractions", "Fraction"), ("decimal", "Decimal"))


def is_iterator(value: object) -> bool:
    return any("__next__" in base.__dict__ for base in type(value).__mro__)


def converted(value: object, limit: int) -> object:
    """A value of plain types.

    Args:
        value: of any type; an iterator is used up.
        limit: bytes that its encoding may have.

    Raises:
        Unplain: it cannot be had.
        TooLarge: it would have more than `limit` bytes, or is nested too deep.
        BaseException: what an iterator's own code raises.
    """
    room = limit // 5

    def take(items: object, depth: int) -> list:
        nonlocal room
        found = []
        if depth >= MAX_DEPTH:
            raise TooLarge(f"nested more than {MAX_DEPTH} deep")
        for item in items:
            room -= 1
            if room < 0:
                raise TooLarge(f"more than {limit} bytes")
            found.append(convert(item, depth + 1))
        return found

    def convert(item: object, depth: int) -> object:
        kind = type(item)
        if item is None or kind in (bool, int, float, complex, str, bytes):
            return item
        bases = kind.__mro__
        for base, exact in _EXACT:
            if base in bases:
                return exact(item)
        for base, target, iterate in _SEQUENCES:
            if base in bases:
                return target(take(iterate(item), depth))
        names = [(base.__module__, base.__name__) for base in bases]
        if dict in bases:
            # An OrderedDict has an order of its own, which dict.items does not know.
            own = bases[names.index(_ORDERED)] if _ORDERED in names else dict
            pairs = take((part for pair in own.items(item) for part in pair), depth)
            return dict(zip(pairs[::2], pairs[1::2], strict=True))
        if _DEQUE in names:
            return tuple(take(bases[names.index(_DEQUE)].__iter__(item), depth))
        if any(name in _RATIONAL for name in names):
            return _number(item)
        raise Unplain(f"a value of type {kind.__name__}")

    return take(value, 0) if is_iterator(value) else convert(value, 0)


def _number(value: object) -> int | float:
    """The int or float of exactly this value."""
    try:
        ratio = value.as_integer_ratio()
        number = ratio[0] if ratio[1] == 1 else ratio[0] / ratio[1]
    except (ValueError, OverflowError):  # nan, infinite, or beyond all floats
        raise Unplain(f"a value of type {type(value).__name__}") from None
    if number.as_integer_ratio() != ratio:
        raise Unplain(f"a value of type {type(value).__name__} that no float has")
    return number
