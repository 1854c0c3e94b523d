"""Prompts of `stage=generate`: one from the command line, or a file's. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.data.files import SUFFIXES, read_records
from ruyi_rl.refusal import Refusal

ROLES = ("system", "user", "assistant", "tool")
ROW = '{"prompt": "text"} or {"prompt": [{"role": "user", "content": "text"}]}'

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """What a family is asked."""

    content: str | Messages
    """Text, or chat messages the last of which is not the assistant's."""
    key: str = "generate.prompt"
    """Where it comes from, for refusals."""
    place: str = ""
    """File and line, where there are any."""

    def messages(self, system: str | None) -> Messages:
        """It as a chat; `system` opens it unless a system message of its own does."""
        own = [{"role": "user", "content": self.content}] if isinstance(self.content, str) else self.content
        opened = system is None or own[0]["role"] == "system"
        return own if opened else [{"role": "system", "content": system}, *own]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order: the lines of a .txt that are not blank, or the rows of any other.

    Raises:
        Refusal: a missing, unreadable or empty file, or a bad row, with its line.
    """
    if not path.is_file() or not path.name.endswith((".txt", *SUFFIXES)):
        problem = f"{path} is of no known kind" if path.is_file() else f"no file {path}"
        raise Refusal("generate.file", problem, "prompts, one a line in .txt, or rows in " + ", ".join(SUFFIXES))
    try:
        if path.suffix == ".txt":
            prompts = line_prompts(path.read_text(encoding="utf-8").splitlines(), "generate.file", str(path))
        else:
            prompts = [
                Prompt(checked_content(row.get("prompt"), place), "generate.file", place)
                for place, row in read_records(path)
            ]
    except Refusal as refusal:
        raise Refusal("generate.file", refusal.problem, refusal.allowed) from None
    except OSError as error:
        raise Refusal("generate.file", f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refusal("generate.file", f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not prompts:
        raise Refusal("generate.file", f"{path} holds no prompt", "one a line")
    return prompts


def line_prompts(lines: Iterable[str], key: str, source: str) -> list[Prompt]:
    """A prompt for each line that is not blank."""
    return [
        Prompt(line, key, f"{source} line {number}")
        for number, text in enumerate(lines, 1)
        if (line := text.rstrip("\r\n")).strip()
    ]


def checked_content(content: Any, place: str) -> str | Messages:
    """A row's `prompt`, refused unless it is text or a chat that asks for an answer."""
    if isinstance(content, str) and content.strip():
        return content
    if not isinstance(content, list) or not content:
        raise Refusal("generate.file", f"{place}: prompt is {content!r}", ROW)
    for message in content:
        whole = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not whole or message.get("role") not in ROLES:
            raise Refusal("generate.file", f"{place}: {message!r} is no chat message", ROW)
    if content[-1]["role"] == "assistant":
        raise Refusal("generate.file", f"{place}: the chat ends with the assistant's message", "end it with the user's")
    return content
