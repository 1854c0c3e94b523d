"""Units of measure: what stands behind a number, and whether two of them may be compared.

A unit is a factor and powers of kinds (length, time, a currency …), so that `cm^3` is a millilitre and `m/s` is no
`m/s^2`. Words that are no known unit ("apples") are kept as words.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from ruyi_rl.rewards.mathematics.notation import has_degrees

_PI = Fraction("3.14159265358979323846264338327950288419716939937510")
_PREFIXES = {
    "": ("", "", 1), "k": ("kilo", "千", 1000), "c": ("centi", "厘", "1/100"), "m": ("milli", "毫", "1/1000"),
    "d": ("deci", "分", "1/10"), "M": ("mega", "兆", 10**6), "G": ("giga", "吉", 10**9),
    "μ": ("micro", "微", "1/1000000"), "n": ("nano", "纳", "1/1000000000"),
}  # fmt: skip
# Abbreviations; words; factor in metres, grams, seconds; powers.
_SI = (
    ("m", "meter metre", "米", 1, "length"),
    ("g", "gram gramme", "克", 1, "mass"),
    ("s", "second sec", "秒", 1, "time"),
    ("L l", "liter litre", "升", "1/1000", "length length length"),
    ("N", "newton", "牛 牛顿", 1000, "mass length /time /time"),
    ("J", "joule", "焦 焦耳", 1000, "mass length length /time /time"),
    ("W", "watt", "瓦 瓦特", 1000, "mass length length /time /time /time"),
    ("Pa", "pascal", "帕", 1000, "mass /length /time /time"),
    ("Hz", "hertz", "赫兹", 1, "/time"),
    ("V", "volt", "伏 伏特", 1, "voltage"),
    ("A", "ampere amp", "安 安培", 1, "current"),
    ("mol", "mole", "摩尔", 1, "amount"),
)
_OTHERS = {
    "length": {"0.0254": "in inch inches", "0.3048": "ft foot feet", "0.9144": "yd yard", "1609.344": "mi mile 英里",
               "1000": "kms 公里", "500": "里", "1/10": "公寸"},
    "mass": {"453.59237": "lb lbs pound 磅", "28.349523125": "oz ounce", "1000": "公斤", "500": "斤",
             "1000000": "ton tonne t 吨"},
    "time": {"60": "min minute 分钟 分", "3600": "h hr hrs hour 小时 时",
             "86400": "day 天 日", "604800": "week 周 星期"},
    "years": {"1": "year yr 年", "1/12": "month 月 个月"},
    "length length": {"10000": "hectare ha 公顷"},
    "length length length": {"0.000001": "cc"},
    "length /time": {"0.44704": "mph", "5/18": "kmph kph kmh"},
    "angle": {"1": "degree deg 度", str(180 / _PI): "rad radian 弧度", "1/60": "arcminute minute",
              "1/3600": "arcsecond second"},
    "celsius": {"1": "celsius C degree deg 摄氏度 度"},
    "fahrenheit": {"1": "fahrenheit F degree deg 华氏度 度"},
    "kelvin": {"1": "kelvin K"},
    "percent": {"1": "percent"},
    "dollar": {"1": "dollar USD 美元", "1/100": "cent ¢ penny pennies 美分"},
    "euro": {"1": "euro EUR 欧元", "1/100": "cent"},
    "sterling": {"1": "pound GBP 英镑", "1/100": "penny pence pennies"},
    "yuan": {"1": "yuan RMB CNY 元 块 块钱 元钱 人民币", "1/10": "角 毛", "1/100": "分"},
    "yen": {"1": "yen JPY 日元"},
    "rupee": {"1": "rupee INR Rs", "1/100": "paise paisa"},
    "ruble": {"1": "ruble rouble RUB 卢布", "1/100": "kopeck kopek"},
    "won": {"1": "won KRW 韩元"},
    "points": {"1": "分"},
}  # fmt: skip
_CURRENCIES = (
    (re.compile(r"€|(?<![a-zA-Z])(?:euros?|EUR)(?![a-zA-Z])|欧元"), "euro"),
    (re.compile(r"£|(?<![a-zA-Z])GBP(?![a-zA-Z])|英镑"), "sterling"),
    (re.compile(r"[¥￥]"), "yuan yen"),
    (re.compile(r"(?<![a-zA-Z])(?:RMB|CNY|yuan)(?![a-zA-Z])|人民币"), "yuan"),
    (re.compile(r"₹"), "rupee"),
    (re.compile(r"₽"), "ruble"),
    (re.compile(r"₩"), "won"),
    (re.compile(r"\\\$|(?<![a-zA-Z])(?:USD|dollars?)(?![a-zA-Z])|美元"), "dollar"),
)
_IDLE = frozenset(re.findall(
    r"\w+", "a an the of unit total each long high tall old exactly only 个 只 支 条 本 张 件 位 名 单位"
))  # fmt: skip
"""Words that say nothing of the kind."""
_TOKEN = re.compile(
    r"(?P<slash>/|(?<![a-zA-Z])per(?![a-zA-Z])|每)|\^\s*\{?\s*(?P<power>-?\d)\s*\}?"
    r"|(?P<raise>(?<![a-zA-Z])(?:square|sq|cubic|cu)(?![a-zA-Z])\.?|平方|立方)|(?P<raised>squared|cubed)"
    r"|(?P<word>[a-zA-Zμ¢]+|[\u4e00-\u9fff]+?(?=平方|立方|每|$|[^\u4e00-\u9fff]))"
)
_MINUTES_OF_ARC = re.compile(r"\d\s*(?:'|\^\s*\{?\s*\\prime\s*\}?)\s*\$?\s*$")


@dataclass(frozen=True)
class Unit:
    """`factor` in the base unit of its kind; `powers` of the kinds, sorted; `words` that are no known unit."""

    factor: Fraction = Fraction(1)
    powers: tuple[tuple[str, int], ...] = ()
    words: frozenset[str] = frozenset()

    def times(self, other: "Unit", power: int = 1) -> "Unit":
        powers = dict(self.powers)
        for kind, exponent in other.powers:
            powers[kind] = powers.get(kind, 0) + exponent * power
        known = tuple(sorted((kind, exponent) for kind, exponent in powers.items() if exponent))
        return Unit(self.factor * other.factor**power, known, self.words | other.words)


def _table() -> dict[str, tuple[Unit, ...]]:
    table: dict[str, list[Unit]] = {}

    def add(names: str, factor: Fraction, kinds: str) -> None:
        unit = Unit(factor)
        for kind in kinds.split():
            unit = unit.times(Unit(powers=((kind.lstrip("/"), 1),)), -1 if kind[0] == "/" else 1)
        for name in names.split():
            table.setdefault(name, []).append(unit)

    for short, long, chinese, factor, kinds in _SI:
        for letter, (prefix, sign, scale) in _PREFIXES.items():
            names = [letter + name for name in short.split()] + [prefix + name for name in long.split()]
            names += [sign + name for name in chinese.split()]
            add(" ".join(names), Fraction(factor) * Fraction(scale), kinds)
    for kinds, factors in _OTHERS.items():
        for factor, names in factors.items():
            add(names, Fraction(factor), kinds)
    return {name: tuple(units) for name, units in table.items()}


_TABLE = _table()


def known_units(word: str) -> tuple[Unit, ...]:
    """The units that a word or abbreviation may stand for: a minute is one of time or of arc. () for any other word."""
    lower = word.lower()
    plural = lower[:-1] if len(lower) > 3 and lower.endswith("s") else lower
    return _TABLE.get(word) or _TABLE.get(lower) or _TABLE.get(plural) or ()


def read_unit(text: str) -> tuple[Unit, ...]:
    r"""The units that the text behind a number may stand for: `cm^2`, `\text{ miles per hour}`, 平方米, "apples".

    Returns:
        Several where a word has several meanings; () for no unit at all.
    """
    text = re.sub(r"\\text|[{}](?![\s\d-])|(?<!\^)\{", " ", text) if "\\" in text or "{" in text else text
    text = re.sub(r"(?<![a-zA-Z])in\s+(?=[a-zA-Z])", " ", text)
    factors: list[tuple[tuple[Unit, ...], int]] = []
    sign, pending = 1, 1
    for token in _TOKEN.finditer(text):
        if token["slash"]:
            sign = -1
        elif token["raise"]:
            pending = 3 if token["raise"][:2] in ("cu", "立方") else 2
        elif token["power"] or token["raised"]:
            power = int(token["power"] or (3 if token["raised"] == "cubed" else 2))
            if factors:
                factors[-1] = (factors[-1][0], factors[-1][1] * power)
        else:
            word = token["word"]
            lower = word.lower()
            singular = lower.removesuffix("s") if len(lower) > 3 else lower
            if singular not in _IDLE:
                factors.append((known_units(word) or (Unit(words=frozenset([singular])),), sign * pending))
            pending = 1
    # A quantity has few units; a sentence is none.
    if not factors or math.prod(len(units) for units, _ in factors) > 64:
        return ()
    found = []
    for choice in product(*(units for units, _ in factors)):
        unit = Unit()
        for part, (_, power) in zip(choice, factors, strict=True):
            unit = unit.times(part, power)
        found.append(unit)
    return tuple(found)


def unit_of(text: str, tail: str, percent: bool) -> tuple[Unit, ...]:
    """The units of a whole answer.

    Args:
        text: the answer as it was written, with its currency and degree signs.
        tail: the unit behind its number, as `numbers.split_unit` finds it in the tidied answer.
        percent: whether there is a percent sign in it.
    """
    if percent:
        return known_units("percent")
    units = read_unit(tail) if tail else ()
    if has_degrees(text):
        return units if any(unit.powers for unit in units) else known_units("degree")
    if _MINUTES_OF_ARC.search(text):
        return known_units("arcminute") + known_units("ft")
    money = [kinds for pattern, kinds in _CURRENCIES if pattern.search(text)]
    if not money and text.count("$") == 1:
        money = ["dollar"]
    if len(money) != 1 or any(kind in money[0].split() for unit in units for kind, _ in unit.powers):
        return units
    signs = [Unit(powers=((kind, 1),)) for kind in money[0].split()]
    return tuple(sign.times(unit) for sign in signs for unit in units or (Unit(),))


def conversion(gold: tuple[Unit, ...], answer: tuple[Unit, ...]) -> Fraction | None:
    """What the answer's number is to be multiplied by to count in the gold answer's unit.

    Returns:
        1 also where one of them has no unit; None for units of different kinds, and for different words. Words may be
        more on one side: "5 green apples" for "5 apples", `5 cm` for "5 cm long".
    """
    if not gold or not answer:
        return Fraction(1)
    ratios = [
        right.factor / left.factor
        for left, right in product(gold, answer)
        if left.powers == right.powers and _same_words(left.words, right.words)
    ]
    return Fraction(1) if 1 in ratios else ratios[0] if ratios else None


def _same_words(left: frozenset[str], right: frozenset[str]) -> bool:
    few, many = sorted((left, right), key=len)
    return few <= many or any(min(few, key=len) in word for word in many if not word.isascii())
