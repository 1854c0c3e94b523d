r"""Sets of real numbers in one normal form: intervals, inequalities, `\mathbb{R} \setminus \{1\}`, `x \ne 1`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ruyi_rl.rewards.mathematics.notation import split_top
from ruyi_rl.rewards.mathematics.structure import MEMBER, NAME, RELATION, bracketed

MAX_PARTS = 20
"""Intervals and points of one set."""

_SYNTAX = re.compile(r"[<>]|!=|\\cup|\\setminus|\\infty|\\mathbb|\\in(?![a-z])|\\\{.*[|:]")
_REALS = re.compile(r"^(?:\\mathbb\s*\{?\s*R\s*\}?|\\R|R|(?:\\text\s*\{)?\s*all real numbers\s*\}?)$")
_BUILDER = re.compile(rf"^\\?\{{\s*({NAME})\s*(?:\\in\s*\\mathbb\{{?R\}}?\s*)?[|:]\s*(.*?)\s*\\?\}}$")
_ABSOLUTE = re.compile(rf"^\|\s*({NAME})\s*\|$")
_ONE_NAME = re.compile(rf"^{NAME}(?:\([^()=<>+*]*\))?$")

Infinite = float


@dataclass(frozen=True, order=True)
class Interval:
    """`low` to `high`, with whether each end belongs to it. An end is a Fraction or an infinite float."""

    low: Fraction | Infinite
    low_closed: bool
    high: Fraction | Infinite
    high_closed: bool


_EVERYTHING = (Interval(-float("inf"), False, float("inf"), False),)


@dataclass(frozen=True)
class RealSet:
    """Disjoint intervals in order, and the name of the variable that the text used, if any."""

    parts: tuple[Interval, ...]
    name: str | None = None


def same_set(gold: str, answer: str, value: Callable[[str], Fraction | None]) -> bool | None:
    """The verdict on two sets of real numbers; None where one is none, or neither is written as a set.

    Args:
        value: the value of an expression without variables, or None.
    """
    written = [bool(_SYNTAX.search(text)) for text in (gold, answer)]
    if not any(written) or not all(sign or bracketed(text) for sign, text in zip(written, (gold, answer), strict=True)):
        return None
    left = real_set(gold, value)
    right = real_set(answer, value) if left else None
    if left is None or right is None:
        return None
    if left.name and right.name and left.name != right.name:
        return False
    return len(left.parts) == len(right.parts) and all(
        (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed) and _near(a.low, b.low) and _near(a.high, b.high)
        for a, b in zip(left.parts, right.parts, strict=True)
    )


def _near(left: Fraction | Infinite, right: Fraction | Infinite) -> bool:
    if isinstance(left, Infinite) or isinstance(right, Infinite):
        return left == right
    return abs(left - right) * 10**20 <= max(abs(left), abs(right))


def real_set(text: str, value: Callable[[str], Fraction | None]) -> RealSet | None:
    """Read a set; None for what is none, for ends with letters in them, and for an empty interval."""
    text = text.strip()
    whole, _, removed = re.sub(r"\\(?:setminus|backslash)|(?<=[\])}])\s*-\s*(?=\\?\{)", "\0", text).partition("\0")
    if removed:
        return _without(whole, removed, value)
    if _BUILDER.match(text):
        name, condition = _BUILDER.match(text).groups()
        inner = real_set(condition, value)
        return inner if inner and inner.name in (None, name) else None
    member = MEMBER.match(text) or re.match(rf"^{NAME}\s*\\in\s*(?=\\mathbb)", text)
    if member:
        inner = real_set(text[member.end() :], value)
        return RealSet(inner.parts, member[0].partition("\\in")[0].strip()) if inner else None
    if _REALS.match(text):
        return RealSet(_EVERYTHING)
    pieces = re.split(r"\\cup(?![a-zA-Z])", text)
    if len(pieces) == 1 and (RELATION.search(text) or "!=" in text):
        pieces = split_top(text, ",")
    if len(pieces) > MAX_PARTS:
        return None
    if len(pieces) == 1 and "!=" not in text:
        return _piece(pieces[0].strip(), value)
    unequal = [piece.partition("!=") for piece in pieces if "!=" in piece]
    if not all(_ONE_NAME.match(name.strip()) for name, _, _ in unequal):
        return None
    sets = [_piece(piece.strip(), value) for piece in pieces if "!=" not in piece]
    points = [value(point.strip()) for _, _, point in unequal]
    names = {part.name for part in sets if part} | {name.strip() for name, _, _ in unequal}
    if None in sets or None in points or len(names) > 1:
        return None
    whole = _union(sets) if sets else RealSet(_EVERYTHING, names.pop())
    return whole and RealSet(_remove(whole.parts, points), whole.name)


def _without(whole: str, removed: str, value: Callable) -> RealSet | None:
    inside = bracketed(removed)
    base = real_set(whole, value)
    points = [value(point) for point in split_top(inside[1])] if inside and inside[0] == "{" else [None]
    if base is None or None in points or len(points) > MAX_PARTS:
        return None
    return RealSet(_remove(base.parts, points), base.name)


def _remove(parts: tuple[Interval, ...], points: list[Fraction]) -> tuple[Interval, ...]:
    rest = list(parts)
    for point in points:
        kept = []
        for part in rest:
            if part.low < point < part.high:
                kept += [
                    Interval(part.low, part.low_closed, point, False),
                    Interval(point, False, part.high, part.high_closed),
                ]
            elif part.low == part.high == point:
                continue
            else:
                low = part.low_closed and part.low != point
                kept.append(Interval(part.low, low, part.high, part.high_closed and part.high != point))
        rest = kept
    return tuple(rest)


def _union(sets: list[RealSet]) -> RealSet | None:
    """The union; None where parts overlap, since `x > 1, x < 3` may as well mean both at once."""
    parts = sorted(part for each in sets for part in each.parts)
    merged = parts[:1]
    for part in parts[1:]:
        last = merged[-1]
        if part.low < last.high or (part.low == last.high and part.low_closed and last.high_closed):
            return None
        if part.low == last.high and (part.low_closed or last.high_closed):
            merged[-1] = Interval(last.low, last.low_closed, part.high, part.high_closed)
        else:
            merged.append(part)
    return RealSet(tuple(merged), sets[0].name)


def _piece(text: str, value: Callable) -> RealSet | None:
    infinity = float("inf")

    def end(part: str) -> Fraction | Infinite | None:
        bare = part.replace(" ", "")
        return {r"\infty": infinity, r"-\infty": -infinity}.get(bare) if r"\infty" in bare else value(part)

    parts = [part.strip() for part in RELATION.split(text)]
    if len(parts) in (3, 5):
        return _inequality(parts, end)
    bracket = bracketed(text)
    if bracket is None:
        return None
    items = split_top(bracket[1])
    ends = [end(item) for item in items] if len(items) <= MAX_PARTS else [None]
    if None in ends:
        return None
    if bracket[0] == "{":
        points = tuple(Interval(point, True, point, True) for point in sorted(set(ends)))
        return RealSet(points) if all(isinstance(point, Fraction) for point in ends) else None
    if len(ends) != 2 or ends[0] >= ends[1]:
        return None
    return RealSet((Interval(ends[0], bracket[0] == "[", ends[1], bracket[2] == "]"),))


def _inequality(parts: list[str], end: Callable) -> RealSet | None:
    if len(parts) == 3:
        left, sign, right = parts
        if not (_ONE_NAME.match(left) or _ABSOLUTE.match(left)):
            left, right, sign = right, left, sign.translate(str.maketrans("<>", "><"))
        limit, closed = end(right), "=" in sign
        bounds = [-float("inf"), False, limit, closed] if sign[0] == "<" else [limit, closed, float("inf"), False]
        middle = left
    else:
        low, first, middle, second, high = parts
        if first[0] != second[0]:
            return None
        if first[0] == ">":
            low, first, second, high = high, second, first, low
        bounds = [end(low), "=" in first, end(high), "=" in second]
    if None in bounds or bounds[0] >= bounds[2]:
        return None
    absolute = _ABSOLUTE.match(middle)
    if absolute is None:
        return RealSet((Interval(*bounds),), middle) if _ONE_NAME.match(middle) else None
    low, low_closed, high, high_closed = bounds
    if low < 0:
        return RealSet((Interval(-high, high_closed, high, high_closed),), absolute[1]) if high > 0 else None
    sides = (Interval(-high, high_closed, -low, low_closed), Interval(low, low_closed, high, high_closed))
    return _union([RealSet((side,), absolute[1]) for side in sides])
