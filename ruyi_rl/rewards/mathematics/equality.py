"""Whether an answer equals the gold answer: text first, then numbers, then structure (lists, tuples, sets, matrices,
assignments), and only then `symbolic`. Every step is cheap but the last, which most answers never reach."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain

from ruyi_rl.rewards.mathematics.clock import same_time
from ruyi_rl.rewards.mathematics.evasion import evasion
from ruyi_rl.rewards.mathematics.notation import compact, peel, split_top, tidy, unescaped, without_blanks
from ruyi_rl.rewards.mathematics.numbers import Number, close, number, split_percent, split_unit
from ruyi_rl.rewards.mathematics.quantities import conversion_between, same_quantity, units_agree
from ruyi_rl.rewards.mathematics.realsets import same_set
from ruyi_rl.rewards.mathematics.structure import (
    EQUALS,
    LABEL,
    MAX_ITEMS,
    MEMBER,
    RELATION,
    bracketed,
    interval,
    items_of,
    label,
    matrix,
    share_parameter,
)
from ruyi_rl.rewards.mathematics.symbolic import TooCostly, numeric_value, same_expression
from ruyi_rl.rewards.mathematics.words import is_text, same_choice, same_text

MAX_LENGTH = 3000
"""Characters of an answer; a longer one is compared as text only."""
MAX_SECONDS = 3.0
"""Time for all calls of sympy on one answer, less the last call's own limit."""
MAX_SYMBOLIC_ITEMS = 12
"""Items of a list that are not found by their spelling; they are compared in pairs, by sympy if need be."""
MAX_LEVEL = 4
"""Nested lists and equations."""

_BUILDER = re.compile(r"\\\{[^{}]*[|:]")
_HOW = ("equal_text", "equal_number", "equal_structure", "equal_symbolic")


@dataclass
class Comparison:
    """What one comparison may spend, and what decided it.

    Attributes:
        deadline: until when it may ask sympy (`time.monotonic`, seconds).
        how: how far the comparison went: 0 text, 1 numbers, 2 structure, 3 sympy.
        refused: why an answer was refused without being shown different: `restated`, `chain`, `ambiguous`, `too_long`,
            `too_costly` or `too_slow`.
    """

    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)
    how: int = 0
    refused: str | None = None

    def reason(self, equal: bool) -> str:
        return _HOW[self.how] if equal else self.refused or "different"

    def reached(self, step: int, equal: bool) -> bool:
        if equal:
            self.how = max(self.how, step)
        return equal

    def refuse(self, reason: str) -> bool:
        self.refused = self.refused or reason
        return False

    def same_expression(self, gold: str, answer: str) -> bool:
        if time.monotonic() > self.deadline:
            return self.refuse("too_slow")
        try:
            return self.reached(3, same_expression(gold, answer))
        except TooCostly as refusal:
            return self.refuse(refusal.reason)

    def value(self, expression: str) -> Fraction | None:
        """The value of a number or of an expression without variables; None for any other."""
        known = number(expression)
        if known is not None:
            return known.value
        if time.monotonic() > self.deadline:
            self.refuse("too_slow")
            return None
        try:
            return numeric_value(expression)
        except TooCostly as refusal:
            self.refuse(refusal.reason)
            return None


def same_answer(gold: str, answer: str, comparison: Comparison | None = None) -> bool:
    """Whether an answer is right.

    Args:
        gold: the right answer, in LaTeX or plain text, without a box.
        answer: the candidate's, without a box.
        comparison: takes down what decided.

    Returns:
        True only where equality was shown. An answer that restates the question (an unevaluated sum, integral or limit,
        `12 + 30` for 42), or a chain of equations, is not right though its value is.
    """
    comparison = comparison or Comparison()
    gold, answer = (peel(" ".join(unescaped(text).split())) for text in (gold, answer))
    if without_blanks(gold) == without_blanks(answer):
        return bool(gold)
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return comparison.refuse("too_long")
    written = gold, answer
    gold, answer = share_parameter(tidy(gold).partition(r"\approx")[0].strip(), tidy(answer))
    answer, _, rounded = answer.partition(r"\approx")
    if rounded and (not answer.strip() or LABEL.match(answer.strip())):
        answer = rounded
    elif rounded and not _roughly(answer, rounded, comparison):
        return False
    factor = conversion_between(written, gold, answer)
    if factor != 1:
        return factor is not None and _same_converted(gold, answer, factor, comparison)
    if _same(gold, answer, comparison):
        return True
    ends = EQUALS.split(gold)
    # A gold answer that is a chain of equations says its last value.
    return len(ends) > 2 and not split_top(gold)[1:] and _same(ends[-1], answer, comparison)


