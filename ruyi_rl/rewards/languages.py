"""The language of every word of a text.

Scripts that belong to one language decide by themselves. Han is Japanese among kana, else Chinese. Languages that share
the Latin, Cyrillic, Arabic or Devanagari script are told apart by py3langid (https://github.com/adbar/py3langid, 139
languages, its model is inside the package), a window of some words at a time: one word alone does not tell.
"""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from ruyi_rl.refusal import nearest
from ruyi_rl.rewards.words import words

MAX_TEXT = 100_000
"""Characters of a text that are looked at: its first and last halves."""
WINDOW = 8
"""Words that are identified together, at least."""

_DOUBT = 0.3
"""The expected language is taken where it is at least this likely, as a share of the likeliest one. On 200 sentences of
2 to 13 words in 20 languages, each against all 20: .3 misses 1 and takes 10 of 3,800 wrongly (all under 7 words), 1
misses 7 and takes 1."""

# Languages of a shared script that are told apart. Fewer than py3langid knows, for with all of them short texts in a
# frequent language are taken for a rare relative; another language is added where it is the one that is asked for.
_SHARED = {
    script: set(names.split())
    for script, names in {
        "LATIN": "ca cs da de en es et fi fr hr hu id it lt lv nl no pl pt ro sk sl sv sw tl tr vi",
        "CYRILLIC": "be bg kk ru sr uk",
        "ARABIC": "ar fa ur",
        "DEVANAGARI": "hi mr ne",
    }.items()
}
_ONE = {
    "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "THAI": "th", "GREEK": "el", "HEBREW": "he", "ARMENIAN": "hy",
    "GEORGIAN": "ka", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "MALAYALAM": "ml", "GUJARATI": "gu",
    "GURMUKHI": "pa", "BENGALI": "bn", "KHMER": "km", "LAO": "lo", "MYANMAR": "my", "SINHALA": "si", "ETHIOPIC": "am",
    "TIBETAN": "bo", "ORIYA": "or",
}  # fmt: skip
_HAN, _KANA = {"CJK", "IDEOGRAPHIC"}, {"HIRAGANA", "KATAKANA"}
LANGUAGES = sorted({"zh", "ja", *_ONE.values(), *(name for names in _SHARED.values() for name in names)})
"""ISO 639-1 codes that are always known."""

