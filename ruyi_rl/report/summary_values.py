"""Numbers of a `summary.json`, found by dotted paths such as `exits.*.pass_after`. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def found_values(tree: Any, path: str) -> dict[tuple[str, ...], float]:
    """Every number that a path leads to.

    Args:
        tree: nested dicts.
        path: keys with dots between them; `*` stands for any one. A key may itself hold dots: `exits.1.7B.pass`.

    Returns:
        What each `*` stood for -> the number; NaN and what is no number is left out.
    """
    return _found(tree, path.split("."))


def number_paths(tree: Any, prefix: str = "") -> list[str]:
    """The dotted paths of all numbers, in order."""
    if isinstance(tree, Mapping):
        return [path for key, value in tree.items() for path in number_paths(value, f"{prefix}.{key}".lstrip("."))]
    return [prefix] if _is_number(tree) else []


def _found(tree: Any, parts: list[str]) -> dict[tuple[str, ...], float]:
    if not parts:
        return {(): float(tree)} if _is_number(tree) else {}
    if not isinstance(tree, Mapping):
        return {}
    if parts[0] == "*":
        return {(str(key), *rest): v for key, item in tree.items() for rest, v in _found(item, parts[1:]).items()}
    for end in range(1, len(parts) + 1):
        key = ".".join(parts[:end])
        if key in tree and (found := _found(tree[key], parts[end:])):
            return found
    return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
