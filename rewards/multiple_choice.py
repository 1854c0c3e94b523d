r"""1.0 for the right letter of a multiple-choice question, 0.0 for any other.

Formula: r = 1 if the completion's last answer is the row's `answer`, else 0; None where the row has none.
Source: the pattern `(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?` of simple-evals (https://github.com/openai/simple-evals).

Outside the thinking, an answer is what follows `Answer:`, "the answer is", 答案： or 选, or stands in `\boxed{}` or
`<answer>`; the last of them counts. Without any, the last line counts where it is an answer and nothing else. An answer
is a letter from A to J, bare or as (C), **C**, C) text, in full width, or the text of a choice. "A or B" is two
letters, and right only where both are.
"""

import re
import unicodedata

from ruyi_rl.rewards.completions import completion_text, without_thinking

_ALL = "ABCDEFGHIJ"
_TAIL = 20_000
_STATED = re.compile(
    r"(?:\b(?:answer|option|choice)\**[ \t]*(?:is|are|:|=)+|(?:答案|选项)[ \t]*(?:应?[是为选]|:)+|(?<![不别])选择?)"
    r"[ \t*:]*(?:\n\s{0,9})?(?=([^\n]{0,300}))",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{((?:[^{}]|\{[^{}]{0,200}\}){1,300})\}|<answer>([^<]{1,500})</answer>")
_STYLE = re.compile(r"\\(?:boxed|fbox|mbox|text(?:bf|it|rm)?|math(?:bf|rm))(?![a-zA-Z])|[{}$*\\]")
_CAPITALS = r"[A-J]{1,10}(?![A-Za-z0-9'’])"
_JOIN = r"[)\]. ]{0,3}(?:,|、|;|&|/|\band\b|\bor\b|和|或|与) ?[(\[]?"
_LEAD = re.compile(
    rf"[\s(\[\"“‘']*(?:(?:both|option|choice|letter|Both|Option|Choice|Letter|选项)\s*[(\[]?)?"
    rf"({_CAPITALS}(?:{_JOIN}{_CAPITALS}(?! (?!and\b|or\b)[a-z]))*|[a-j](?![A-Za-z0-9'’]))"
)
# "The answer is a prime" and "Answer: I think so" begin with a word, not with a letter.
_PROSE = re.compile(r"[ \t]+(?!(?:because|since|as|due|which)\b)[a-z]")


def multiple_choice(completions, answer, choices=None, log_extra=None, **kwargs) -> list[float | None]:
    """One reward a completion.

    Args:
        answer: the right choice of a row: a letter or several ("C", "(C)", "A,C"); where there are `choices`, a label,
            an index from 0 or a text of theirs too, in this order.
        choices: the choices of every row: texts, or {"text": […], "label": […]}.

    Raises:
        ValueError: an answer that names no choice.
    """
    choices = [None] * len(completions) if choices is None else choices
    found, rewards = [], []
    for completion, gold, offered in zip(completions, answer, choices, strict=True):
        texts, labels = _offered(offered)
        right = _gold(gold, texts, labels)
        found.append(_answer(completion_text(completion), texts, labels))
        rewards.append(None if right is None else float(found[-1] == right))
    if log_extra is not None:
        log_extra("multiple_choice/answer", ["".join(sorted(letters or "")) for letters in found])
    return rewards


def _offered(choices) -> tuple[list[str], list[str]]:
    """The texts and labels of a row's choices."""
    labels = choices.get("label") if isinstance(choices, dict) else None
    texts = [str(text) for text in (choices["text"] if isinstance(choices, dict) else choices or [])]
    return [_fold(text) for text in texts], [str(label) for label in labels or _ALL[: len(texts)]]


def _gold(gold, texts, labels) -> frozenset[str] | None:
    text = "" if gold is None else unicodedata.normalize("NFKC", str(gold)).strip()
    if not text:
        return None
    if text in labels:
        return frozenset(_ALL[labels.index(text)])
    if text.isdecimal() and int(text) < len(texts):
        return frozenset(_ALL[int(text)])
    if _fold(text) in texts:
        return frozenset(_ALL[texts.index(_fold(text))])
    letters = frozenset(re.sub(r"[\s,、()$.\[\]]", "", text).upper())
    if not letters <= set(_ALL):
        more = "an index or a text of its choices" if texts else "an index needs the column `choices`"
        raise ValueError(f"the answer {gold!r} names no choice: a letter from A to J; {more}")
    return letters


def _answer(text, texts, labels) -> frozenset[str] | None:
    """The letters of the last answer; None without one."""
    text = unicodedata.normalize("NFKC", without_thinking(text)[-_TAIL:])
    last, place = None, -1
    for match in _STATED.finditer(text):
        stated = _read(match[1], texts, labels)
        last, place = (stated, match.end()) if stated else (last, place)
    for match in _BOX.finditer(text):
        boxed = _read(match[1] or match[2], texts, labels)
        last, place = (boxed, match.end()) if boxed and match.end() > place else (last, place)
    lines = [line for line in text.splitlines() if line.strip()]
    return last if last or not lines else _read(lines[-1], texts, labels, alone=True)


def _read(text, texts, labels, alone=False) -> frozenset[str] | None:
    """The answer at the head of a text; None where it is none. `alone`: nothing else may follow but its choice."""
    text = _STYLE.sub(" ", text).strip()
    for whole in (text, re.split(r"[.。](?:\s|$)", text)[0]):
        if _fold(whole) in texts:
            return frozenset(_ALL[texts.index(_fold(whole))])
    label = re.match(r"[\s(\[]*(\w{1,8})(?![.]?\w)", text)
    if label and label[1] in labels and label[1] not in _ALL and not (alone and text[label.end() :].strip(" ).]")):
        return frozenset(_ALL[labels.index(label[1])])
    lead = _LEAD.match(text)
    if not lead or ((lead[1] in "AI" or lead[1].islower()) and _PROSE.match(text, lead.end())):
        return None
    letters = frozenset(re.sub(r"\b(?:and|or)\b", "", lead[1]).upper()) & frozenset(_ALL)
    rest = text[lead.end() :].strip(" \t)].:,。\"”’'")
    if alone and rest and [_fold(rest)] != [texts[_ALL.index(letter)] for letter in letters if letter in labels]:
        return None
    return letters


def _fold(text) -> str:
    return " ".join(_STYLE.sub(" ", unicodedata.normalize("NFKC", text)).casefold().strip(" .。").split())
