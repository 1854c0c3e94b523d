"""Quantities: numbers with or without percent signs and units of measure. Text in, verdicts out."""

import re
from fractions import Fraction

from ruyi_rl.rewards.mathematics.notation import compact
from ruyi_rl.rewards.mathematics.numbers import BASED, Number, close, number, split_percent, split_unit
from ruyi_rl.rewards.mathematics.units import Unit, conversion, known_units, unit_of

_HAS_UNIT = re.compile(r"[a-zA-Z\u4e00-\u9fff%$€£¥￥₹₽₩°'℃℉]|\\circ")
"""What every unit has; a gold answer without it is compared by its number alone."""
_BASE = re.compile(r"\d\s*_\s*\{?\s*\d")


def same_quantity(gold: str, answer: str) -> bool | None:
    """The verdict for two numbers with or without units and percent signs; None where one is no number."""
    (gold, gold_percent), (answer, answer_percent) = split_percent(gold), split_percent(answer)
    gold_core, gold_unit = split_unit(gold)
    answer_core, answer_unit = split_unit(answer, tight=not re.search(r"[a-zA-Z]", gold_core))
    if _is_decimal_comma(gold_core.strip(), answer_core.strip()):
        return True
    left, right = number(gold_core), number(answer_core)
    if based := BASED.match(compact(gold_core)):
        # The base may be left out where the question names it; another base is another number.
        return right is not None and (right.base == int(based[2]) or right.base is None) and (
            left == right if right.base else compact(answer_core) == based[1]
        )  # fmt: skip
    if left is None or right is None:
        # sympy would drop the base.
        return False if any(map(_BASE.search, (gold_core, answer_core))) else None
    if (gold_unit or gold_percent) and (answer_unit or answer_percent) and not units_agree(
        (gold_unit, gold_percent), (answer_unit, answer_percent)
    ):  # fmt: skip
        return False
    if left.base is not None and right.base is not None and left.base != right.base:
        return False
    if close(left, right):
        return True
    if gold_percent != answer_percent:
        shift = 2 if gold_percent else -2
        places = None if left.places is None else max(left.places + shift, 0)
        return close(Number(left.value / Fraction(10) ** shift, places), right)
    # With commas in both, they may be lists of numbers of three digits.
    return None if "," in gold_core and "," in answer_core else False


def _is_decimal_comma(gold: str, answer: str) -> bool:
    """`1000,99` for 1000.99. In a gold answer `3,4` is a list: there the comma needs two decimals, or a zero before."""
    decimal = re.fullmatch(r"-?(?:\d+,\d{1,2}|0,\d+)", answer) and "." in gold and gold == answer.replace(",", ".")
    return bool(
        decimal or re.fullmatch(r"-?(?:\d+,\d\d|0,\d+)", gold) and "." in answer and answer == gold.replace(",", ".")
    )


def units_agree(gold: tuple[str, bool], answer: tuple[str, bool]) -> bool:
    """Whether two units, each with whether there was a percent sign, are the same, or one of them is none."""
    return conversion(*(unit_of("", unit, percent) for unit, percent in (gold, answer))) == 1


def conversion_between(written: tuple[str, str], gold: str, answer: str) -> Fraction | None:
    """See `units.conversion`. Beside degrees, an expression in pi is in radians."""
    texts = list(zip(written, (gold, answer), strict=True))
    if not _HAS_UNIT.search(written[0]):
        return Fraction(1)
    units = [_units(*each) for each in texts]
    for one, other, text in ((0, 1, answer), (1, 0, gold)):
        if not units[other] and r"\pi" in text and any(unit.powers == (("angle", 1),) for unit in units[one]):
            units[other] = known_units("radian")
    return conversion(*units)


def _units(written: str, text: str) -> tuple[Unit, ...]:
    """The units of an answer as it was written and as it was tidied; () for none."""
    bare, percent = split_percent(text)
    return unit_of(written, split_unit(bare, tight=True)[1], percent)
