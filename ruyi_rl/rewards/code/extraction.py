"""The program in a completion. Text only: nothing here parses what a model wrote, since deep nesting alone can bring a
parser down."""

import re
import textwrap
from collections.abc import Collection

from ruyi_rl.rewards.completions import without_thinking

TAGS = {"python": ("python", "python3", "py", "py3", "")}
"""Language -> tags of its code blocks, in lower case; "" is a block without one."""
MAX_TEXT = 1_000_000
"""Characters of a completion that are searched, from its end."""

_ANSWER = re.compile(r"^[ \t]*<answer>", re.IGNORECASE | re.MULTILINE)
# Anything may stand before a fence in its line, but no second one: that would be code inside a sentence.
_FENCE = re.compile(r"^([^\n`~]*)(`{3,16}|~{3,16})[ \t]*([^\s`]*)[^\n`]*(?:\n|\Z)", re.MULTILINE)


def extract_program(text: str, functions: Collection[str] = (), language: str = "python") -> str | None:
    """The program that a completion gives, outside its thinking.

    Of several code blocks the last one with the language's tag counts, or without any such the last one without a tag;
    where `functions` are asked for, the last of them that defines one, so that an example of use may follow. A block
    that is never closed ends with the text. A text without blocks is a program as a whole. Of a text that ends with
    `</answer>` only what follows the last `<answer>` at the beginning of a line counts.

    Args:
        text: the completion.
        functions: names that the tests call.
        language: a key of `TAGS`.

    Returns:
        The program, without the blank lines around it; its first line keeps its indentation. None where there is none.
    """
    text = _answer(without_thinking(text[-MAX_TEXT:]))
    found = code_blocks(text)
    if not found:
        return _without_blank_ends(text)
    tags = TAGS[language]
    tagged = [code for tag, code in found if tag and tag in tags]
    blocks = tagged or [code for tag, code in found if tag in tags]
    blocks = [code for code in map(_without_blank_ends, blocks) if code]
    defining = [code for code in blocks if any(defines(code, name) for name in functions)]
    return (defining or blocks or [None])[-1]


def _answer(text: str) -> str:
    """The inside of `<answer>…</answer>` at the end of a text; elsewhere the tags may be a string of the program."""
    if not text.rstrip().lower().endswith("</answer>"):
        return text
    openings = list(_ANSWER.finditer(text))
    return text[openings[-1].end() : text.rstrip().rindex("<")] if openings else text


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(tag in lower case, inside) of every fenced block, in order. Linear time.

    A fence closes with at least as many of the same characters alone at the end of a line.
    """
    found, position = [], 0
    while opening := _FENCE.search(text, position):
        before, fence, tag = opening.groups()
        closing = re.compile(rf"(?:^|\n)[ \t]*{re.escape(fence)}+[ \t]*(?=\n|\Z)|{re.escape(fence)}+[ \t]*(?:\n|\Z)")
        end = closing.search(text, opening.end())
        stop, position = (end.start(), end.end()) if end else (len(text), len(text))
        inside = text[opening.end() : stop]
        # The code of a block in a list item is indented with it.
        found.append((tag.lower(), textwrap.dedent(inside) if before and not before.strip() else inside))
    return found


def defines(program: str, name: str) -> bool:
    """Whether a program seems to define a function of that name at its top level, also as `name = …` or by import."""
    name = re.escape(name)
    pattern = (
        rf"^(?:async[ \t]+)?def[ \t]+{name}\b|^class[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?=(?!=)"
        rf"|^(?:from|import)[ \t][^\n]*\b{name}\b"
    )
    return re.search(pattern, program, re.MULTILINE) is not None


def _without_blank_ends(text: str) -> str | None:
    """Without blank lines at both ends; None where nothing else is there."""
    text = re.sub(r"\A(?:[ \t\r]*\n)+", "", text).rstrip()
    return text or None