def _same_converted(gold: str, answer: str, factor: Fraction, comparison: Comparison) -> bool:
    """Equality of two quantities in different units of one kind: the answer's number counts `factor` of the gold's."""
    (gold_name, gold), (answer_name, answer) = label(gold), label(answer)
    if gold_name and answer_name and gold_name != answer_name:
        return False
    gold, answer = split_unit(gold, tight=True)[0], split_unit(answer, tight=True)[0]
    if reason := evasion(gold, answer):
        return comparison.refuse(reason)
    left, right = number(gold), comparison.value(answer)
    left = left or Number(comparison.value(gold) or Fraction(0))
    if right is None or not left.value:
        return right == 0 and left.value == 0
    converted = right * factor
    return comparison.reached(1, abs(left.value - converted) * 10**12 <= abs(converted) or (
        left.places is not None and close(left, Number(converted))
    ))  # fmt: skip


def _roughly(answer: str, rounded: str, comparison: Comparison) -> bool:
    """Whether the decimal that an answer gives for itself is not another number."""
    exact, decimal = comparison.value(answer.strip()), number(rounded.strip())
    return exact is None or (decimal is not None and abs(exact - decimal.value) * 20 <= abs(exact))


def _same(gold: str, answer: str, comparison: Comparison) -> bool:
    gold, answer = peel(gold), peel(answer)
    if not compact(answer):
        return False
    if compact(gold) == compact(answer):
        return True
    if reason := evasion(gold, answer):
        return comparison.refuse(reason)
    decided = same_quantity(gold, answer)
    if decided is None:
        decided = same_time(gold, answer)
    if decided is not None:
        return comparison.reached(1, decided)
    decided = same_choice(gold, answer)
    if decided is not None:
        return decided
    if is_text(gold) or is_text(answer):
        return same_text(gold, answer)
    return comparison.reached(2, _same_structure(gold, answer, comparison, 0))


def _same_rounded(gold: str, answer: str, comparison: Comparison) -> bool | None:
    """The verdict for a decimal against an expression such as a root; None where neither is a decimal."""
    (left, left_percent), (right, right_percent) = (
        split_percent(split_unit(text)[0] if not text.rstrip().endswith("%") else text) for text in (gold, answer)
    )
    decimals = number(left), number(right)
    if (decimals[0] is None) == (decimals[1] is None):
        return None
    known, expression = (decimals[0], right) if decimals[0] else (decimals[1], left)
    if known.places is None:
        return None
    value = comparison.value(expression)
    if value is None:
        return False
    if left_percent != right_percent:
        value = value * 100 if (left_percent if decimals[0] else right_percent) else value / 100
    return comparison.reached(3, close(known, Number(value)) if decimals[0] else close(Number(value), known))


