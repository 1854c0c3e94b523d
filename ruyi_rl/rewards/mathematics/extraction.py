"""The final answer of a completion, as text."""

import re
from dataclasses import dataclass

from ruyi_rl.rewards.completions import without_thinking

MAX_TEXT = 10_000
"""Characters that are searched, from the end of what follows the thinking."""
MAX_BOXES = 64
"""Different boxes that are looked at; more is a flood, and wrong."""
MAX_BARE = 300
"""Characters of a completion that is nothing but an answer."""

_TOKEN = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)\s{0,9}(?=\{)|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s{1,9}([^\s${}\\]{1,300})")
_HASHES = re.compile(r"####[ \t]*(\S[^\n]{0,999})")
_ANSWER_IS = re.compile(
    r"(?:(?:final\s+answer|answer)\**\s{0,9}(?:to [^.\n]{0,80}?)?(?:(?:is|are|:|：|=)+|(?=\s{0,9}(?:\$|\\\(|\\\[)))"
    r"|(?:答案|结果)\s{0,9}(?:是|为|：|:|=)+|(?:故|因此|所以|答案)\s{0,9}选[择项]?(?=[\s:：]{0,9}[A-J])"
    r"|^[ \t]*A[ \t]*:)"
    r"[ \t:：*]{0,20}(?:\n\s{0,20})?(?=(\$\$[^$]{1,999}\$\$|\\\[[^\[\]]{1,999}\\\]|\S[^\n]{0,999}))",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUSION = re.compile(
    r"(?:\bis\b|\bare\b|\bit's\b|\bequals?\b|[=:：])\**\s*((?:(?!\bis\b|\bare\b|\bit's\b)[^=:：\n])+)$"
)
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;、]|和|或")
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$((?:[^$\n\\]|\\.)+?)\$", re.DOTALL)
_SIGN_OFF = re.compile(r"I hope (?:it|this|that) (?:is correct|helps).*|<\|[a-z_]+\|>.*", re.DOTALL)
_FINAL = re.compile(r"\bfinal\s+answer\b|最终答案", re.IGNORECASE)
_THEREFORE = re.compile(
    r"(?:^|[.!?$]\s+|[。！？]\s*)((?:(?:therefore|thus|hence|so)\b|因此|所以|故|综上|答)[^\n]*)$", re.IGNORECASE
)
_ONE_FORMULA = re.compile(r"(?:therefore|thus|hence|so|因此|所以|故)[,，\s]\s*(\$[^$]+\$)[.。]?", re.IGNORECASE)
_QUANTITY = re.compile(r"-?(?:\\?[$€£¥])?\d(?:[\d,]*\d)?(?:\.\d+)?(?:\s*/\s*\d+)?(?:\s*(?:\\?%|percent\b))?")
_SAID = re.compile(rf"[\u4e00-\u9fff](?<=[为是有共得需要剩于])\s*({_QUANTITY.pattern})")
_HEDGE = re.compile(
    r"\b(?:not?|never|cannot|than|least|most|between|about|approximately|roughly|around|over|under|up to)\b"
    r"|n't\b|≈|[<>不非约或]|可能|大概|左右",
    re.IGNORECASE,
)
_CHOICE_WITH_REASON = re.compile(r"\(?([A-J])\)?,?\s+(?:because|since|as)\s")
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])[.。!！](?:\s|$)|</")


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
    return _grouped(text, boxes(text))


def _grouped(text: str, found: list[Box]) -> list[str]:
    groups: list[dict[str, None]] = []
    last = None
    for box in found:
        between = text[last.end : box.start] if last else ""
        near = len(between) < 70 and _SEPARATOR.search(between) and not _SENTENCE_END.search(between)
        if last is None or not (len(between) < 10 or near):
            groups.append({})
        groups[-1][box.inside] = None
        last = box
    return list(dict.fromkeys(", ".join(group) for group in groups))


def final_answers(text: str) -> list[str]:
    """The final answer that a text gives, outside its thinking.

    Looked for in turn: boxes; `####`; "the answer is …" and `答案`; the formula or conclusion that ends the text; a
    short text in one line.

    Returns:
        One answer; several where boxes contradict each other; [] where none was found.
    """
    text = without_thinking(text)[-MAX_TEXT:]
    tagged, behind = _tagged(text)
    if tagged is not None and (others := _grouped(behind, boxes(behind))):
        return list(dict.fromkeys([*_answers(tagged, True), *others]))
    return _answers(text if tagged is None else tagged, tagged is not None)


