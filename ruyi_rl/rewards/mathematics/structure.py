"""What an answer is made of: lists, brackets, names with values, inequalities. Text in, text out."""

import math
import re
from itertools import product

from ruyi_rl.rewards.mathematics.notation import compact, peel, split_top
from ruyi_rl.rewards.mathematics.numbers import number

MAX_ITEMS = 200
"""Items of a list; longer lists are compared as text only."""
MAX_SIGNS = 64
"""Tuples that a tuple with `\\pm` in it may stand for."""
NAME = (
    r"(?:\\?[a-zA-Z]|\\[a-zA-Z]+|\\text\{[^{}]*\}|[A-Z]{1,4})"
    r"(?:_(?:\{[^{}]*\}|\\?\w)|'+|\^\{?\\?(?:prime|\*)\}?)*"
)
_CALL = rf"{NAME}(?:\([^()=<>+*]*\))?"
LABEL = re.compile(
    rf"^(?:{_CALL}|\|[A-Z]{{1,3}}\||\\(?:angle|overline|triangle|overrightarrow|vec|bar|hat)\{{?\s*[A-Za-z]{{1,4}}\}}?"
    rf"|\\frac\{{\s*[A-Z]{{1,3}}\s*\}}\{{\s*[A-Z]{{1,3}}\s*\}}|{_CALL}\s*:\s*{_CALL}"
    rf"|\(\s*{_CALL}(?:\s*,\s*{_CALL})*\s*\)|[a-zA-Z]{{2,}}(?:\s[a-zA-Z]+)*|\\text\{{[^{{}}]*\}}\s*)$"
)
MEMBER = re.compile(rf"^{_CALL}\s*\\in\s*(?=[\[({{]|\\\{{)")
EQUALS = re.compile(r"(?<![<>!=:])=(?!=)")
RELATION = re.compile(r"(<=|>=|<|>)")
_PROSE_LABEL = re.compile(
    r"^\s*(?:\\text\{\s*[^{}:=]*[:：=]\s*\}|(?:[A-Za-z][A-Za-z ]*|[\u4e00-\u9fff]+)\s*[:：])\s*(?=\S)"
)
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)


def bracketed(text: str) -> tuple[str, str, str] | None:
    r"""Opening, inside and closing of `(…)`, `[…)`, `\{…\}` … where they enclose the whole text."""
    text = text.strip()
    opening = "{" if text.startswith((r"\{", "{")) else text[:1]
    closing = "}" if text.endswith((r"\}", "}")) else text[-1:]
    if opening not in ("(", "[", "{") or closing not in (")", "]", "}") or len(text) < 3:
        return None
    if (opening == "{") != (closing == "}"):
        return None
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and 0 < position < len(text) - 1:
            return None
    start, end = 2 if text.startswith(r"\{") else 1, -2 if text.endswith(r"\}") else -1
    return opening, text[start:end].strip(), closing


def matrix(text: str) -> list[list[str]] | None:
    """The entries of a matrix, by rows; None for what is no single matrix, and for rows of unequal length."""
    found = _MATRIX.fullmatch(text.strip())
    if found is None or "\\begin" in found[1]:
        return None
    rows = [[entry.strip() for entry in row.split("&")] for row in found[1].split("\\\\") if row.strip()]
    return rows if rows and len({len(row) for row in rows}) == 1 else None


def label(item: str) -> tuple[str | None, str]:
    """A name and the value given to it; (None, item) where there is none."""
    parts = EQUALS.split(item)
    if len(parts) == 2 and LABEL.match(parts[0].strip()) and parts[1].strip():
        return compact(parts[0]), parts[1].strip()
    return None, item


def items_of(text: str) -> list[str]:
    r"""The items of a bare list, a union or a set; `\pm` counts as two items, `p=5,q=2; p=7,q=2` is two tuples."""
    groups = [split_top(group, ",") for group in split_top(text, ";")]
    if len(groups) > 1 and any(len(group) > 1 for group in groups):
        return [f"({', '.join(label(item)[1] for item in group)})" for group in groups]
    text = peel(text.strip())
    bracket = bracketed(text)
    if bracket and bracket[0] == "{" and not re.search(r"\||\\mid|:", bracket[1]):
        text = bracket[1]
    text = re.sub(r"\\cup(?![a-zA-Z])", ",", text)
    items = [text] if number(text) else split_top(_thousands(text))
    if len(items) > MAX_ITEMS:
        return items
    expanded = [variant for item in items for variant in _signs(_unlabel(item) if len(items) > 1 else item)]
    return list(dict.fromkeys(expanded)) if any(r"\pm" in item for item in items) else expanded


