"""Numbers in words, Chinese and English: 三百二十五 and "three hundred twenty-five" are 325."""

import re
from fractions import Fraction

_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_TENS = {"十": 10, "百": 100, "千": 1000}
_NUMERAL = "[零〇一二两三四五六七八九十百千万亿]{1,20}"
_CHINESE = re.compile(rf"(负)?(?:({_NUMERAL})分之)?({_NUMERAL})")
_SMALL = {
    word: value
    for value, word in enumerate(
        re.findall(
            "[a-z]+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen",
        )
    )
} | {
    word: 10 * tens
    for tens, word in enumerate(("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), 2)
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_WORDS = re.compile(
    rf"(?:(?:minus|negative)\s+)?(?:(?:{'|'.join([*_SMALL, *_LARGE, 'hundred'])})(?:[\s-]+|$)){{1,16}}", re.IGNORECASE
)

SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "百": 10**2, "千": 10**3, "万": 10**4, "亿": 10**8,
}  # fmt: skip
"""Words behind a number that multiply it."""


def spoken_number(text: str) -> Fraction | None:
    """The value of a number in words; None for anything else, and for words that are no well-formed number."""
    if match := _CHINESE.fullmatch(text):
        below, above = (_TENS.get(part) or _chinese(part) if part else 1 for part in match.groups()[1:])
        if text in _TENS or not below or above is None:
            return None
        return Fraction(-above if match[1] else above, below)
    return _english(text.lower()) if _WORDS.fullmatch(text) else None


def _chinese(text: str) -> int | None:
    """一百五 is 150, 一百零五 is 105; digits alone, as in 二〇二五, are read one by one."""
    if all(character in _DIGITS for character in text):
        return int("".join(str(_DIGITS[character]) for character in text))
    total = section = 0
    digit, unit, zero = None, 1, False
    for character in text:
        if character in "零〇":
            if digit:
                return None
            digit, zero = None, True
        elif character in _DIGITS:
            if digit is not None:
                return None
            digit = _DIGITS[character]
        elif character in "万亿":
            myriads = 10**4 if character == "万" else 10**8
            total = (total + section + (digit or 0)) * myriads if character == "亿" else (
                total + (section + (digit or 0)) * myriads
            )  # fmt: skip
            section, digit, unit, zero = 0, None, myriads, False
        else:
            if digit is None and character != "十":
                return None
            unit, zero = _TENS[character], False
            section, digit = section + (1 if digit is None else digit) * unit, None
    if digit is not None and unit >= 100 and not zero:
        digit *= unit // 10
    return total + section + (digit or 0)


def _english(text: str) -> Fraction | None:
    """A number below each of thousand, million …, those in falling order."""
    words = re.findall(r"[a-z]+", text)
    negative = words[0] in ("minus", "negative")
    total, section, last, largest = 0, None, 10**3, 10**15
    for word in words[negative:]:
        if word in _SMALL:
            value = _SMALL[word]
            if section is not None and (not value or value >= last or (last == 100 and value >= 100)):
                return None
            section = (section or 0) + value
            last = 10 if value >= 20 else 1
        elif word == "hundred":
            if section is None or not 0 < section < 10:
                return None
            section, last = section * 100, 100
        else:
            if section is None or _LARGE[word] >= largest:
                return None
            largest = _LARGE[word]
            total, section, last = total + section * largest, None, 10**3
    if section is None and not total:
        return None
    value = total + (section or 0)
    return Fraction(-value if negative else value)
