"""The mapping options, checked and compiled before any row is read. Imports no torch and no datasets."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal, nearest

STANDARD = ("prompt", "answer", "completion", "messages", "text")
_EMPTY_ANSWER = ("refuse", "drop", "keep")


@dataclass(frozen=True)
class Mapping:
    """`DataOptions`, checked and compiled."""

    names: dict[str, str]
    """Our field -> the row's, for the declared and the standard fields."""
    declared: frozenset[str]
    """Our fields that the options name."""
    prompt_template: str | None
    completion_template: str | None
    completion_strip: re.Pattern[str] | None
    answer_pattern: re.Pattern[str] | None
    empty_answer: str
    system: str | None


def compile_mapping(options: DataOptions) -> Mapping:
    """Check the mapping options. Raises Refusal for a bad pattern, template or choice."""
    if options.empty_answer not in _EMPTY_ANSWER:
        choices = nearest(options.empty_answer, _EMPTY_ANSWER)
        raise Refusal("data.empty_answer", f"unknown choice {options.empty_answer!r}", choices)
    pattern = _compile("data.answer_pattern", options.answer_pattern)
    if pattern and pattern.groups != 1 and "answer" not in pattern.groupindex:
        raise Refusal(
            "data.answer_pattern",
            f"{pattern.pattern!r} has {pattern.groups} groups",
            "one group, or one that is named (?P<answer>…)",
        )
    for key in ("prompt_template", "completion_template"):
        _check_template(f"data.{key}", getattr(options, key))
    return Mapping(
        names={name: name for name in STANDARD} | dict(options.fields),
        declared=frozenset(options.fields),
        prompt_template=options.prompt_template,
        completion_template=options.completion_template,
        completion_strip=_compile("data.completion_strip", options.completion_strip),
        answer_pattern=pattern,
        empty_answer=options.empty_answer,
        system=options.system,
    )


def _check_template(key: str, template: str | None) -> None:
    if template is None:
        return
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise Refusal(key, f"{template!r} is no template: {error}", "braces meant as such are doubled") from error
    if any(not name or name[0].isdigit() for name in names):
        raise Refusal(key, f"{template!r} has a placeholder without a field's name", "{question}, for instance")


def _compile(key: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise Refusal(key, f"{pattern!r} is no regular expression: {error}", "Python's re syntax") from error