# Neither code, nor formulas, nor addresses, nor tags are prose. Every alternative is linear: what it looks for stands
# for itself at its end, or its length is bounded.
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|\[asy\].*?(?:\[/asy\]|\Z)|\\begin\{([a-z]{1,12}\*?)\}.{0,2000}?\\end\{\1\}|`[^`\n]{1,400}`|\$\$[^$]{1,4000}\$\$|\$[^$\n]{1,400}\$|\\\[.{1,1000}?\\\]|\\\(.{1,400}?\\\)"
    r"|\\boxed\s?\{[^{}]{0,400}\}|\\[a-zA-Z]+|https?://\S{1,2000}|</?[a-zA-Z][a-zA-Z0-9_]{0,30}\s?/?>"
    r"|<\|[^<>|\n]{1,40}\|>",
    re.DOTALL,
)
_SENTENCE = re.compile(r"[^.!?;。！？；।\n]+")


def check_language(language: str) -> str:
    """The code of a language that can be told; region and script after a dash are dropped (`zh-CN`).

    Raises:
        ValueError: where it cannot.
    """
    code = re.split(r"[-_]", language.strip().lower())[0] if isinstance(language, str) else ""
    if code not in LANGUAGES and code not in _identifier().labels:
        raise ValueError(f"unknown language {language!r}, an ISO 639-1 code: {nearest(code, LANGUAGES)}")
    return code


def languages(text: str, expected: str | None = None) -> Counter[str]:
    """Language -> how many words of the text are in it; empty where the text has no words.

    Code, formulas, addresses, numbers and single letters are no words; see `words` for scripts without spaces.

    Args:
        text: of any length; at most `MAX_TEXT` characters are looked at.
        expected: a checked code; it is among the candidates even if it is rare.
    """
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT // 2] + "\n" + text[-MAX_TEXT // 2 :]
    counts: Counter[str] = Counter()
    shared: dict[str, list[list[str]]] = {}
    lines = [_scripts(line) for line in _prose(text).splitlines()]
    japanese = _kana_share([word for line in lines for sentence in line for word in sentence]) > 0.3
    for line in lines:
        han = _han_of(line, japanese)
        for sentence in line:
            in_script: dict[str, list[str]] = {}
            for script, word in sentence:
                if script in _HAN:
                    counts[han] += 1
                elif script in _SHARED:
                    in_script.setdefault(script, []).append(word)
                else:
                    counts[_ONE.get(script, script.lower())] += 1
            for script, found in in_script.items():
                shared.setdefault(script, []).append(found)
    for script, sentences in shared.items():
        for window in _windows(sentences):
            counts[_identify(" ".join(window), script, expected)] += len(window)
    return counts


def main_language(text: str, expected: str | None = None, least: int = 0) -> str | None:
    """The language of most words; None where there are none.

    Args:
        text, expected: see `languages`.
        least: also None where fewer words than this are in it and its script has other languages too: "Calculate" alone
            could be any of several.
    """
    counts = languages(text, expected)
    if not counts:
        return None
    name = max(counts, key=lambda name: (counts[name], name))
    shares_script = name not in {"zh", *_ONE.values()}
    return None if shares_script and counts[name] < least else name


def _prose(text: str) -> str:
    return unicodedata.normalize("NFKC", _NO_PROSE.sub(" ", text))


def _scripts(line: str) -> list[list[tuple[str, str]]]:
    """The sentences of a line as (script, word) pairs."""
    sentences = [words(match[0]) for match in _SENTENCE.finditer(line)]
    found = [[(_script(word[0]), word) for word in sentence if word[0].isalpha()] for sentence in sentences]
    # A single letter is a variable more often than a word.
    return [[(script, word) for script, word in sentence if len(word) > 1 or script in _SINGLE] for sentence in found]


_SINGLE = _HAN | _KANA | {"HANGUL", "THAI", "LAO", "KHMER", "MYANMAR"}


@functools.lru_cache(maxsize=8192)
def _script(char: str) -> str:
    """The first word of the character's Unicode name: LATIN, CJK, HIRAGANA …"""
    return re.split(r"[ -]", unicodedata.name(char, "UNKNOWN"))[0]


def _kana_share(found: list[tuple[str, str]]) -> float:
    kana = sum(script in _KANA for script, _ in found)
    return kana / max(1, kana + sum(script in _HAN for script, _ in found))


def _han_of(line: list[list[tuple[str, str]]], text_is_japanese: bool) -> str:
    found = [word for sentence in line for word in sentence]
    # Japanese prose is half kana, its headings may have none; a Chinese line may quote a word.
    heading = text_is_japanese and sum(script in _HAN for script, _ in found) < 12
    return "ja" if heading or _kana_share(found) > 0.12 else "zh"


def _windows(sentences: list[list[str]]) -> Iterator[list[str]]:
    """Whole sentences together until they have `WINDOW` words; the rest goes with the window before it."""
    windows: list[list[str]] = []
    for sentence in sentences:
        if windows and len(windows[-1]) < WINDOW:
            windows[-1] += sentence
        else:
            windows.append(list(sentence))
    if len(windows) > 1 and len(windows[-1]) < WINDOW:
        windows[-2:] = [windows[-2] + windows[-1]]
    yield from windows


def _identify(text: str, script: str, expected: str | None) -> str:
    chances = {name: chance for name, chance in _identifier().rank(text) if name in {*_SHARED[script], expected}}
    best = max(chances, key=chances.__getitem__)
    return expected if chances.get(expected, 0) >= _DOUBT * chances[best] else best


@functools.cache
def _identifier():
    # Not at the top: its model takes a second and 100 MB, which only texts in a shared script need.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