def _thousands(text: str) -> str:
    """Without thousands separators, where the list's own commas are followed by spaces."""
    return _GROUPED.sub(lambda m: m[0].replace(",", ""), text) if ", " in text else text


def _unlabel(item: str) -> str:
    return _PROSE_LABEL.sub("", item, count=1)


def _signs(item: str) -> list[str]:
    if r"\pm" not in item and r"\mp" not in item:
        return [item]
    bracket = bracketed(item)
    if bracket and bracket[0] in "([":
        parts = [_signs(part) for part in split_top(bracket[1])]
        if len(parts) > 1:
            choices = product(*parts) if math.prod(map(len, parts)) <= MAX_SIGNS else ()
            return [item[0] + ", ".join(choice) + item[-1] for choice in choices] or [item]
    plus = re.sub(r"\\mp(?![a-zA-Z])", "-", re.sub(r"\\pm(?![a-zA-Z])", "+", item)).strip()
    minus = re.sub(r"\\mp(?![a-zA-Z])", "+", re.sub(r"\\pm(?![a-zA-Z])", "-", item)).strip()
    return [plus.removeprefix("+").strip(), minus]


def interval(text: str) -> str | None:
    r"""The interval that an inequality in one name stands for: `x < -5`, `-2 <= x <= 7`, `x \in [0,1)`, `\{x | …\}`."""
    text = text.strip()
    builder = re.fullmatch(rf"\\?\{{\s*({_CALL})\s*(?:\\in\s*\\mathbb\{{?R\}}?\s*)?[|:]\s*(.*?)\s*\\?\}}", text)
    if builder:
        return interval(builder[2])
    text = MEMBER.sub("", text)
    parts = [part.strip() for part in RELATION.split(text)]
    if len(parts) == 3 and all(parts):
        left, sign, right = parts
        if LABEL.match(right) and not LABEL.match(left):
            left, right, sign = right, left, sign.translate(str.maketrans("<>", "><"))
        if not LABEL.match(left):
            return None
        closed = "=" in sign
        infinite = r"\infty"
        if sign[0] == "<":
            return f"(-{infinite}, {right}{']' if closed else ')'}"
        return f"{'[' if closed else '('}{right}, {infinite})"
    if len(parts) == 5 and all(parts) and LABEL.match(parts[2]) and parts[1][0] == parts[3][0]:
        low, first, _, second, high = parts
        if first[0] == ">":
            low, high, first, second = high, low, second, first
        return f"{'[' if '=' in first else '('}{low}, {high}{']' if '=' in second else ')'}"
    return text if (bracketed(text) or ("",))[0] in ("(", "[") else None


_PARAMETERS = "knmljt"
_INTEGERS = re.compile(
    r"[,;(]?\s*(?:\\text\s*\{[^{}]*\}\s*)?(?<![a-zA-Z\\])[a-zA-Z](?:\s*,\s*[a-zA-Z])*\s*\\in\s*\\mathbb\s*\{?\s*Z\s*\}?\s*\)?\s*$"
)


def share_parameter(gold: str, answer: str) -> tuple[str, str]:
    r"""Families such as `\frac{\pi}{6} + \pi k` with one name for their free integer, without `k \in \mathbb{Z}`."""
    if r"\pi" not in gold or r"\pi" not in answer:
        return gold, answer
    gold, answer = (_INTEGERS.sub("", text) for text in (gold, answer))
    letters = [set(re.findall(rf"(?<![a-zA-Z\\])[{_PARAMETERS}](?![a-zA-Z])", text)) for text in (gold, answer)]
    if len(letters[0]) == len(letters[1]) == 1 and letters[0] != letters[1]:
        old, new = letters[1].pop(), letters[0].pop()
        answer = re.sub(rf"(?<![a-zA-Z\\]){old}(?![a-zA-Z])", new, answer)
    return gold, answer
