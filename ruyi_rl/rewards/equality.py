"""Whether an answer equals the gold answer: text first, then numbers, then structure (lists, tuples, intervals,
assignments), and only then `symbolic`. Every step is cheap but the last, which most answers never reach."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from ruyi_rl.rewards.notation import (
    BASED,
    Number,
    compact,
    number,
    peel,
    split_percent,
    split_top,
    split_unit,
    tidy,
    unit_name,
)
from ruyi_rl.rewards.structure import EQUALS, MAX_ITEMS, MEMBER, RELATION, bracketed, interval, items_of, label
from ruyi_rl.rewards.symbolic import numeric_value, same_expression

MAX_LENGTH = 3000
"""Characters of an answer; a longer one is compared as text only."""
MAX_SECONDS = 3.0
"""Time for all calls of sympy on one answer, less the last call's own limit."""
MAX_SYMBOLIC_ITEMS = 12
"""Items of a list that may go to sympy in pairs."""

_RESTATED = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|gcd|lcm|max|min|sup|inf|det|bmod|pmod|mod)(?![a-zA-Z])|\b(?:gcd|lcm|mod)\b"
)
_OPERATION = re.compile(r"(?<=[\d)}])\s*(?:\+|-|\*|\\times|\\cdot|\\div)\s*(?=[\d(\\-])")
_PLAIN_ARITHMETIC = re.compile(r"^(?:[\d\s.,+\-*/(){}]|\\times|\\cdot|\\div|\\frac)+$")
_CHOICE = re.compile(r"^\s*\(?\s*([A-J])\s*(?:\)|[.:：、]|$)")


@dataclass(frozen=True)
class Limits:
    """How deep a comparison is in nested lists, and until when it may ask sympy (`time.monotonic`, seconds)."""

    level: int = 0
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    def deeper(self) -> Limits:
        return Limits(self.level + 1, self.deadline)

    def spent(self) -> bool:
        return time.monotonic() > self.deadline

    def same_expression(self, gold: str, answer: str) -> bool:
        return not self.spent() and same_expression(gold, answer)


def same_answer(gold: str, answer: str, limits: Limits | None = None) -> bool:
    """Whether an answer is right.

    Args:
        gold: the right answer, in LaTeX or plain text, without a box.
        answer: the candidate's, without a box.
        limits: shared by several comparisons, so that they share one budget of time.

    Returns:
        True only where equality was shown. An answer that restates the question (an unevaluated sum, integral or limit,
        `12 + 30` for 42), or a chain of equations, is not right though its value is.
    """
    gold, answer = (peel(" ".join(text.split())) for text in (gold, answer))
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return bool(gold)
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return False
    return _same(tidy(gold), tidy(answer), limits or Limits())


def _same(gold: str, answer: str, limits: Limits) -> bool:
    gold, answer = peel(gold), peel(answer)
    if not compact(answer):
        return False
    if compact(gold) == compact(answer):
        return True
    if is_evasive(gold, answer):
        return False
    decided = _same_number(gold, answer)
    if decided is not None:
        return decided
    letter = _CHOICE.match(_untext(gold))
    if letter and _words(gold) == letter[1]:
        chosen = _CHOICE.match(_untext(answer))
        if chosen:
            return chosen[1] == letter[1]
    if _is_text(gold) or _is_text(answer):
        return _same_text(gold, answer)
    return _same_structure(gold, answer, limits)


def is_evasive(gold: str, answer: str) -> bool:
    """Whether an answer leaves the work undone (or does it twice): see `same_answer`."""
    operators = set(_RESTATED.findall(answer))
    if operators - set(_RESTATED.findall(gold)):
        return True
    if any(len(EQUALS.findall(part)) > 1 for part in split_top(answer)) and len(EQUALS.findall(gold)) < 2:
        return True
    if number(split_unit(split_percent(gold)[0])[0]) is None or number(split_percent(answer)[0]) is not None:
        return False
    return bool(_PLAIN_ARITHMETIC.match(answer) and _OPERATION.search(answer))