def _answers(text: str, tagged: bool) -> list[str]:
    boxed = boxes(text)
    if boxed:
        found = _grouped(text, boxed)
        # Boxes used to mark steps are no contradiction where the text names its final answer behind the last of them.
        named = _FINAL.search(text, boxed[-1].end) if len(found) > 1 else None
        return (_named_answer(_SIGN_OFF.sub("", text[named.start() :])) if named else None) or found
    text = _SIGN_OFF.sub("", text)
    answer = _named_answer(text)
    if answer:
        return answer
    text = text.strip()
    if not tagged:
        answer = _concluded_answer(text)
        if answer:
            return answer
    return [text] if text and len(text) <= MAX_BARE and "\n" not in text else []


def _named_answer(text: str) -> list[str]:
    """What follows the last `####`, else the last "the answer is"."""
    for pattern in (_HASHES, _ANSWER_IS):
        last = None
        for last in pattern.finditer(text):
            pass
        if last:
            return [_first_statement(last[1])]
    return []


def _concluded_answer(text: str) -> list[str]:
    """The formula, conclusion or number that ends a text without any mark."""
    end = text[-2000:]
    lines = [line for line in text.splitlines() if line.strip()]
    last_line = lines[-1][-MAX_BARE:].strip() if lines else ""
    if _is_bare(text):
        concluded = _ONE_FORMULA.fullmatch(text)
        if concluded:
            return [_inside(_MATH.match(concluded[1]))]
        said = _SAID.search(text)
        if said and _sole_number(text) == said[1]:
            return [said[1]]
        labelled = re.match(r"(?:[a-zA-Z]{3,}|[\u4e00-\u9fff]{2,})[^\d:：=\\$]{0,40}[:：]\s*(.*)", text)
        return [number] if labelled and (number := _sole_number(labelled[1])) else []
    formulas = list(_MATH.finditer(end))
    tail = end[formulas[-1].end() :] if formulas else ""
    if formulas and len(tail) <= 40 and not re.search(r"\d", tail):
        return [_inside(formulas[-1])]
    therefore = _THEREFORE.search(last_line)
    number = _sole_number(therefore[1]) if therefore else None
    conclusion = None if number else _CONCLUSION.search(last_line)
    return [number] if number else [_first_statement(conclusion[1])] if conclusion else []


def _inside(formula: re.Match) -> str:
    return next(filter(None, formula.groups())).strip()


def _sole_number(sentence: str) -> str | None:
    """The number of a sentence that says exactly one, with its percent sign, and does not hedge about it."""
    found = _QUANTITY.findall(sentence)
    if len(found) != 1 or _HEDGE.search(sentence) or re.search(r"[\d\\^=+*]", sentence.replace(found[0], "", 1)):
        return None
    return found[0]


def _tagged(text: str) -> tuple[str | None, str]:
    """The inside of the last `<answer>…</answer>`, None without one; and the text behind it."""
    lower = text.lower()
    end = lower.rfind("</answer>")
    start = lower.rfind("<answer>", 0, end) if end >= 0 else -1
    return (text[start + len("<answer>") : end], text[end:]) if start >= 0 else (None, "")


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
    if choice := _CHOICE_WITH_REASON.match(line):
        return choice[1]
    formulas = list(_MATH.finditer(line))
    if formulas and formulas[0].start() <= 1:
        parts, end = [], 0
        for formula in formulas:
            between = line[end : formula.start()]
            if parts and not re.fullmatch(r"[\s,;]*(?:and|or)?[\s,]*", between):
                break
            parts.append(_inside(formula))
            end = formula.end()
        tail = re.match(r"\s*(?:\\?%|percent|pct)", line[end:])
        return ", ".join(parts) + (tail[0] if tail else "")
    stop = _SENTENCE_END.search(line)
    line = (line[: stop.start()] if stop else line).strip().strip("*_` ").strip()
    if _is_bare(line):
        return line
    conclusion = _CONCLUSION.search(line)
    return conclusion[1].strip() if conclusion else _sole_number(line) or line


def gold_answer(gold: str) -> str:
    """The answer of a data row: the inside of its box, what follows its `####`, or the text without outer `$`."""
    found = boxed_answers(gold)
    if found:
        return found[-1]
    gold = re.sub(r"^\s*\\{1,2}boxed\s*\{", "", gold)
    hashes = _HASHES.findall(gold)
    if hashes:
        return hashes[-1].strip()
    whole = re.fullmatch(r"\s*(?:\$\$?([^$]+)\$\$?|\\\((.+)\\\)|\\\[(.+)\\\])\s*\.?\s*", gold, re.DOTALL)
    if whole:
        return next(filter(None, whole.groups())).strip()
    return gold.strip() if len(gold) <= MAX_BARE else (final_answers(gold) or [gold.strip()])[0]
