"""Notation of answers: one spelling for what LaTeX, Unicode and prose write in many ways. Text in, text out."""

import re

_UNICODE = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {
    ord(source): target
    for source, target in {
        "\u3000": " ", "\xa0": " ", "\u202f": " ", "\u2009": " ", "\u200b": "", "\ufeff": "", "\0": "",
        "。": ".", "、": ",", "−": "-", "–": "-", "﹣": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ",
        "⋅": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≤": r"\le ",
        "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "²": "^2", "³": "^3",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "“": '"', "”": '"', "’": "'",
        "∶": ":", "∅": r"\emptyset ", "≈": r"\approx ", "【": "[", "】": "]", "〈": "(", "〉": ")",
    }.items()
}  # fmt: skip
# A LaTeX command read through a language's escapes: "\\text" as tab and "ext".
_LETTERS = {"\t": "t", "\f": "f", "\b": "b", "\r": "r", "\v": "v"}
_ESCAPED = re.compile(
    r"\t(?=ext|imes|heta|an\b|au|o\b|riangle|frac)|\f(?=rac|orall|box)|[\b](?=oxed|inom|egin|eta|ar\b|mod|ig)"
    r"|\r(?=ight|m\b|ho|angle)|\v(?=ec|ert|ee)"
)
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[a-zA-Z]))")
_CLOCK = re.compile(r"(\d{1,2})\s*[时点]\s*(\d{1,2})\s*分")
_HALF_DAY = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?([aApP])\.?\s?[mM]\b\.?\s*\}?")
_NUMBER_IN_WORDS = re.compile(r"\\text\s*\{\s*(-?\d[\d.,]*)\s+([a-zA-Z][^{}]*)\}")
_ARC = re.compile(
    r"(\d{1,9})\s*\^\s*\{?\s*\\?(?:circ|degree|textcirc|textdegree)\s*\}?\s*(\d{1,2})\s*(?:'|′|\^\s*\{?\s*\\prime\s*\}?)(?!')"
    r"(?:\s*(\d{1,2})\s*(?:''|\"|″|\^\s*\{?\s*\\prime\s*\\prime\s*\}?))?"
)
_BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip
_BASE_NAME = re.compile(rf"_\s*\{{?\s*\\(?:text|mathrm|mbox)\s*\{{\s*({'|'.join(_BASES)})\s*\}}\s*\}}?", re.IGNORECASE)
_CIRCLED = re.compile(r"[①-⑳]")