def _same_number(gold: str, answer: str) -> bool | None:
    """The verdict for two numbers with or without units and percent signs; None where one is no number."""
    (gold, gold_percent), (answer, answer_percent) = split_percent(gold), split_percent(answer)
    gold_core, gold_unit = split_unit(gold)
    answer_core, answer_unit = split_unit(answer, tight=not re.search(r"[a-zA-Z]", gold_core))
    if _is_decimal_comma(gold_core, answer_core):
        return True
    left, right = number(gold_core), number(answer_core)
    if based := BASED.match(compact(gold_core)):
        # The base may be left out where the question names it; another base is another number.
        return right is not None and (right.base == int(based[2]) or right.base is None) and (
            left == right if right.base else compact(answer_core) == based[1]
        )  # fmt: skip
    if left is None or right is None:
        return None
    units = unit_name(gold_unit), unit_name(answer_unit)
    if None not in units and units[0] != units[1]:
        return False
    if left.base is not None and right.base is not None and left.base != right.base:
        return False
    if close(left, right):
        return True
    if gold_percent != answer_percent:
        scaled = Number(left.value / 100) if gold_percent else Number(left.value * 100)
        return scaled.value == right.value
    if _separated(gold_core) or _separated(answer_core):
        return None
    return False


def _same_rounded(gold: str, answer: str, limits: Limits) -> bool | None:
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
    value = None if limits.spent() else numeric_value(expression)
    if value is None:
        return False
    if left_percent != right_percent:
        value = value * 100 if (left_percent if decimals[0] else right_percent) else value / 100
    return close(known, Number(value)) if decimals[0] else close(Number(value), known)


def close(gold: Number, answer: Number) -> bool:
    """Equality of numbers as they were written. Differences count relative to the value, so 1e-7 is not 2e-7.

    An integer is met exactly (up to 1e-9 relative, for floating point noise). A decimal gold is met by what rounds to
    it, from three significant digits on; a fraction by a decimal that agrees in four digits.
    """
    difference = abs(gold.value - answer.value)
    if difference == 0:
        return True
    scale = max(abs(gold.value), abs(answer.value))
    if difference <= scale / 10**9 and (gold.places or answer.places):
        return True
    if gold.places is not None and (answer.places is None or answer.places > gold.places):
        significant = len(str(abs(int(gold.value * 10**gold.places)))) if abs(gold.places) < 300 else 0
        return significant >= 3 and difference * 2 * 10**gold.places <= 1
    if gold.places is None and gold.value.denominator != 1 and answer.places:
        return difference <= scale / 10**4
    return False


def _is_decimal_comma(gold: str, answer: str) -> bool:
    """`1000,99` for 1000.99, in either; a comma before one or two digits or after a zero."""
    comma = re.compile(r"^-?(?:\d+,\d{1,2}|0,\d+)$")
    return any(
        comma.match(left.strip()) and "." in right and left.strip().replace(",", ".") == right.strip()
        for left, right in ((gold, answer), (answer, gold))
    )


def _separated(text: str) -> bool:
    return "," in text


def _is_text(answer: str) -> bool:
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", answer)
    if re.search(r"[\d\\=<>^_+|\[\](){}]", re.sub(r"\([A-J]\)", "", bare)):
        return False
    return bool(re.search(r"[a-zA-Z]{2}|[\u4e00-\u9fff]", bare)) or "\\text" in answer


def _same_text(gold: str, answer: str) -> bool:
    left, right = _words(gold), _words(answer)
    if left == right and left:
        return True
    if {left, right} == {"infinitelymany", r"\infty"}:
        return True
    lists = [split_top(_untext(part)) for part in (gold, answer)]
    return 1 < len(lists[0]) == len(lists[1]) and sorted(map(_words, lists[0])) == sorted(map(_words, lists[1]))


def _untext(text: str) -> str:
    return re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)


