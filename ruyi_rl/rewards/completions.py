"""Completions as text. TRL hands a reward function strings (plain prompts) or lists of chat messages."""

import re
from collections.abc import Sequence
from typing import Any

_THINKING_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THINKING_START = re.compile(r"<think(?:ing)?>", re.IGNORECASE)


def completion_text(completion: str | Sequence[dict[str, Any]]) -> str:
    """The text of one completion.

    Args:
        completion: a string, or chat messages `[{"role": …, "content": str | parts | None}, …]`. Of several messages
            the last one of the assistant counts; of a content in parts, its text parts, joined.

    Returns:
        The text; "" for an empty completion.

    Raises:
        TypeError: where the completion is neither.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence) or not all(isinstance(message, dict) for message in completion):
        raise TypeError(f"a completion is a string or a list of chat messages, not {type(completion).__name__}")
    spoken = [message for message in completion if message.get("role", "assistant") == "assistant"] or completion
    content = spoken[-1].get("content") if spoken else ""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text") or "" for part in content if part.get("type", "text") == "text")


def without_thinking(text: str) -> str:
    """The text after the thinking block. A template may open the block in the prompt, so only its end is looked for;
    a block that never ends leaves what stands before it."""
    end = None
    for end in _THINKING_END.finditer(text):
        pass
    if end is not None:
        text = text[end.end() :]
    start = _THINKING_START.search(text)
    return text[: start.start()] if start else text