_SPACING = re.compile(
    r"(?<!\\)\\!\s*|(?<!\\)\\(?:[,;:> ]|(?:q?quad|displaystyle|textstyle|limits|hfill)(?![a-zA-Z]))|~"
)
_SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-zA-Z])\s*\.?(?=\s*(?:\\[{}|]|[()\[\]|.]|\\[lr]|$))")
_FONT = re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|mathcal|boldsymbol|bm|rm|bf)(?:\s*\{([^{}]*)\}|(?![a-zA-Z]))")
_WORDS = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt|normal)?|mbox|hbox|textnormal|emph)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:(\d)\s*(\d)|(\d)\s*(?=\{)|(\{[^{}]*\})\s*(\d))")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9a-zA-Z])")
_WORD_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(sqrt)\s*\(([^()]*)\)|(?<![\\a-zA-Z])(pi|infinity|infty)(?![a-zA-Z])")
_DEGREES = re.compile(
    r"\^\s*\{?\s*\\?(?:circ|degree|textcirc|textdegree)\s*\}?|\^\s*$|\\(?:degree|textdegree)(?![a-zA-Z])"
    r"|\s*(?<![a-zA-Z])degrees?(?![a-zA-Z])"
)
_JOINER = re.compile(
    r",?\s*(?:(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|(?<=\d)(?:and|or)(?=[a-zA-Z])|\\(?:text|mbox|textrm)\s*\{[\s,]*(?:and|or|,|或|和)[\s,]*\}"
    r"|\\(?:lor|vee|land|wedge)(?![a-zA-Z])|或者?|和|且|以及)\s*,?"
)
_RELATIONS = (
    (re.compile(r"\\(?:leqslant|leqq|leq|le)(?![a-zA-Z])|=<|<\s*="), "<="),
    (re.compile(r"\\(?:geqslant|geqq|geq|ge)(?![a-zA-Z])|>\s*="), ">="),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:neq|ne)(?![a-zA-Z])|!\s*=|\\not\s*="), "!="),
)
_SYNONYMS = (
    (re.compile(r"\\(?:l|r|lr)?vert(?![a-zA-Z])|\\[lr]?Vert(?![a-zA-Z])|\\mid(?![a-zA-Z])"), "|"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\lbrack(?![a-zA-Z])"), "["),
    (re.compile(r"\\rbrack(?![a-zA-Z])"), "]"),
    (re.compile(r"\\dbinom|\\tbinom"), r"\\binom"),
    (re.compile(r"\\(?:[lc]?dots[a-z]?)(?![a-zA-Z])|\.{3,}|…"), r"\\ldots "),
    (re.compile(r"⌊"), r"\\lfloor "),
    (re.compile(r"⌈"), r"\\lceil "),
    (re.compile(r"第(?=\s*[\d零一二三四五六七八九十百])"), ""),
    (re.compile(r"\\cupdot"), r"\\cup"),
    (re.compile(r"\\log\s*_\s*(?:e|\{\s*e\s*\})"), r"\\ln "),
    (re.compile(r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}|空集"), r"\\emptyset "),
    (re.compile(r"\\langle(?![a-zA-Z])"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (re.compile(r"\\(?:boxed|fbox)\s*(?=\{)"), ""),
    (re.compile(r"\\operatorname\*?\s*\{([a-zA-Z]+)\}"), r"\\\1 "),
    (re.compile(r"\\begin\{([bBpvV]?)matrix\}|\\begin\{array\}\{[^{}]*\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{([bBpvV]?)matrix\}|\\end\{array\}"), r"\\end{pmatrix}"),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"\*\*(?=\s*[\d{(a-zA-Z])(?<=[\d})a-zA-Z]\*\*)"), "^"),
)
_CURRENCY = re.compile(
    r"\\\$|[$€£¥￥₹₽₩]|(?<![a-zA-Z])(?:USD|RMB|CNY)(?![a-zA-Z])|(?:dollars?|yuan)(?![a-zA-Z])|人民币"
)
_ORDINAL = re.compile(r"(?<=\d)\s*\^?\s*\{?\s*(?:\\text\s*\{)?\s*(?:st|nd|rd|th)(?![a-zA-Z])\s*\}{0,2}")
_JOINER_IN_WORDS = re.compile(r"\\text\s*\{([^{}]*?[^{}\s,])\s+(?:and|or)\s*\}")
_QUALIFIER = re.compile(
    r"\\text\s*\{\s*,?\s*for (?:all|any|every|each|some)[^{}]*\}\s*"
    r"(?:[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?\s*[A-Z]\s*\}?)?)?"
)
_DIGIT_GROUPS = re.compile(r"(?<![\d.,_^])\d{1,3}(?: \d{3})+(?!\d)")
_GAP = re.compile(r"(?<=\d) +(?=\d)")
_ENDS = re.compile(r"^[\s\"'`*]+|[\s\"'`*.。;,:，；]+$|\\\\\s*$")


def unescaped(text: str) -> str:
    """With the LaTeX commands that a language's escapes have eaten: a tab and "ext" is `\\text`."""
    return _ESCAPED.sub(lambda m: "\\" + _LETTERS[m[0]], text)


def has_degrees(text: str) -> bool:
    return "°" in text or bool(_DEGREES.search(text))


def tidy(answer: str) -> str:
    """One spelling for spacing, fonts, fractions, roots, relations, currency and degrees. `\\text{…}` and single spaces
    stay, since they tell units and lists from factors."""
    text = answer.translate(_UNICODE)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = _CLOCK.sub(r"\1:\2", text)
    text = _ARC.sub(_in_degrees, text)
    text = _BASE_NAME.sub(lambda m: f"_{{{_BASES[m[1].lower()]}}}", text)
    text = _CIRCLED.sub(lambda m: f"{ord(m[0]) - 0x2460 + 1},", text)
    text = re.sub(r"\\\\(?=[a-zA-Z{}])(?!\\\\)", r"\\", text) if "matrix" not in text and "cases" not in text else text
    text = re.sub(r"\\[()\[\]](?![a-zA-Z])", " ", text) if "matrix" not in text else text
    text = _SPACING.sub(lambda m: "" if m[0].startswith("\\!") else " ", text)
    text = _SIZING.sub("", text)
    for pattern, spelling in _SYNONYMS:
        text = pattern.sub(spelling, text)
    text = _CURRENCY.sub("", text)
    text = _FONT.sub(lambda m: m[1] or "", text)
    text = _WORDS.sub(r"\\text{\1}", text)
    text = _NUMBER_IN_WORDS.sub(r"\1 \\text{\2}", text)
    text = _HALF_DAY.sub(lambda m: f" {m[1].upper()}M", text)
    text = _QUALIFIER.sub(" ", text)
    text = _JOINER_IN_WORDS.sub(r"\\text{\1} , ", text)
    text = _JOINER.sub(" , ", text)
    text = _ORDINAL.sub("", text)
    text = _FRACTION.sub(r"\\frac", text)
    text = _SHORT_FRACTION.sub(_full_fraction, text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _WORD_FUNCTION.sub(lambda m: rf"\sqrt{{{m[2]}}}" if m[1] else r"\pi " if m[3] == "pi" else r"\infty ", text)
    for pattern, spelling in _RELATIONS:
        text = pattern.sub(spelling, text)
    text = re.sub(r"\+\s*\\infty", r"\\infty", text)
    text = _DEGREES.sub(" ", text)
    text = re.sub(r"\s+", " ", text)
    return _ENDS.sub("", _ENDS.sub("", text))


def _in_degrees(match: re.Match) -> str:
    """Degrees, minutes and seconds of arc as a fraction of degrees."""
    degrees, minutes, seconds = (int(part or 0) for part in match.groups())
    return rf"\frac{{{3600 * degrees + 60 * minutes + seconds}}}{{3600}}^\circ "


def _full_fraction(match: re.Match) -> str:
    if match[1]:
        return rf"\frac{{{match[1]}}}{{{match[2]}}}"
    return rf"\frac{{{match[3]}}}" if match[3] else rf"\frac{match[4]}{{{match[5]}}}"


def compact(text: str) -> str:
    """Without spaces, braces around single characters and `\\text`, for comparing character by character."""
    text = re.sub(r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2", untext(text))
    return without_blanks(text).rstrip(".")


def without_blanks(text: str) -> str:
    """Without spaces; one between numbers stays (`1 2` is no 12), unless it groups the digits of one (`1 000`)."""
    if " " in text:
        text = _DIGIT_GROUPS.sub(lambda m: m[0].replace(" ", ""), text)
        text = _GAP.sub("\0", text).replace(" ", "").replace("\0", " ")
    return text


def untext(text: str) -> str:
    """With the insides of `\\text{…}` in their places."""
    return re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text) if "\\text" in text else text


def split_top(text: str, separators: str = ",;") -> list[str]:
    """Split at separators outside all brackets; empty parts are dropped. `[0,1)` counts as a pair."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth = max(0, depth - 1)
        elif depth == 0 and character in separators:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def peel(text: str) -> str:
    """Without redundant outer round brackets and braces: `((5))` is `5`, `(1,2)` and `(a)(b)` stay. Linear time."""
    text = text.strip()
    closes, stack = {}, []
    for position, character in enumerate(text):
        if character in "([{":
            stack.append(position)
        elif character in ")]}":
            if not stack:
                return text
            closes[stack.pop()] = position
    start, end = 0, len(text) - 1
    while start < end and text[start] + text[end] in ("()", "{}") and closes.get(start) == end:
        previous, braces = (start, end), text[start] == "{"
        start, end = start + 1, end - 1
        while start < end and text[start] == " ":
            start += 1
        while end > start and text[end] == " ":
            end -= 1
    if start == 0:
        return text
    inner = text[start : end + 1]
    return inner if braces or len(split_top(inner)) <= 1 else text[previous[0] : previous[1] + 1]