def _words(text: str) -> str:
    text = re.sub(r"[\s.,;:!?'\"(){}，。；：-]+", "", _untext(text))
    return text if len(text) == 1 else text.lower()


def _same_structure(gold: str, answer: str, limits: Limits) -> bool:
    """Lists, tuples, sets, intervals, relations, assignments; else `same_expression`."""
    if limits.level > 4:
        return compact(gold) == compact(answer)
    gold, answer = peel(gold), peel(answer)
    if bool(MEMBER.match(gold)) != bool(MEMBER.match(answer)):
        gold, answer = (MEMBER.sub("", text) for text in (gold, answer))
    golds, answers = items_of(gold), items_of(answer)
    if len(golds) > 1 or len(answers) > 1:
        return _same_items(gold, answer, golds, answers, limits)
    gold, answer = (items[0] if items else "" for items in (golds, answers))
    if compact(gold) == compact(answer):
        return bool(gold)
    decided = _same_number(gold, answer)
    if decided is not None:
        return decided
    if is_evasive(gold, answer):
        return False
    ranges = interval(gold), interval(answer)
    if ranges[0] and ranges[1] and not (RELATION.search(gold) and RELATION.search(answer)):
        gold, answer = ranges
    brackets = bracketed(gold), bracketed(answer)
    if brackets[0] or brackets[1]:
        return _same_brackets(gold, answer, brackets, limits)
    if EQUALS.search(gold) or EQUALS.search(answer):
        return _same_equation(gold, answer, limits)
    ratios = [split_top(part, ":") for part in (gold, answer)]
    if any(len(ratio) > 1 for ratio in ratios):
        return _same_ratio(*ratios)
    decided = _same_rounded(gold, answer, limits)
    if decided is not None:
        return decided
    gold_core, _ = split_unit(split_percent(gold)[0])
    answer_core, _ = split_unit(split_percent(answer)[0])
    if (gold_core, answer_core) != (gold, answer) and gold_core and answer_core:
        return _same_structure(gold_core, answer_core, limits.deeper())
    gold, _, _ = gold.partition(r"\approx")
    return limits.same_expression(_plain(gold), _plain(answer))


def _plain(text: str) -> str:
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return text.strip()


def _same_items(gold: str, answer: str, golds: list[str], answers: list[str], limits: Limits) -> bool:
    if len(golds) != len(answers) or len(golds) > MAX_ITEMS:
        return _same_joint(gold, answer, limits)
    names = [[label(item)[0] for item in items] for items in (golds, answers)]
    gold_named, answer_named = (len(set(group)) == len(group) and None not in group for group in names)
    if gold_named and answer_named and set(names[0]) == set(names[1]):
        by_name = {label(item)[0]: item for item in answers}
        return all(_pair(item, by_name[label(item)[0]], limits) for item in golds)
    golds, answers = _share_name(golds), _share_name(answers)
    if gold_named and not any(names[1]):
        return all(_pair(left, right, limits) for left, right in zip(golds, answers, strict=True))
    if bracketed(gold) and bracketed(gold)[0] in "([" and not bracketed(answer):
        return all(_pair(left, right, limits) for left, right in zip(golds, answers, strict=True))
    return _same_multiset(golds, answers, limits)


def _same_joint(gold: str, answer: str, limits: Limits) -> bool:
    """A tuple of names against its value, `(x, y) = (1, 2)` against `1, 2`; or a bare pair against `(1, 2)`."""
    if limits.level > 3:
        return False
    for left, right in ((gold, answer), (answer, gold)):
        bracket = bracketed(left)
        if bracket and bracket[0] == "(" and not bracketed(right) and len(split_top(right)) > 1:
            pair = (bracket[1], right) if left is gold else (right, bracket[1])
            items = [split_top(part) for part in pair]
            return len(items[0]) == len(items[1]) and all(_pair(a, b, limits) for a, b in zip(*items, strict=True))
    return False


