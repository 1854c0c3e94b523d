"""The verifiable instructions of IFEval: whether a text follows them.

Source: Instruction-Following Evaluation for Large Language Models (https://arxiv.org/abs/2311.07911), table 1; ids and
argument names are those of its published rows. Where this differs from the published checks: keywords are plain text,
not regular expressions; a character of a script without spaces, such as Chinese, counts as a word and needs no word
boundary around it; `，` is a comma; sentences end by a rule, and languages are told by another library.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ruyi_rl.refusal import nearest
from ruyi_rl.rewards.languages import check_language, main_language
from ruyi_rl.rewards.words import words

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_CAPITALS = re.compile(r"[^\W_]+(?:[-.'’][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?:[.!?]+[\"”’')\]*_]*(?=\s|\Z)|[。！？｡]+[”’」』）]*)")
_ABBREVIATION = re.compile(r"(?:^|[\s(\"“])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|e\.g|i\.e|No|Fig|approx)\.$")


def followed(ids: Sequence[str], arguments: Sequence[Mapping[str, Any]], text: str, loose: bool = False) -> list[bool]:
    """Whether a text follows each instruction.

    Args:
        ids: such as `length_constraints:number_words`.
        arguments: of each instruction; None stands for "not given", as in the published rows.
        loose: an instruction also counts as followed where the text does so without its first or last line, or without
            its asterisks.

    Raises:
        ValueError: an unknown id, arguments that it does not take or lacks, or another number of them than of ids.
    """
    if len(ids) != len(arguments):
        raise ValueError(f"{len(ids)} instructions with {len(arguments)} sets of arguments")
    return [_follows(name, given, text, loose) for name, given in zip(ids, arguments, strict=True)]


def _follows(name: str, given: Mapping[str, Any] | None, text: str, loose: bool) -> bool:
    if name not in INSTRUCTIONS:
        raise ValueError(f"unknown instruction {name!r}: {nearest(name, INSTRUCTIONS)}")
    given = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        return any(INSTRUCTIONS[name](version, **given) for version in _versions(text, loose) if version.strip())
    except TypeError as error:
        raise ValueError(f"{name} with {given}: {error}") from error


def _versions(text: str, loose: bool) -> Iterator[str]:
    yield text
    if loose:
        lines = text.split("\n")
        cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
        yield from cut[1:]
        yield from (part.replace("*", "") for part in cut)


def _compare(count: int, relation: str, threshold: float) -> bool:
    if relation not in ("less than", "at least"):
        raise ValueError(f"unknown relation {relation!r}: 'less than' or 'at least'")
    return count < threshold if relation == "less than" else count >= threshold


def _keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(text.lower().count(keyword.strip().lower()), relation, frequency)


def _forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_has_word(text, word.strip()) for word in forbidden_words if word.strip())


def _has_word(text: str, word: str) -> bool:
    # A character of a script without spaces is a word wherever it stands, so that two of them are two words.
    before, after = ("" if len(words(edge * 2)) == 2 else r"\w" for edge in (word[0], word[-1]))
    pattern = (f"(?<!{before})" if before else "") + re.escape(word) + (f"(?!{after})" if after else "")
    return re.search(pattern, text, re.IGNORECASE) is not None


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _response_language(text: str, language: str) -> bool:
    code = check_language(language)
    return main_language(text, code) in (code, None)


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compare(len(sentences(text)), relation, num_sentences)


def sentences(text: str) -> list[str]:
    """The sentences of a text: they end in punctuation, not in the dot of an initial or a frequent abbreviation."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text, max(start, end.start() - 8), end.start() + 1):
            found.append(text[start : end.end()].strip())
            start = end.end()
    return [sentence for sentence in [*found, text[start:].strip()] if sentence]


def _number_words(text: str, num_words: int, relation: str) -> bool:
    # "don't" is two words in the published count.
    return _compare(sum(1 + word.count("'") + word.count("’") for word in words(text)), relation, num_words)


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    paragraphs = [part.strip() for part in text.split("***")]
    return all(paragraphs[1:-1]) and sum(map(bool, paragraphs)) == num_paragraphs


def _nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    word = paragraphs[int(nth_paragraph) - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _number_placeholders(text: str, num_placeholders: int) -> bool:
    # No regular expression: for the unclosed brackets of a flood it would take the square of their number.
    return sum(_count_pairs(line, "[", "]") for line in text.split("\n")) >= num_placeholders


def _count_pairs(line: str, opening: str, closing: str) -> int:
    count, place = 0, line.find(opening)
    while place >= 0 and (end := line.find(closing, place)) >= 0:
        count, place = count + 1, line.find(opening, end)
    return count


def _postscript(text: str, postscript_marker: str) -> bool:
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = patterns.get(postscript_marker.strip(), re.escape(postscript_marker.strip()))
    return re.search(pattern, text, re.IGNORECASE) is not None


def _number_bullet_lists(text: str, num_bullets: int) -> bool:
    lines = [line.strip() for line in text.split("\n")]
    return sum(line.startswith("-") or re.match(r"\*(?!\*)", line) is not None for line in lines) == num_bullets


def _number_highlighted_sections(text: str, num_highlights: int) -> bool:
    single, double = re.findall(r"\*([^\n*]*)\*", text), re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in [*single, *double]) >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json_format(text: str) -> bool:
    body = re.sub(r"\A```(?:json)?|```\Z", "", text.strip(), flags=re.IGNORECASE)
    try:
        # Numbers stay text: one of a million digits is JSON too.
        json.loads(body, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    inside = (line.partition("<<")[2].rpartition(">>")[0] for line in text.split("\n"))
    return any(part.lstrip("<").rstrip(">").strip() for part in inside)


def _constrained_response(text: str) -> bool:
    return any(option in text for option in _OPTIONS)


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _english_capital(text: str) -> bool:
    return text.isupper() and main_language(text, "en") in ("en", None)


def _english_lowercase(text: str) -> bool:
    return text.islower() and main_language(text, "en") in ("en", None)


def _capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(sum(map(str.isupper, _CAPITALS.findall(text))), capital_relation, capital_frequency)


def _no_comma(text: str) -> bool:
    return "," not in text and "，" not in text


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""Id -> the check: a text and the instruction's arguments by name, to whether it is followed."""
