"""Numbers as they are written: percent signs, units, decimals, fractions, powers of ten, other bases."""

import re
from dataclasses import dataclass
from fractions import Fraction

from ruyi_rl.rewards.mathematics.notation import compact, peel

_PERCENT = re.compile(
    r"\s*(?:\\?%|(?<![a-zA-Z])(?:percent(?:age)?|pct)(?![a-zA-Z])|\\text\s*\{\s*(?:percent|pct|%|\\%)\s*\})"
)
_ABBREVIATED = (
    "mm cm dm m km in ft yd mi mg g kg lb lbs oz ml mL l L s sec min h hr hrs ms mph kmph km/h m/s am pm a.m. p.m. sq "
    "cu W kW J kJ N Hz V A Pa mol K C F cc rad ft/s m/min"
)
_UNIT = "(?:" + "|".join(re.escape(unit) for unit in sorted(_ABBREVIATED.split(), key=len, reverse=True)) + ")"
_UNIT_TAIL = re.compile(
    rf"(?<=[\d}})])\s*((?:\\text\s*\{{[^{{}}]*\}}|(?<=\s)[a-zA-Z]{{3,}}|(?<=\s){_UNIT}(?![a-zA-Z])|[\u4e00-\u9fff]+)"
    rf"(?:\s*/?\s*(?:\\text\s*\{{[^{{}}]*\}}|[a-zA-Z]{{2,}}|{_UNIT}(?![a-zA-Z])))*(?:\s*\^\s*\{{?\s*\d\s*\}}?)?)\s*$"
)
_TIGHT_UNIT_TAIL = re.compile(rf"(?<=\d)\s*({_UNIT}(?:\s*\^\s*\{{?\s*\d\s*\}}?)?)\s*$")
_UNIT_NAMES = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "kilometer": "km", "kilometre": "km", "meter": "m",
    "metre": "m", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "gram": "g",
    "kilogram": "kg", "pound": "lb", "ounce": "oz", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h",
    "liter": "l", "litre": "l", "milliliter": "ml", "day": "day", "week": "week", "month": "month", "year": "year",
    "厘米": "cm", "毫米": "mm", "千米": "km", "公里": "km", "米": "m", "克": "g", "千克": "kg", "秒": "s",
    "分钟": "min", "小时": "h", "天": "day", "年": "year",
} | {unit: unit for unit in ("mm", "cm", "dm", "m", "km", "in", "ft", "yd", "mi", "mg", "g", "kg", "lb", "oz", "ml",
                             "l", "s", "min", "h")}  # fmt: skip


def split_percent(text: str) -> tuple[str, bool]:
    """The text without percent signs and words, and whether there were any."""
    bare = _PERCENT.sub("", text)
    return bare.strip(), bare != text


def split_unit(text: str, tight: bool = False) -> tuple[str, str]:
    """A quantity and the unit behind it ("" for none): `5 \\text{ cm}^2` is `("5", "cm^2")`.

    Args:
        tight: also take a known abbreviation that stands directly behind a digit (`5m`), where it cannot be a variable.
    """
    match = _UNIT_TAIL.search(text) or (_TIGHT_UNIT_TAIL.search(text) if tight else None)
    if match is None or text[: match.start(1)].rstrip().endswith(("\\frac", "^", "_")):
        return text, ""
    core, unit = text[: match.start(1)].strip(), match[1]
    while unit[:1] in _MYRIADS:
        core, unit = core + unit[0], unit[1:]
    return core, unit


def unit_power(unit: str) -> str | None:
    """The exponent that is written behind a unit; None for none."""
    found = re.search(r"\^\s*\{?\s*(\d)", unit)
    return found[1] if found else None


def unit_name(unit: str) -> str | None:
    """The usual abbreviation of a known unit of measure, without its exponent; None for any other word."""
    word = re.sub(r"\\text|[\s{}]|\^.*$", "", unit)
    return _UNIT_NAMES.get(word) or _UNIT_NAMES.get(word.lower().rstrip("s"))


@dataclass(frozen=True)
class Number:
    """A rational number as it was written: `places` counts the decimals, None for an integer or a fraction."""

    value: Fraction
    places: int | None = None
    base: int | None = None