def _share_name(items: list[str]) -> list[str]:
    """`x = 1, 2` as `1`, `2`, and `x = 1, x = 2` too: a name that all items share, or that only the first one has."""
    labels = [label(item) for item in items]
    names = [name for name, _ in labels]
    if names[0] and (not any(names[1:]) or len(set(names)) == 1):
        return [value for _, value in labels]
    return items


def _same_multiset(golds: list[str], answers: list[str], limits: Limits) -> bool:
    rest = list(answers)
    missing = []
    for item in golds:
        found = next((other for other in rest if compact(other) == compact(item) or _same_number(item, other)), None)
        if found is None:
            missing.append(item)
        else:
            rest.remove(found)
    if len(missing) > MAX_SYMBOLIC_ITEMS:
        return False
    for item in missing:
        found = next((other for other in rest if _pair(item, other, limits)), None)
        if found is None:
            return False
        rest.remove(found)
    return not rest


def _pair(gold: str, answer: str, limits: Limits) -> bool:
    if _is_text(gold) and _is_text(answer):
        return _same_text(gold, answer)
    return _same_structure(gold, answer, limits.deeper())


def _same_brackets(gold: str, answer: str, brackets: tuple, limits: Limits) -> bool:
    left, right = brackets
    if left is None or right is None:
        if EQUALS.search(gold) or EQUALS.search(answer):
            return _same_equation(gold, answer, limits)
        if "pmatrix" in gold + answer and left is None and right and right[0] == "(":
            return _same_column(gold, right[1], limits)
        return limits.same_expression(_plain(gold), _plain(answer))
    if (left[0], left[2]) != (right[0], right[2]):
        return False
    items = split_top(left[1]), split_top(right[1])
    if len(items[0]) != len(items[1]):
        return False
    if len(items[0]) == 1:
        return limits.same_expression(_plain(gold), _plain(answer))
    return all(_pair(a, b, limits) for a, b in zip(*items, strict=True))


def _same_column(gold: str, inside: str, limits: Limits) -> bool:
    """A column vector against the tuple of its entries."""
    column = re.fullmatch(r"\\begin\{pmatrix\}([^&]*)\\end\{pmatrix\}", gold.strip())
    rows = [row.strip() for row in column[1].split("\\\\") if row.strip()] if column else []
    items = split_top(inside)
    return len(rows) == len(items) > 0 and all(_pair(a, b, limits) for a, b in zip(rows, items, strict=True))


def _same_equation(gold: str, answer: str, limits: Limits) -> bool:
    (gold_name, gold_value), (answer_name, answer_value) = label(gold), label(answer)
    if gold_name and answer_name:
        if gold_name != answer_name:
            calls = [re.fullmatch(r"([a-zA-Z]+)\(([a-zA-Z])\)", name) for name in (gold_name, answer_name)]
            if not all(calls):
                return False
            answer_value = re.sub(rf"(?<![\\a-zA-Z]){calls[1][2]}(?![a-zA-Z])", calls[0][2], answer_value)
        return _same_structure(gold_value, answer_value, limits.deeper())
    if not EQUALS.search(answer):
        return gold_name is not None and _same_structure(gold_value, answer, limits.deeper())
    if not EQUALS.search(gold):
        return answer_name is not None and _same_structure(gold, answer_value, limits.deeper())
    return limits.same_expression(_plain(gold), _plain(answer))


def _same_ratio(gold: list[str], answer: list[str]) -> bool:
    if len(gold) == len(answer):
        numbers = [(number(a), number(b)) for a, b in zip(gold, answer, strict=True)]
        if all(a and b for a, b in numbers):
            return all(a.value == b.value for a, b in numbers)
        return False
    values = []
    for ratio in (gold, answer):
        parts = [number(part) for part in ratio]
        if None in parts or len(parts) > 2 or (len(parts) == 2 and parts[1].value == 0):
            return False
        values.append(Number(parts[0].value / parts[1].value) if len(parts) == 2 else parts[0])
    return close(*values)
