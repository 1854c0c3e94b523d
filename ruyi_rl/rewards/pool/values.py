"""What a plugin gives, as plain data: all that leaves a worker is finite floats, None and short JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

LARGEST = 1e9
"""Size of a reward: in float32, which trainers compute in, the square of a weighted sum of such is still finite."""
MAX_MESSAGE = 500
"""Characters of a failure's message."""
MAX_NAME, MAX_NAMES = 100, 100
"""Characters of a logged column's or metric's name, and how many of each a call may log."""
MAX_TEXT = 10_000
"""Characters of a logged text."""
MAX_DEPTH = 6
"""Nesting of a logged value."""


class Failed(Exception):
    """A call, or a value of it, that gives no reward.

    Args:
        kind: one of `ruyi_rl.rewards.pool.scores.KINDS`.
        message: what happened.
        place: `file.py:12` or "".
    """

    def __init__(self, kind: str, message: str, place: str = ""):
        self.kind, self.message, self.place = kind, one_line(message), place
        super().__init__(kind, self.message, place)


def listed(returned: Any, expected: int) -> list[Any]:
    """What a plugin returned, as a list with one item a completion.

    Args:
        returned: a list, a tuple, another sequence, a numpy array or a tensor of shape (expected,).
        expected: number of completions.

    Raises:
        Failed: `wrong_type` or `wrong_length`.
    """
    if hasattr(returned, "tolist"):
        returned = returned.tolist()
    if not isinstance(returned, Sequence) or isinstance(returned, (str, bytes, bytearray, memoryview)):
        raise Failed("wrong_type", f"returned {type(returned).__name__}, not a list of one number a completion")
    returned = list(returned)
    if len(returned) != expected:
        raise Failed("wrong_length", f"returned {len(returned)} rewards for {expected} completions")
    return returned


def number(value: Any) -> float | None:
    """One reward: a float of at most `LARGEST` in size, or None where the plugin abstained.

    Args:
        value: None, a number of any type (a bool, a numpy scalar and a tensor of one element are numbers).

    Raises:
        Failed: `nan`, `infinite` or `wrong_type`.
    """
    if value is None or type(value) is float and abs(value) <= LARGEST:
        return value
    problem = f"returned {_short(value)} of type {type(value).__name__}, not a number"
    if isinstance(value, (str, bytes, bytearray, complex)) or not hasattr(value, "__float__"):
        raise Failed("wrong_type", problem)
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    except Exception as error:
        raise Failed("wrong_type", problem) from error
    if math.isnan(value):
        raise Failed("nan", "returned NaN")
    if math.isinf(value):
        raise Failed("infinite", "returned an infinite number")
    if abs(value) > LARGEST:
        raise Failed("infinite", f"returned {value:g}: more than {LARGEST:g} in size is taken for infinite")
    return value


def logged(value: Any) -> Any:
    """A logged value as JSON takes it; what it does not take, and what is long, becomes the beginning of its text."""
    value = _plain(value, 0)
    text = json.dumps(value)
    return value if len(text) <= 2 * MAX_TEXT or isinstance(value, str) else text[:MAX_TEXT]


def _plain(value: Any, depth: int) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else _short(value)
    if isinstance(value, str):
        return encodable(value[:MAX_TEXT])
    if isinstance(value, (list, tuple)) and depth < MAX_DEPTH:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < MAX_DEPTH:
        return {encodable(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    return _short(value)


def one_line(text: str) -> str:
    """The text in one line of bounded length, without what would steer a terminal or cannot be encoded."""
    line = " ".join(text[: 4 * MAX_MESSAGE].split())[:MAX_MESSAGE]
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def encodable(text: str) -> str:
    """The text as UTF-8 can hold it: without halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def described(error: BaseException) -> str:
    """`ValueError: bad sample`, whatever the exception's own code does."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a plugin's exception
        text = ""
    return one_line(f"{type(error).__name__}: {text}".removesuffix(": "))


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a plugin's object
        return f"<{type(value).__name__}>"
    return one_line(text)[:80]
