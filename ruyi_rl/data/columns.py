"""Rows of any JSON shape as a `datasets.Dataset` that gives every value back as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, Features, Json, List, Value

_SCALARS = {bool: "bool", int: "int64", float: "float64", str: "string"}
_MESSAGES = List({"role": Value("string"), "content": Value("string")})
_LONGEST_INT = 2**63


def dataset_from_rows(rows: Sequence[dict[str, Any]]) -> Dataset:
    """A dataset with one column a field; a row that lacks a field has None there.

    Texts, numbers, booleans, lists of these, and chat messages become plain Arrow columns. Everything else (objects,
    mixed types, lists of lists) becomes a `Json` column: Arrow would fill the keys that a row lacks with None and
    refuse mixed types. A value that `Json` cannot hold, such as an integer beyond 64 bits, makes its column JSON text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        feature = _feature(values)
        if feature is None:
            values = [None if value is None else json.dumps(value, default=str) for value in values]
            feature = Json() if _survives_json(values) else Value("string")
        columns[name], features[name] = values, feature
    return Dataset.from_dict(columns, features=Features(features))


def _feature(values: list[Any]) -> Any:
    """The plain feature that holds all values, or None."""
    kinds = {_kind(value) for value in values if value is not None}
    if kinds <= set(_SCALARS.values()):
        return _scalar(kinds)
    if kinds == {"messages"}:
        return _MESSAGES
    if kinds and all(isinstance(kind, tuple) for kind in kinds):
        inner = _scalar({kind for outer in kinds for kind in outer})
        return inner and List(inner)
    return None


def _scalar(kinds: set[str]) -> Value | None:
    if kinds == {"int64", "float64"}:
        return Value("float64")
    return Value(kinds.pop() if kinds else "string") if len(kinds) <= 1 else None


def _kind(value: Any) -> str | tuple[str, ...]:
    if type(value) is int and not -_LONGEST_INT <= value < _LONGEST_INT:
        return "other"
    if type(value) in _SCALARS:
        return _SCALARS[type(value)]
    if isinstance(value, list):
        kinds = {_kind(element) for element in value}
        if kinds <= set(_SCALARS.values()):
            return tuple(sorted(kinds))
        if all(_is_message(element) for element in value):
            return "messages"
    return "other"


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"role", "content"} and isinstance(value["content"], str)


def _survives_json(texts: list[str | None]) -> bool:
    decode = Json().decode_example
    for text in texts:
        try:
            if text is not None and decode(text) != json.loads(text):
                return False
        except ValueError:
            return False
    return True
