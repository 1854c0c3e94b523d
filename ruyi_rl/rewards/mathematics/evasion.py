"""Answers that a reward must not accept though their value is right: the question restated, the work left undone."""

import re

from ruyi_rl.rewards.mathematics.notation import split_top
from ruyi_rl.rewards.mathematics.numbers import number, split_percent, split_unit
from ruyi_rl.rewards.mathematics.structure import EQUALS

_OPERATOR = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|gcd|lcm|max|min|sup|inf|det|bmod|pmod|mod|lfloor|lceil|ldots)(?![a-zA-Z])|\b(?:gcd|lcm|mod)\b"
)
_ABSOLUTE = re.compile(r"\|[\s{]*-?[\d.]+[\s}]*\|")
_TWO_POWERS = re.compile(r"\^\s*(?:\{[^{}]*\}|\\[a-zA-Z]+|\w)\s*\^")
_OPERATION = re.compile(r"(?<=[\d)}])\s*(?:\+|-|\*|\\times|\\cdot|\\div)\s*(?=[\d(\\-])")
_PLAIN_ARITHMETIC = re.compile(r"^(?:[\d\s.,+\-*/(){}]|\\times|\\cdot|\\div|\\frac)+$")


def evasion(gold: str, answer: str) -> str | None:
    """`restated` for an operator (a sum, integral, limit, gcd, floor …, three dots) that the gold answer does not have,
    and for arithmetic left undone (`12 + 30` for 42, `|-5|` for 5); `chain` for more than one equals sign in an item
    (`x = 1 = 5`); `ambiguous` for a power of a power without braces (an error in LaTeX); else None."""
    if set(_OPERATOR.findall(answer)) - set(_OPERATOR.findall(gold)):
        return "restated"
    if _TWO_POWERS.search(answer) and not _TWO_POWERS.search(gold):
        return "ambiguous"
    if any(len(EQUALS.findall(part)) > 1 for part in split_top(answer)) and len(EQUALS.findall(gold)) < 2:
        return "chain"
    if number(split_unit(split_percent(gold)[0])[0]) is None or number(split_percent(answer)[0]) is not None:
        return None
    if _ABSOLUTE.fullmatch(answer.strip()):
        return "restated"
    return "restated" if _PLAIN_ARITHMETIC.match(answer) and _OPERATION.search(answer) else None