_MYRIADS = {"万": 10**4, "亿": 10**8}
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_SPOKEN = re.compile(r"(?:([零〇一二两三四五六七八九十百千万]{1,12})分之)?([零〇一二两三四五六七八九十百千万]{1,12})")
_REPEATING = re.compile(r"^(\d{0,40})\.(\d{0,40})\\overline\{(\d{1,40})\}$")
_SIGN = r"(?P<sign>[+-]?)"
_DECIMAL = re.compile(rf"^{_SIGN}(?P<digits>\d{{1,400}}(?:\.\d{{0,400}})?|\.\d{{1,400}})$")
_RATIO = re.compile(rf"^{_SIGN}(?P<whole>\d{{1,40}})?(?:\\frac\{{(-?[\d.]{{1,200}})\}}\{{(-?[\d.]{{1,200}})\}})$")
_SLASH = re.compile(rf"^{_SIGN}\(?(-?[\d.]{{1,200}})\)?/\(?([\d.]{{1,200}})\)?$")
_SCIENTIFIC = re.compile(
    rf"^{_SIGN}(?P<mantissa>\d{{1,40}}(?:\.\d{{1,40}})?)?(?:\\times|\\cdot|\*|x)?10\^\{{?(?P<power>-?\d{{1,3}})\}}?$"
)
_FLOAT = re.compile(r"^(?P<mantissa>[+-]?\d{1,40}(?:\.\d{1,40})?)[eE](?P<power>[+-]?\d{1,3})$")
BASED = re.compile(r"^(-?[0-9A-Fa-f]{1,200})_\{?(\d{1,2})\}?$")
_GROUPED = re.compile(r"^([+-]?\d{1,3})((?:[, ]\d{3})+)(\.\d+)?$")


def number(text: str) -> Number | None:
    """Read an integer, decimal, fraction, mixed number, power of ten or digits with a base; None for anything else."""
    text = peel(text)
    if spoken := _SPOKEN.fullmatch(text):
        below, above = (_spoken(part) if part else 1 for part in spoken.groups())
        return Number(Fraction(above, below)) if below else None
    if text[-1:] in _MYRIADS and (scaled := number(text[:-1])):
        return Number(scaled.value * _MYRIADS[text[-1]])
    grouped = _GROUPED.match(text.strip())
    text = re.sub(r"[, ]", "", text) if grouped else compact(text)
    if match := _DECIMAL.match(text):
        digits = match["digits"]
        value = Fraction(match["sign"] + (digits if digits[0] != "." else "0" + digits).rstrip("."))
        _, point, decimals = digits.partition(".")
        return Number(value, len(decimals) if point and decimals else None)
    if match := _REPEATING.match(text):
        whole, fixed, period = match.groups()
        cut = Fraction(int(whole + fixed or 0), 10 ** len(fixed))
        return Number(cut + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed)))
    if match := _RATIO.match(text) or _SLASH.match(text):
        parts = [_fraction(part) for part in match.groups()[-2:]]
        if None in parts or parts[1] == 0:
            return None
        whole = match.groupdict().get("whole")
        value = Fraction(whole or 0) + parts[0] / parts[1]
        return Number(-value if match["sign"] == "-" else value)
    if match := _SCIENTIFIC.match(text) or _FLOAT.match(text):
        mantissa, power = match["mantissa"] or "1", int(match["power"])
        value = Fraction(mantissa) * Fraction(10) ** power
        places = len(mantissa.partition(".")[2]) - power
        return Number(-value if match.groupdict().get("sign") == "-" else value, places if places > 0 else None)
    if match := BASED.match(text):
        base = int(match[2])
        if 2 <= base <= 16 and all(int(digit, 16) < base for digit in match[1].lstrip("-")):
            return Number(Fraction(int(match[1], base)), None, base)
    return None


def _spoken(text: str) -> int:
    """The value of a Chinese numeral: 三百二十五 is 325."""
    total = section = digit = 0
    for character in text:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character == "万":
            total, section, digit = (section + digit) * 10**4, 0, 0
        else:
            section += (digit or 1) * {"十": 10, "百": 100, "千": 1000}[character]
            digit = 0
    return total + section + digit


def _fraction(text: str) -> Fraction | None:
    match = _DECIMAL.match(text)
    return Fraction(match["sign"] + "0" + match["digits"].rstrip(".")) if match else None


def close(gold: Number, answer: Number) -> bool:
    """Equality of numbers as they were written: to a relative tolerance, so 1e-7 is not 2e-7.

    An integer is met exactly (1e-9 relative beside a decimal, for floating point noise). Of two decimals the shorter
    one must be the longer one rounded, to four significant digits (relative 5e-4 at most), or to three (5e-3) where the
    gold answer is the shorter by two decimals or more, or the answer is an exact value. A fraction is met by a decimal
    of four significant digits, rounded or cut.
    """
    difference = abs(gold.value - answer.value)
    if difference == 0:
        return True
    if difference <= max(abs(gold.value), abs(answer.value)) / 10**9 and (gold.places or answer.places):
        return True
    if gold.places is not None and (answer.places is None or answer.places > gold.places):
        # 54.44 is another number than 54.4; 54.4375 is that number before it was rounded.
        longer = answer.places is None or answer.places >= gold.places + 2
        return _digits(gold) >= (3 if longer else 4) and difference * 2 * 10**gold.places <= 1
    if gold.places is not None and answer.places and answer.places < gold.places:
        return _digits(answer) >= 4 and difference * 2 * 10**answer.places <= 1
    if gold.places is None and gold.value.denominator != 1 and answer.places:
        return _digits(answer) >= 4 and difference * 10**answer.places < 1
    return False


def _digits(known: Number) -> int:
    """Significant digits of a decimal."""
    return len(str(abs(int(known.value * 10**known.places)))) if abs(known.places) < 300 else 0
