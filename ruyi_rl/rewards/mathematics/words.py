"""Answers in words: names, choices, yes and no, and sentences that end in the answer. Text in, text out."""

import re

from ruyi_rl.rewards.mathematics.notation import split_top, untext

_CHOICE = re.compile(r"^\s*(?:选项?|[Oo]ption\b|[Cc]hoice\b)?\s*\(?\s*([A-J])\s*(?:\)|[.:：、]|选?项|$)")
_MORE = re.compile(r"^\s*(?:[,;+*/=<>&|、或和^-]|or\b|and\b)|(?<![A-Za-z\\])[A-J](?![A-Za-z])")
_CHOICES = re.compile(r"[A-J](?:\s*[,;]?\s*[A-J])+")
_NEGATION = re.compile(
    r"\b(?:not?|never|none|neither|nor|cannot|without|except|unless|wrong|incorrect|false|fails?)\b|n't\b|[不非没无未错]",
    re.IGNORECASE,
)
_COPULA = re.compile(r"\b(?:is|are|was|were|be)\b\s+(?:(?:an?|the)\s+)?")
_LEADING = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)
_YES_NO = re.compile(r"^\s*(yes|no|true|false)\b\s*[,.;:!]", re.IGNORECASE)
_NO_SOLUTION = re.compile(
    r"(?:there(?:is|are|exists?))?no(?:real|such)?(?:solutions?|roots?)(?:exists?)?|(?:方程)?无(?:实数?)?[解根]|没有(?:实数?)?[解根]|\\emptyset|emptyset|theemptyset"
)
"""As `words` leaves it."""
MAX_PHRASE = 3
"""Words of an answer that a sentence may stand for."""


def words(text: str) -> str:
    """Letters and signs only, in lower case; a single letter keeps its case."""
    text = re.sub(r"[\s.,;:!?'\"(){}，。；：]+|(?<=\w)-(?=\w)", "", untext(text))
    return text if len(text) == 1 else text.lower()


def is_text(answer: str) -> bool:
    """Whether an answer is words, not mathematics."""
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", answer)
    if re.search(r"[\d\\=<>^_+|\[\](){}]", re.sub(r"\([A-J]\)", "", bare)):
        return False
    return bool(re.search(r"[a-zA-Z]{2}|[\u4e00-\u9fff]", bare)) or "\\text" in answer


def same_choice(gold: str, answer: str) -> bool | None:
    """The verdict where the gold answer is one of the letters of a multiple choice, or several; None elsewhere."""
    gold, answer = untext(gold), untext(answer)
    letter, chosen = _CHOICE.match(gold), _CHOICE.match(answer)
    if letter and words(gold) == words(letter[0]) and chosen:
        return chosen[1] == letter[1] and not _MORE.search(answer[chosen.end() :])
    if _CHOICES.fullmatch(gold.strip()) and _CHOICES.fullmatch(answer.strip()) and ("," in gold) != ("," in answer):
        letters = [re.findall("[A-J]", text) for text in (gold, answer)]
        return letters[0] == sorted(set(letters[0])) and letters[0] == sorted(letters[1])
    return None


def same_text(gold: str, answer: str) -> bool:
    """Equality of words: without case and punctuation, lists in any order, and a sentence for the phrase it says."""
    left, right = words(gold), words(answer)
    if left == right and left:
        return True
    if {left, right} == {"infinitelymany", r"\infty"} or (
        _NO_SOLUTION.fullmatch(left) and _NO_SOLUTION.fullmatch(right)
    ):
        return True
    lists = [split_top(untext(part)) for part in (gold, answer)]
    if 1 < len(lists[0]) == len(lists[1]) and sorted(map(words, lists[0])) == sorted(map(words, lists[1])):
        return True
    gold, answer = (_LEADING.sub("", " ".join(untext(text).split())) for text in (gold, answer))
    if words(gold) == words(answer) != "":
        return True
    head = _YES_NO.match(answer)
    if head and gold.lower() == head[1].lower():
        return True
    return _says(gold, answer) or _says(answer, gold)


def _says(sentence: str, phrase: str) -> bool:
    """Whether a sentence says the phrase and nothing against it: "the function … is odd" says odd, "Petya will get the
    last token" says Petya."""
    parts = sentence.split()
    if len(parts) < 3 or len(phrase.split()) > MAX_PHRASE or _NEGATION.search(sentence) or _NEGATION.search(phrase):
        return False
    said = _COPULA.split(sentence)
    if len(said) == 2 and words(said[1]) == words(phrase) and len(words(phrase)) > 1:
        return True
    names = [word for word in re.findall(r"[A-Za-z]+", sentence)[1:] if word[0].isupper()]
    return (
        len(phrase) > 1
        and phrase[:1].isupper()
        and " " not in phrase
        and not names
        and words(parts[0]) == words(phrase)
    )
