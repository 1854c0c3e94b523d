"""Numbers as they are written: percent signs, units, decimals, fractions, powers of ten, other bases."""

import re
from dataclasses import dataclass
from fractions import Fraction

from ruyi_rl.rewards.mathematics.notation import compact, peel, untext
from ruyi_rl.rewards.mathematics.numerals import SCALES, spoken_number
from ruyi_rl.rewards.mathematics.units import known_units

_PERCENT = re.compile(
    r"\s*(?:\\?%|(?<![a-zA-Z])(?:percent(?:age)?|pct)(?![a-zA-Z])|\\text\s*\{\s*(?:percent|pct|%|\\%)\s*\})"
)
_ABBREVIATED = (
    "mm cm dm m km in ft yd mi mg g kg lb lbs oz ml mL l L s sec min h hr hrs ms mph kmph km/h m/s am pm a.m. p.m. sq "
    "cu W kW J kJ N Hz V A Pa mol K C F cc rad ft/s m/min"
)
_UNIT = "(?:" + "|".join(re.escape(unit) for unit in sorted(_ABBREVIATED.split(), key=len, reverse=True)) + ")"
_LETTER = "".join(unit for unit in _ABBREVIATED.split() if len(unit) == 1)
_POWER = r"(?:\s*\^\s*(?:-?\d|\{\s*-?\d\s*\}))?"
_UNIT_TAIL = re.compile(
    rf"(?:(?<=[\d}})])|(?<=\\pi)(?![a-zA-Z]))\s*((?:\\text\s*\{{[^{{}}]*\}}|(?<=\s)[a-zA-Z]{{3,}}(?![a-zA-Z])"
    rf"|(?<=\s){_UNIT}(?![a-zA-Z])|[\u4e00-\u9fff]+(?![\u4e00-\u9fff])){_POWER}"
    # Two ways to read one word would be 2^n for n words.
    rf"(?:\s*(?:(?:/|\\cdot(?![a-zA-Z]))\s*)?(?:\\text\s*\{{[^{{}}]*\}}|(?:[a-zA-Z]{{2,}}|[{_LETTER}])(?![a-zA-Z])"
    rf"|[\u4e00-\u9fff]+(?![\u4e00-\u9fff])){_POWER}){{0,20}})\s*$"
)
_LEADING_SCALE = re.compile(
    rf"\s*(\\text\s*\{{)?\s*((?:per\s+)?(?:{'|'.join(SCALES)}))(?:(?<=[a-z])s?(?![a-zA-Z])|(?<=[百千万亿]))"
)
_LETTERS = re.compile(r"[a-z]{3}|[\u3007\u4e00-\u9fff‰]", re.IGNORECASE)
_TIGHT_UNIT_TAIL = re.compile(rf"(?<=\d)\s*({_UNIT}{_POWER})\s*$")


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
    return _take_scales(core, unit)


def _take_scales(core: str, unit: str) -> tuple[str, str]:
    """Words that multiply (`million`, 万) belong to the number, if the unit does not begin with them (千克)."""
    while not known_units(untext(unit).strip()):
        scale = _LEADING_SCALE.match(unit)
        if scale is None:
            break
        core, unit = f"{core} {scale[2]}", (scale[1] or "") + unit[scale.end() :]
        unit = "" if not untext(unit).strip() else unit
    return core, unit


@dataclass(frozen=True)
class Number:
    """A rational number as it was written: `places` counts the decimals, None for an integer or a fraction."""

    value: Fraction
    places: int | None = None
    base: int | None = None


_SCALED = re.compile(
    rf"(.*\S)\s*(?<![a-zA-Z])(per\s+)?({'|'.join(SCALES)})s?|(.*\S)\s*(?:‰|\\permil|\\textperthousand)", re.DOTALL
)
_MIXED = re.compile(r"([+-]?)(\d{1,40})\s+(\d{1,40})\s*/\s*(\d{1,40})")
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
    if _LETTERS.search(text):
        text = untext(text).strip()
        if (spoken := spoken_number(text)) is not None:
            return Number(spoken)
        if match := _SCALED.fullmatch(text):
            scaled = number(match[1] or match[4])
            scale = Fraction(SCALES[match[3]] if match[3] else 1000)
            return Number(scaled.value * (1 / scale if match[2] or match[4] else scale)) if scaled else None
    if mixed := _MIXED.fullmatch(text):
        sign, whole, above, below = mixed.groups()
        return Number(Fraction(sign + "1") * (int(whole) + Fraction(int(above), int(below)))) if int(below) else None
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


def _fraction(text: str) -> Fraction | None:
    match = _DECIMAL.match(text)
    return Fraction(match["sign"] + "0" + match["digits"].rstrip(".")) if match else None


def close(gold: Number, answer: Number) -> bool:
    """Equality of numbers as they were written: to a relative tolerance, so 1e-7 is not 2e-7.

    An integer is met exactly (1e-12 relative beside a decimal, for floating point noise). Of two decimals the shorter
    one must be the longer one rounded, to four significant digits (relative 5e-4 at most), or to three (5e-3) where the
    gold answer is the shorter by two decimals or more, or the answer is an exact value. A fraction is met by a decimal
    of four significant digits, rounded or cut.
    """
    difference = abs(gold.value - answer.value)
    if difference == 0:
        return True
    if difference <= max(abs(gold.value), abs(answer.value)) / 10**12 and (gold.places or answer.places):
        return True
    if gold.places is not None and (answer.places is None or answer.places > gold.places):
        # 54.44 is another number than 54.4; 54.4375 is that number before it was rounded.
        longer = answer.places is None or answer.places >= gold.places + 2
        return _digits(gold) >= (3 if longer else 4) and difference * 2 * 10**gold.places <= 1
    if gold.places is not None and answer.places and answer.places < gold.places:
        return _digits(answer) >= 4 and difference * 2 * 10**answer.places <= 1
    if gold.places is None and gold.value.denominator != 1 and answer.places:
        cut = abs(answer.value) < abs(gold.value)
        return _digits(answer) >= 4 and difference * (1 if cut else 2) * 10**answer.places <= 1
    return False


def _digits(known: Number) -> int:
    """Significant digits of a decimal."""
    return len(str(abs(int(known.value * 10**known.places)))) if abs(known.places) < 300 else 0