def _same_structure(gold: str, answer: str, comparison: Comparison, level: int) -> bool:
    """Lists, tuples, sets, intervals, relations, assignments; else `same_expression`."""
    if level > MAX_LEVEL:
        return compact(gold) == compact(answer)
    gold, answer = peel(gold), peel(answer)
    decided = same_set(gold, answer, comparison.value)
    if decided is not None:
        return decided
    if bool(MEMBER.match(gold)) != bool(MEMBER.match(answer)):
        gold, answer = (MEMBER.sub("", text) for text in (gold, answer))
    golds, answers = items_of(gold), items_of(answer)
    if len(golds) > 1 or len(answers) > 1:
        return _same_items(gold, answer, golds, answers, comparison, level)
    gold, answer = (items[0] if items else "" for items in (golds, answers))
    if compact(gold) == compact(answer):
        return bool(gold)
    decided = same_quantity(gold, answer)
    if decided is not None:
        return decided
    if reason := evasion(gold, answer):
        return comparison.refuse(reason)
    ranges = interval(gold), interval(answer)
    if ranges[0] and ranges[1] and not (RELATION.search(gold) and RELATION.search(answer)):
        gold, answer = ranges
    matrices = matrix(gold), matrix(answer)
    if matrices[0] and matrices[1]:
        return _same_matrix(*matrices, comparison, level)
    brackets = bracketed(gold), bracketed(answer)
    if brackets[0] or brackets[1]:
        return _same_brackets(gold, answer, brackets, comparison, level)
    if EQUALS.search(gold) or EQUALS.search(answer):
        return _same_equation(gold, answer, comparison, level)
    ratios = [split_top(part, ":") for part in (gold, answer)]
    if any(len(ratio) > 1 for ratio in ratios):
        return _same_ratio(*ratios)
    decided = _same_rounded(gold, answer, comparison)
    if decided is not None:
        return decided
    (gold_bare, gold_percent), (answer_bare, answer_percent) = split_percent(gold), split_percent(answer)
    gold_core, gold_unit = split_unit(gold_bare)
    answer_core, answer_unit = split_unit(answer_bare)
    if not units_agree((gold_unit, gold_percent), (answer_unit, answer_percent)):
        return False
    if (gold_core, answer_core) != (gold, answer) and gold_core and answer_core:
        return _same_structure(gold_core, answer_core, comparison, level + 1)
    if _BUILDER.search(gold) or _BUILDER.search(answer):
        # sympy would read the condition as a product.
        return False
    return comparison.same_expression(_plain(gold), _plain(answer))


def _plain(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).strip()


def _same_items(
    gold: str, answer: str, golds: list[str], answers: list[str], comparison: Comparison, level: int
) -> bool:
    if len(golds) != len(answers) and all(bracketed(item) for item in golds + answers):
        # Tuples are solutions: naming one twice does no harm.
        golds, answers = (list({compact(item): item for item in items}.values()) for items in (golds, answers))
    if len(golds) != len(answers) or len(golds) > MAX_ITEMS:
        return _same_joint(gold, answer, comparison, level)
    names = [[label(item)[0] for item in items] for items in (golds, answers)]
    gold_named, answer_named = (len(set(group)) == len(group) and None not in group for group in names)
    if gold_named and answer_named and set(names[0]) == set(names[1]):
        by_name = {label(item)[0]: item for item in answers}
        return all(_pair(item, by_name[label(item)[0]], comparison, level) for item in golds)
    (gold_name, golds), (answer_name, answers) = _share_name(golds), _share_name(answers)
    if gold_name and answer_name and gold_name.partition("(")[0] != answer_name.partition("(")[0]:
        return False
    ordered = bracketed(gold) and bracketed(gold)[0] in "([" and not bracketed(answer)
    if (gold_named and not any(names[1])) or ordered:
        return all(_pair(left, right, comparison, level) for left, right in zip(golds, answers, strict=True))
    return _same_multiset(golds, answers, comparison, level)


def _same_joint(gold: str, answer: str, comparison: Comparison, level: int) -> bool:
    """A tuple of names against its value, `(x, y) = (1, 2)` against `1, 2`; or a bare pair against `(1, 2)`."""
    for left, right in ((gold, answer), (answer, gold)):
        bracket = bracketed(left)
        if bracket and bracket[0] == "(" and not bracketed(right) and len(split_top(right)) > 1:
            pair = (bracket[1], right) if left is gold else (right, bracket[1])
            items = [split_top(part) for part in pair]
            return len(items[0]) == len(items[1]) and all(
                _pair(*each, comparison, level) for each in zip(*items, strict=True)
            )
    return False


def _has_name(name: str, text: str) -> bool:
    return bool(re.search(rf"(?<![\\a-zA-Z]){name}(?![a-zA-Z])", text))


def _share_name(items: list[str]) -> tuple[str | None, list[str]]:
    """`x = 1, 2` as x and `1`, `2`, and `x = 1, x = 2` too: a name that all items share, or that only the first has."""
    labels = [label(item) for item in items]
    names = [name for name, _ in labels]
    if names[0] and (not any(names[1:]) or len(set(names)) == 1):
        return names[0], [value for _, value in labels]
    return None, items


