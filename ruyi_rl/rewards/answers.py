"""The final answer of a completion, and the verdict on it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ruyi_rl.rewards.completions import without_thinking
from ruyi_rl.rewards.equality import Limits, same_answer

MAX_TEXT = 200_000
"""Characters of a completion that are searched, from its end."""
MAX_BOXES = 64
"""Different boxes that are looked at; more is a flood, and wrong."""
MAX_BARE = 300
"""Characters of a completion that is nothing but an answer."""

_TOKEN = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)\s{0,9}(?=\{)|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s{1,9}([^\s${}\\]{1,300})")
_HASHES = re.compile(r"####[ \t]*(\S[^\n]{0,999})")
_ANSWER_IS = re.compile(
    r"(?:(?:final\s+answer|answer)\**\s{0,9}(?:to [^.\n]{0,80}?)?(?:(?:is|are|:|：|=)+|(?=\s{0,9}(?:\$|\\\(|\\\[)))"
    r"|(?:答案|结果)\s{0,9}(?:是|为|：|:|=)+|^[ \t]*A[ \t]*:)"
    r"[ \t:：*]{0,20}(?:\n\s{0,20})?(?=(\$\$[^$]{1,999}\$\$|\\\[[^\[\]]{1,999}\\\]|\S[^\n]{0,999}))",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUSION = re.compile(
    r"(?:\bis\b|\bare\b|\bit's\b|\bequals?\b|[=:：])\**\s*((?:(?!\bis\b|\bare\b|\bit's\b)[^=:：\n])+)$"
)
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;、]|和|或")
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+?)\$", re.DOTALL)
_SIGN_OFF = re.compile(r"I hope (?:it|this|that) (?:is correct|helps).*|<\|[a-z_]+\|>.*", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])[.。!！](?:\s|$)|</")


@dataclass(frozen=True)
class Verdict:
    """`correct` is None where the gold answer cannot be used; `reason` says in one word what decided."""

    correct: bool | None
    reason: str
    answer: str | None = None


@dataclass(frozen=True)
class Box:
    """The inside of a `\\boxed{…}` and its place in the text."""

    inside: str
    start: int
    end: int


def boxes(text: str) -> list[Box]:
    r"""All balanced `\boxed{…}` and `\fbox{…}` that are not inside another one, in order. Linear time.

    `\{` and `\}` do not count as braces. A box that never closes is left out.
    """
    found: list[Box] = []
    stack: list[tuple[int, int] | None] = []
    pending = None
    for token in _TOKEN.finditer(text):
        symbol = token[0]
        if symbol == "{":
            stack.append((pending, token.end()) if pending is not None else None)
        elif symbol == "}" and stack:
            opened = stack.pop()
            if opened is not None:
                while found and found[-1].start > opened[0]:
                    found.pop()
                found.append(Box(text[opened[1] : token.start()].strip(), opened[0], token.end()))
        pending = token.start() if symbol[0] == "\\" and len(symbol) > 2 else None
    return found or [Box(match[1], match.start(), match.end()) for match in _BARE_BOX.finditer(text)]


def boxed_answers(text: str) -> list[str]:
    """The answers in boxes: boxes next to each other, or joined by a comma or "and", are one answer.

    Returns:
        The different answers, in order; more than one where boxes that do not belong together differ.
    """
    groups: list[list[str]] = []
    last = None
    for box in boxes(text):
        between = text[last.end : box.start] if last else ""
        near = len(between) < 70 and _SEPARATOR.search(between) and not _SENTENCE_END.search(between)
        joined = last is not None and (len(between) < 10 or near)
        if joined:
            if box.inside not in groups[-1]:
                groups[-1].append(box.inside)
        else:
            groups.append([box.inside])
        last = box
    return list(dict.fromkeys(", ".join(group) for group in groups))


def final_answers(text: str) -> list[str]:
    """The final answer that a text gives, outside its thinking.

    Looked for in turn: boxes; `####`; "the answer is …" and `答案`; the formula or conclusion that ends the text; a
    short text in one line.

    Returns:
        One answer; several where boxes contradict each other; [] where none was found.
    """
    text = without_thinking(text[-MAX_TEXT:])
    tagged = _tagged(text)
    text = text if tagged is None else tagged
    found = boxed_answers(text)
    if found:
        return found
    text = _SIGN_OFF.sub("", text)
    for pattern in (_HASHES, _ANSWER_IS):
        last = None
        for last in pattern.finditer(text):
            pass
        if last:
            return [_first_statement(last[1])]
    text = text.strip()
    if tagged is None:
        formulas = list(_MATH.finditer(text[-2000:]))
        tail = text[-2000:][formulas[-1].end() :] if formulas else ""
        if formulas and not _is_bare(text) and len(tail) <= 40 and not re.search(r"\d", tail):
            return [next(filter(None, formulas[-1].groups())).strip()]
        lines = [line for line in text.splitlines() if line.strip()]
        conclusion = _CONCLUSION.search(lines[-1][-MAX_BARE:].strip()) if lines and not _is_bare(text) else None
        if conclusion:
            return [_first_statement(conclusion[1])]
    return [text] if text and len(text) <= MAX_BARE and "\n" not in text else []


def _tagged(text: str) -> str | None:
    """The inside of the last `<answer>…</answer>`; None without one."""
    lower = text.lower()
    end = lower.rfind("</answer>")
    start = lower.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end] if start >= 0 else None


def _is_bare(text: str) -> bool:
    """No prose: a text that is an answer and nothing else."""
    if len(text) > MAX_BARE or "\n" in text.strip():
        return False
    prose = re.sub(r"\\(?:text|mbox|textbf)\s*\{[^{}]*\}|\\[a-zA-Z]+|[a-zA-Z]+\s*[:：=]", "", text)
    return len(re.findall(r"[a-zA-Z]{3,}", prose)) < 2


def _first_statement(line: str) -> str:
    """The answer at the head of the line that follows "the answer is": its formulas if it starts with one, else up to
    the end of the sentence."""
    line = line.strip().strip("*_` ").strip()
    formulas = list(_MATH.finditer(line))
    if formulas and formulas[0].start() <= 1:
        parts, end = [], 0
        for formula in formulas:
            between = line[end : formula.start()]
            if parts and not re.fullmatch(r"[\s,;]*(?:and|or)?[\s,]*", between):
                break
            parts.append(next(filter(None, formula.groups())).strip())
            end = formula.end()
        tail = re.match(r"\s*(?:\\?%|percent|pct)", line[end:])
        return ", ".join(parts) + (tail[0] if tail else "")
    stop = _SENTENCE_END.search(line)
    line = (line[: stop.start()] if stop else line).strip().strip("*_` ").strip()
    conclusion = None if _is_bare(line) else _CONCLUSION.search(line)
    return conclusion[1].strip() if conclusion else line


def gold_answer(gold: str) -> str:
    """The answer of a data row: the inside of its box, what follows its `####`, or the text without outer `$`."""
    found = boxed_answers(gold)
    if found:
        return found[-1]
    hashes = _HASHES.findall(gold)
    if hashes:
        return hashes[-1].strip()
    whole = re.fullmatch(r"\s*(?:\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\])\s*\.?\s*", gold, re.DOTALL)
    if whole:
        return next(filter(None, whole.groups())).strip()
    return gold.strip() if len(gold) <= MAX_BARE else (final_answers(gold) or [gold.strip()])[0]


def judge(text: str, gold: str | Sequence[str] | float | None) -> Verdict:
    """The verdict on a completion.

    Args:
        text: the completion.
        gold: the right answer: text, a number, or several answers of which any one is right. None or "" is unusable.

    Returns:
        The verdict. Reasons: `equal`, `different`, `no_answer`, `contradiction` (boxes that do not belong together, the
        last one right, another one not), `flood` (more than `MAX_BOXES` different boxes), `no_gold`.
    """
    golds = [gold] if isinstance(gold, (str, int, float)) else list(gold or [])
    golds = [answer for answer in (gold_answer(str(item)) for item in golds if item is not None) if answer]
    if not golds:
        return Verdict(None, "no_gold")
    found = final_answers(text)
    if not found:
        return Verdict(False, "no_answer")
    if len(found) > MAX_BOXES:
        return Verdict(False, "flood", found[-1])
    limits = Limits()
    for candidate in reversed(found):
        if not any(same_answer(answer, candidate, limits) for answer in golds):
            return Verdict(False, "different" if candidate is found[-1] else "contradiction", found[-1])
    return Verdict(True, "equal", found[-1])
