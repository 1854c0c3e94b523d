"""What the documents hold that can be wrong: commands, snippets, keys, links, and where each of them stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("docs/tour.md", "README.md")
"""Pages whose commands come first; the others', which may read those runs, follow by name."""
PROGRAMS = ("python", "make", "torchrun", "deepspeed", "ruyi_rl", "sbatch", "srun", "pip", "apt-get", "git", "source")
"""Words that begin a command inside a line of text."""
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_SETTINGS = re.compile(r"^(?:[A-Z_]+=\S+ )+")
"""Variables that are set for one command."""


@dataclass(frozen=True)
class Piece:
    """Something that a page shows."""

    page: str
    """Path from the root."""
    line: int
    language: str
    """Of a block; `sh` for a command inside a line of text."""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README and docs, in the order in which their commands are run."""
    found = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
    return [found[name] for name in FIRST] + [path for name, path in found.items() if name not in FIRST]


def blocks(page: Path) -> list[Piece]:
    """The fenced blocks of a page."""
    text = page.read_text()
    return [
        Piece(str(page.relative_to(ROOT)), _line(text, match.start()) + 1, match[2], _dedented(match[3], len(match[1])))
        for match in _FENCE.finditer(text)
    ]


def spans(page: Path) -> list[Piece]:
    """What stands between single backquotes, each on one line, blocks left out."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
    return [
        Piece(str(page.relative_to(ROOT)), _line(text, match.start()), "span", " ".join(match[1].split()))
        for match in _SPAN.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without blocks and spans; lines keep their numbers."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
    return _SPAN.sub(lambda match: "\n" * match[0].count("\n"), text)


def runnable(page: Path) -> list[Piece]:
    """Commands, Python snippets and files of a page, in order: a piece for each line of a shell block, `\\` joined."""
    found = [piece for piece in blocks(page) if piece.language in ("python", "yaml") or _is_script(piece)]
    for block in blocks(page):
        if block.language == "sh" and not _is_script(block):
            found += _lines(block)
    for span in spans(page):
        named = _SETTINGS.sub("", span.text).split()
        if len(named) > 1 and named[0] in PROGRAMS:
            found.append(Piece(span.page, span.line, "sh", span.text))
    return sorted(found, key=lambda piece: piece.line)


def file_name(piece: Piece) -> str:
    """The file that a `yaml` block is: the last one that the text before it names."""
    named = [span.text for span in spans(ROOT / piece.page) if span.line < piece.line and span.text.endswith(".yaml")]
    return named[-1]


def words(command: str) -> list[str]:
    """A command's words, without its comment."""
    return shlex.split(command, comments=True)


def _lines(block: Piece) -> Iterator[Piece]:
    begun, text = block.line, ""
    for number, line in enumerate(block.text.splitlines(), block.line):
        begun = begun if text else number
        text += line.removesuffix("\\")
        if not line.endswith("\\"):
            if words(text):
                yield Piece(block.page, begun, "sh", text.strip())
            text = ""


def _is_script(block: Piece) -> bool:
    return block.language == "sh" and block.text.startswith("#!")


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _dedented(text: str, indent: int) -> str:
    return "".join(line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in text.splitlines(keepends=True))