def _same_multiset(golds: list[str], answers: list[str], comparison: Comparison, level: int) -> bool:
    spelled: dict[str, list[str]] = {}
    for item in answers:
        spelled.setdefault(compact(item), []).append(item)
    missing = []
    for item in golds:
        same = spelled.get(compact(item))
        if same:
            same.pop()
        else:
            missing.append(item)
    rest = [item for same in spelled.values() for item in same]
    if len(missing) > MAX_SYMBOLIC_ITEMS:
        return comparison.refuse("too_costly")
    for item in missing:
        found = next((other for other in rest if _pair(item, other, comparison, level)), None)
        if found is None:
            return False
        rest.remove(found)
    return not rest


def _pair(gold: str, answer: str, comparison: Comparison, level: int) -> bool:
    if is_text(gold) and is_text(answer):
        return same_text(gold, answer)
    return _same_structure(gold, answer, comparison, level + 1)


def _same_brackets(gold: str, answer: str, brackets: tuple, comparison: Comparison, level: int) -> bool:
    left, right = brackets
    if left is None or right is None:
        if EQUALS.search(gold) or EQUALS.search(answer):
            return _same_equation(gold, answer, comparison, level)
        column = matrix(gold) if right and right[0] == "(" else None
        if column and len(column[0]) == 1:
            # A column vector may be answered as the tuple of its entries.
            items = [[item] for item in split_top(right[1])]
            return bool(items) and _same_matrix(column, items, comparison, level)
        if len(split_top((left or right)[1])) > 1:
            return False
        return comparison.same_expression(_plain(gold), _plain(answer))
    if (left[0], left[2]) != (right[0], right[2]):
        return False
    items = split_top(left[1]), split_top(right[1])
    if len(items[0]) != len(items[1]):
        return False
    if len(items[0]) == 1:
        return comparison.same_expression(_plain(gold), _plain(answer))
    return all(_pair(*each, comparison, level) for each in zip(*items, strict=True))


def _same_matrix(golds: list[list[str]], answers: list[list[str]], comparison: Comparison, level: int) -> bool:
    if (len(golds), len(golds[0])) != (len(answers), len(answers[0])):
        return False
    entries = zip(chain.from_iterable(golds), chain.from_iterable(answers), strict=True)
    return all(compact(left) == compact(right) or _pair(left, right, comparison, level) for left, right in entries)


def _same_equation(gold: str, answer: str, comparison: Comparison, level: int) -> bool:
    (gold_name, gold_value), (answer_name, answer_value) = label(gold), label(answer)
    if gold_name and answer_name:
        if gold_name != answer_name:
            calls = [re.fullmatch(r"([a-zA-Z]+)\(([a-zA-Z])\)", name) for name in (gold_name, answer_name)]
            if not all(calls) or calls[0][1] != calls[1][1] or _has_name(calls[0][2], answer_value):
                return False
            answer_value = re.sub(rf"(?<![\\a-zA-Z]){calls[1][2]}(?![a-zA-Z])", calls[0][2], answer_value)
        return _same_structure(gold_value, answer_value, comparison, level + 1)
    if not EQUALS.search(answer):
        return gold_name is not None and _same_structure(gold_value, answer, comparison, level + 1)
    if not EQUALS.search(gold):
        return answer_name is not None and _same_structure(gold, answer_value, comparison, level + 1)
    return comparison.same_expression(_plain(gold), _plain(answer))


def _same_ratio(gold: list[str], answer: list[str]) -> bool:
    if len(gold) == len(answer):
        numbers = [(number(a), number(b)) for a, b in zip(gold, answer, strict=True)]
        return all(a and b for a, b in numbers) and all(a.value == b.value for a, b in numbers)
    values = []
    for ratio in (gold, answer):
        parts = [number(part) for part in ratio]
        if None in parts or len(parts) > 2 or (len(parts) == 2 and parts[1].value == 0):
            return False
        values.append(Number(parts[0].value / parts[1].value) if len(parts) == 2 else parts[0])
    return close(*values)
